"""Small pipelines that a test moves on by hand: a planner with an engine, a scheduler with its peers."""

from array import array
from collections import deque
from collections.abc import Sequence

from octavo.services.executor.sim import SimEngine
from octavo.services.scheduler.core import Inbox, Outbox, Scheduler
from octavo.services.scheduler.planner import Planner
from octavo.services.scheduler.request import Request
from octavo.shared.errors import ErrorInfo
from octavo.shared.messages import (
    Cancel,
    Enqueue,
    ExecutorReady,
    Message,
    ModelInfo,
    Refused,
    RequestId,
    Reset,
    Step,
    StepResult,
    Tokens,
    pack,
    unpack,
)
from octavo.shared.oracle import expected_tokens
from octavo.shared.prefix_hash import hash_blocks, root_hash
from octavo.shared.sampling import SamplingParams
from octavo.shared.transport import Address

TOKENIZER, OTHER_TOKENIZER = Address(b"tokenizer"), Address(b"other tokenizer")
EXECUTOR, OTHER_EXECUTOR = Address(b"executor"), Address(b"other executor")
VOCAB = 1000


def make_model(
    num_blocks: int = 64, block_size: int = 4, num_slots: int = 8, max_step: int = 64, max_len: int = 0
) -> ModelInfo:
    """A simulated model whose context is the whole pool, unless told."""
    return ModelInfo(
        VOCAB, max_len or num_blocks * block_size, block_size, num_blocks, num_slots, max_step, "sim", "none"
    )


def make_prompt(length: int, first: int = 0) -> list[int]:
    """Prompts with different `first` share nothing."""
    return [first * 100 + place % 100 for place in range(length)]


def chain(prompt: Sequence[int], block_size: int) -> bytes:
    """What a tokenizer sends as `block_hashes`."""
    return root_hash(b"") + hash_blocks(pack(prompt), block_size, b"")


class PlannerRig:
    """A planner and an engine; `settle` runs the oldest step."""

    def __init__(self, model: ModelInfo, is_caching: bool = True) -> None:
        self.model = model
        self.planner = Planner(model, 1, is_caching)
        self.steps: deque[Step] = deque()
        self._engine = SimEngine(model, step_ms=0)
        self._num_requests = 0

    def add(self, prompt: Sequence[int], max_tokens: int) -> Request:
        """A request with this prompt waits."""
        self._num_requests += 1
        id = RequestId(b"%018d" % self._num_requests)
        hashes = chain(prompt, self.model.block_size)
        request = Request(id, TOKENIZER, SamplingParams(max_tokens), array("i", prompt), hashes)
        request.arrival = self._num_requests
        self.planner.add(request)
        return request

    def plan(self) -> Step | None:
        """Plan a step and send it."""
        step = self.planner.plan()
        if step is not None:
            self.steps.append(step)
        self.planner.check()
        return step

    def settle(self) -> list[Request]:
        """Run the oldest step; those that end with it are finished."""
        ended = self.planner.commit(self._engine.run(self.steps.popleft()))
        for request in ended:
            self.planner.finish(request)
        self.planner.after_commit()
        self.planner.check()
        return ended

    def turn(self) -> Step | None:
        """One step, planned and settled."""
        step = self.plan()
        if self.steps:
            self.settle()
        return step

    def run_all(self) -> None:
        """Until nothing is left to do."""
        for _ in range(10_000):
            if self.plan() is None and not self.steps:
                return
            self.settle()
        raise AssertionError("it does not end")


def is_right(request: Request) -> bool:
    """Whether a finished request has all its tokens."""
    prompt = request.token_ids[: request.num_prompt].tolist()
    completion = request.token_ids[request.num_prompt :].tolist()
    return completion == expected_tokens(prompt, request.params.max_tokens, VOCAB)


def tokens_of(step: Step | None) -> int:
    """Tokens of all chunks of a step."""
    return 0 if step is None else sum(unpack(step.chunk_lengths))


class SchedulerRig:
    """A scheduler, and all that its peers hear, by receiver; time passes only when told."""

    def __init__(self, model: ModelInfo | None = None, max_queued: int = 100, has_executor: bool = True) -> None:
        self.model = model or make_model()
        self.scheduler = Scheduler(b"8 bytes!", max_queued)
        self.now = 0.0
        self.steps: deque[Step] = deque()
        self.sent: list[tuple[Address, Message]] = []
        """Everything to tokenizers, oldest first."""
        self.to_executor: list[tuple[Address, Message]] = []
        self._engine = SimEngine(self.model, step_ms=0)
        self._executor = EXECUTOR
        self._num_requests = 0
        if has_executor:
            self.connect_executor()

    def connect_executor(self, address: Address = EXECUTOR, model: ModelInfo | None = None) -> None:
        """An executor greets; what was sent to the one before is lost with it."""
        self.steps.clear()
        self._executor = address
        self.step(Inbox(from_executor=[(address, ExecutorReady(b"", model or self.model))]))

    def step(self, inbox: Inbox | None = None) -> Outbox:
        """The scheduler takes in messages; what it says is noted."""
        outbox = self.scheduler.step(self.now, inbox or Inbox())
        self.sent += outbox.to_tokenizers
        self.to_executor += outbox.to_executor
        for _, message in outbox.to_executor:
            if isinstance(message, Reset):
                self.steps.clear()
                self._engine.reset()
            elif isinstance(message, Step):
                self.steps.append(message)
        if self.scheduler.planner is not None:
            self.scheduler.planner.check()
        return outbox

    def hear(self, message: Message, address: Address = TOKENIZER) -> Outbox:
        return self.step(Inbox(from_tokenizers=[(address, message)]))

    def enqueue(
        self,
        prompt: Sequence[int],
        max_tokens: int,
        stops: tuple[int, ...] = (),
        address: Address = TOKENIZER,
    ) -> Enqueue:
        """A new request comes in a message of its own."""
        request = self.make_enqueue(prompt, max_tokens, stops)
        self.hear(request, address)
        return request

    def make_enqueue(self, prompt: Sequence[int], max_tokens: int, stops: tuple[int, ...] = ()) -> Enqueue:
        self._num_requests += 1
        id = RequestId(b"%018d" % self._num_requests)
        hashes = chain(prompt, self.model.block_size)
        return Enqueue(id, pack(prompt), SamplingParams(max_tokens, stop_token_ids=stops), hashes)

    def cancel(self, request: Enqueue, address: Address = TOKENIZER) -> None:
        self.hear(Cancel([request.id]), address)

    def run_step(self) -> StepResult:
        """The executor runs its oldest step, without a word so far."""
        return self._engine.run(self.steps.popleft())

    def settle(self) -> None:
        """The oldest step is run and settled."""
        self.step(Inbox(from_executor=[(self._executor, self.run_step())]))

    def run_all(self) -> None:
        """Until no step is in flight."""
        for _ in range(10_000):
            if not self.steps:
                return
            self.settle()
        raise AssertionError("it does not end")

    def pass_time(self, seconds: float, *alive: Address) -> None:
        """Time passes; these tokenizers are heard all the while."""
        end = self.now + seconds
        while self.now < end:
            self.now = min(end, self.now + 0.5)
            self.step(Inbox(from_tokenizers=[(address, Cancel([])) for address in alive]))

    # What tokenizers heard

    def received(self, request: Enqueue, address: Address = TOKENIZER, num_known: int = 0) -> list[int]:
        """The completion as one tokenizer has it, behind the tokens that it knew. No gap, no repetition."""
        tokens: list[int] = []
        for to, message in self.sent:
            if to == address and isinstance(message, Tokens):
                for start, new in _entries(message, request.id):
                    assert start == num_known + len(tokens), f"{start} came after {num_known + len(tokens)}"
                    tokens += new
        return tokens

    def reasons(self, request: Enqueue, address: Address = TOKENIZER) -> list[str]:
        """Every finish reason that a tokenizer was told for a request: one, or none so far."""
        return [
            message.finished[row]
            for to, message in self.sent
            if to == address and isinstance(message, Tokens)
            for row, id in enumerate(message.ids)
            if id == request.id and row in message.finished
        ]

    def refusals(self, address: Address = TOKENIZER) -> list[ErrorInfo]:
        return [message.error for to, message in self.sent if to == address and isinstance(message, Refused)]

    def is_empty(self) -> bool:
        """Nothing waits or runs, and all blocks are back."""
        stats = self.scheduler.stats()
        return (stats.num_running, stats.num_waiting, stats.num_blocks_used) == (0, 0, 0)


def _entries(message: Tokens, id: RequestId) -> list[tuple[int, list[int]]]:
    starts, tokens = unpack(message.starts).tolist(), unpack(message.token_ids).tolist()
    counts = unpack(message.counts).tolist() if message.counts else [1] * len(starts)
    entries, place = [], 0
    for each, start, count in zip(message.ids, starts, counts, strict=True):
        if each == id:
            entries.append((start, tokens[place : place + count]))
        place += count
    return entries


def completion(request: Enqueue) -> list[int]:
    """What a request must be answered with."""
    params = request.params
    return expected_tokens(unpack(request.prompt_ids), params.max_tokens, VOCAB, params.stop_token_ids)
