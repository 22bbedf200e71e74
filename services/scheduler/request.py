"""One request as the scheduler sees it: its tokens, its blocks, and where it stands."""

from array import array
from enum import Enum

from octavo.shared.messages import RequestId
from octavo.shared.prefix_hash import HASH_BYTES, next_hash, root_hash
from octavo.shared.sampling import SamplingParams
from octavo.shared.transport import Address


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
        "max_output", "expected_blocks", "arrival", "is_resumed", "finish_reason",
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
        self.arrival = 0
        self.is_resumed = False
        self.finish_reason = ""
        self.arrived_s: float | None = None
        """None: it came with tokens of its completion, so it began under an earlier scheduler."""
        self.admitted_s: float | None = None
        """When the step that began it was planned, for the first time."""
        self.first_token_s: float | None = None
        self.num_cached = 0
        """Tokens of the prompt that were found in the prefix cache then."""

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
