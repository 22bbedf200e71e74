"""One request as the scheduler sees it: its tokens, its blocks, and where it stands."""

import math
import struct
from array import array
from enum import Enum

from octavo.shared.errors import InvalidRequest
from octavo.shared.messages import INT32_BYTES, ModelInfo, RequestId, logprob_bytes
from octavo.shared.prefix_hash import HASH_BYTES, next_hash, root_hash
from octavo.shared.sampling import SamplingParams
from octavo.shared.transport import Address

_UNKNOWN = struct.pack("<f", math.nan)


class State(Enum):
    """waiting -> filling -> decoding -> (draining ->) finished; who is preempted drains, then waits again."""

    WAITING = "waiting"
    FILLING = "filling"
    """Known tokens are left to compute."""
    DECODING = "decoding"
    """One new token each step."""
    DRAINING = "draining"
    """All its steps are planned, or it was preempted, and results are still to come."""
    FINISHED = "finished"


class Request:
    """State of one request. The planner changes it; nobody else does."""

    __slots__ = (
        "id", "route", "params", "num_prompt", "token_ids", "root", "block_hashes", "blocks", "num_shared",
        "num_published", "slot",
        "state", "run", "num_planned", "decode_from", "last_step", "num_overtaken", "num_preemptions",
        "max_output", "expected_blocks", "priority", "arrival", "is_resumed", "finish_reason",
        "logprobs", "prompt_logprobs", "owes_prompt_logprobs",
        "arrived_s", "admitted_s", "first_token_s", "num_cached",
    )  # fmt: skip

    def __init__(
        self,
        id: RequestId,
        route: Address,
        params: SamplingParams,
        prompt_ids: "array[int]",
        block_hashes: bytes,
    ) -> None:
        self.id = id
        self.route = route
        self.params = params
        self.num_prompt = len(prompt_ids)
        self.token_ids = prompt_ids
        """The prompt, then every committed token."""
        starts = range(0, len(block_hashes), HASH_BYTES)
        hashes = [block_hashes[start : start + HASH_BYTES] for start in starts]
        self.root = hashes[0] if hashes else root_hash(id)
        self.block_hashes = hashes[1:]
        """The chain over full blocks, without its root; grows with the completion."""
        self.blocks: list[int] = []
        self.num_shared = 0
        """Blocks at the beginning that were there when the request was admitted."""
        self.num_published = 0
        self.slot = -1
        self.state = State.WAITING
        self.run = 0
        """Grows whenever the request is admitted or leaves, so that plans made before are known as stale."""
        self.num_planned = 0
        """Tokens whose computation is planned: while filling; later, up to the step `decode_from`."""
        self.decode_from = 0
        """The step that computes the last known token and samples the first new one of this run."""
        self.last_step = 0
        """The last step in which it has a row, as far as one can tell while it decodes."""
        self.num_overtaken = 0
        self.num_preemptions = 0
        self.max_output = params.max_tokens
        """The planner lowers it to what the model's context has room for."""
        self.expected_blocks = 0
        self.priority = 0
        self.arrival = 0
        self.is_resumed = False
        self.finish_reason = ""
        self.logprobs = bytearray()
        """Of every committed token, `logprob_bytes` each, if they are asked for."""
        self.prompt_logprobs = bytearray()
        """Of the prompt's tokens but the first, as `StepResult` has them; all of them before the first new token."""
        self.owes_prompt_logprobs = False
        """The tokenizer has not been sent them."""
        self.arrived_s: float | None = None
        """None: it came with tokens of its completion, so it began under an earlier scheduler."""
        self.admitted_s: float | None = None
        """When the step that began it was planned, for the first time."""
        self.first_token_s: float | None = None
        self.num_cached = 0
        """Tokens of the prompt that were found in the prefix cache then."""

    @property
    def lacks_prompt_logprobs(self) -> bool:
        """They are asked for: its whole prompt must be computed for that, whatever is cached."""
        if self.params.prompt_logprobs is None:
            return False
        size = INT32_BYTES + logprob_bytes(self.params.prompt_logprobs)
        return len(self.prompt_logprobs) < (self.num_prompt - 1) * size

    def note_logprobs(self, of_token: bytes | None, of_prompt: bytes | None) -> None:
        """Keep what a step tells."""
        if of_token is not None and self.params.logprobs is not None:
            size = logprob_bytes(self.params.logprobs)
            # Tokens that another scheduler has committed may be without: their client has got them.
            missing = self.num_output - 1 - len(self.logprobs) // size
            self.logprobs += _UNKNOWN * (missing * size // len(_UNKNOWN)) + of_token
        if of_prompt is not None and self.lacks_prompt_logprobs:
            self.prompt_logprobs += of_prompt
            self.owes_prompt_logprobs = not self.lacks_prompt_logprobs

    def logprobs_from(self, start: int) -> bytes:
        """Of its committed tokens from a place in the completion on."""
        return bytes(self.logprobs[start * logprob_bytes(self.params.logprobs or 0) :])

    @property
    def num_output(self) -> int:
        return len(self.token_ids) - self.num_prompt

    @property
    def num_left(self) -> int:
        """Tokens that it may still generate."""
        return self.max_output - self.num_output

    def num_planned_at(self, step: int) -> int:
        """Tokens whose computation is planned up to and with a step in which the request decodes."""
        return self.num_planned + step - self.decode_from

    def go_back(self) -> None:
        """Wait again, with nothing but its tokens: the executor has forgotten all else."""
        if self.lacks_prompt_logprobs:
            self.prompt_logprobs.clear()
        self.state = State.WAITING
        self.blocks = []
        self.slot = -1
        self.is_resumed = True

    def hash_of_block(self, index: int, block_size: int) -> bytes:
        """The content hash of a full block of known tokens; extends the chain beyond the prompt as needed."""
        while len(self.block_hashes) <= index:
            start = len(self.block_hashes) * block_size
            parent = self.block_hashes[-1] if self.block_hashes else self.root
            self.block_hashes.append(next_hash(parent, self.token_ids[start : start + block_size].tobytes()))
        return self.block_hashes[index]


def has_stopped(request: Request) -> bool:
    """Its newest token is one that it stops at."""
    params = request.params
    return request.token_ids[-1] in params.stop_token_ids and request.num_output > params.min_tokens


def check_prompt(request: Request, model: ModelInfo) -> None:
    """Raises InvalidRequest if the model cannot take a request's tokens."""
    if not 0 <= min(request.token_ids) <= max(request.token_ids) < model.vocab_size:
        wrong = next(token for token in request.token_ids if not 0 <= token < model.vocab_size)
        raise InvalidRequest(
            f"prompt: token id {wrong} is outside the vocabulary; ids are 0 to {model.vocab_size - 1}",
            "prompt",
        )
    if request.num_prompt >= model.max_model_len:
        raise InvalidRequest(
            f"prompt: it has {request.num_prompt} tokens; this model takes {model.max_model_len} with the "
            f"completion, so at most {model.max_model_len - 1} are left for the prompt",
            "prompt",
            "context_length_exceeded",
        )
