"""How one completion is sampled: what the scheduler and the executor must know of a request's options."""

from typing import Annotated

import msgspec
from msgspec import Meta

MAX_SEED = 2**63 - 1
GREEDY_BELOW = 1e-5  # a temperature under this is greedy: dividing by it would overflow float32


class SamplingParams(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Options of one completion, all checked. Order: temperature, top-k, top-p, min-p (as vLLM)."""

    max_tokens: Annotated[int, Meta(ge=1)]
    temperature: Annotated[float, Meta(ge=0.0, le=2.0)] = 1.0
    top_p: Annotated[float, Meta(gt=0.0, le=1.0)] = 1.0
    top_k: Annotated[int, Meta(ge=0)] = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    min_p: Annotated[float, Meta(ge=0.0, le=1.0)] = 0.0
    """Keep tokens at least this likely, relative to the likeliest."""
    seed: Annotated[int, Meta(ge=0, le=MAX_SEED)] = 0
    """With the position it is all that a draw depends on, so a resumed stream draws the same luck."""
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end the completion, end-of-sequence tokens included unless they are ignored."""

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW or self.top_k == 1
