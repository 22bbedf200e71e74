"""How one completion is sampled: what the scheduler and the executor must know of a request's options."""

from typing import Annotated

import msgspec
from msgspec import Meta

MAX_SEED = 2**63 - 1
MAX_LOGPROBS = 20
GREEDY_BELOW = 1e-5  # a temperature under this is greedy: dividing by it would overflow float32


class SamplingParams(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """Options of one completion, all checked. Order: what is forbidden or favoured,
    penalties, temperature, min-p, top-k, top-p (as vLLM)."""

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
    repetition_penalty: Annotated[float, Meta(ge=0.01, le=100.0)] = 1.0
    """Divides positive logits and multiplies others, of tokens in the prompt or the completion."""
    frequency_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0
    """Taken off a token's logit for each time that the completion has it."""
    presence_penalty: Annotated[float, Meta(ge=-2.0, le=2.0)] = 0.0
    """Taken off a token's logit if the completion has it."""
    logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    """How many of the likeliest tokens are named beside each one that is chosen; None: not even its own logprob."""
    prompt_logprobs: Annotated[int, Meta(ge=0, le=MAX_LOGPROBS)] | None = None
    """The same for each token of the prompt but the first."""
    min_tokens: Annotated[int, Meta(ge=0)] = 0
    """So many tokens are generated before one of `stop_token_ids` may be."""
    biases: dict[int, float] = {}
    """Added to the logits of these tokens."""
    allowed_token_ids: bytes = b""
    """int32: the only tokens that may be generated; empty: all may be."""
    bad_words: tuple[bytes, ...] = ()
    """int32 each: tokens that must not follow one another."""
    grammar: str = ""
    """The key of a compiled grammar that the completion must follow; empty: none."""
    thinking_budget: Annotated[int, Meta(ge=0)] = 0
    """After so many tokens the completion's reasoning is ended; 0: never."""
    thinking_begin: bytes = b""
    """int32: how a completion begins that reasons; empty: it is in the middle of that from the start."""
    thinking_end: bytes = b""
    """int32: how reasoning ends."""

    @property
    def has_penalties(self) -> bool:
        return (self.repetition_penalty, self.frequency_penalty, self.presence_penalty) != (1.0, 0.0, 0.0)

    @property
    def has_edits(self) -> bool:
        """Some tokens are favoured or forbidden, at some time at least."""
        return bool(
            self.min_tokens
            or self.biases
            or self.allowed_token_ids
            or self.bad_words
            or self.grammar
            or self.thinking_budget
        )

    @property
    def is_greedy(self) -> bool:
        return self.temperature < GREEDY_BELOW or self.top_k == 1
