"""The planner: which requests run, in which blocks, and what each step computes.

Steps are planned ahead of their results. While nothing changes, a step costs nothing here: every event of a
decoding request (it needs a block, or it reaches its length before that) is known a block ahead, and is filed
under the number of the step in which it happens. The executor runs steps in order, which is why blocks may be
given to others, and prompts' blocks be shared, as soon as the step that last wrote them is planned.
"""

from bisect import insort
from collections import defaultdict, deque
from collections.abc import Callable, Iterator

import msgspec

from octavo.services.scheduler.blocks import BlockPool
from octavo.services.scheduler.policy import LOOKAHEAD, MAX_OVERTAKEN, FuturePeak, expected_output, victim
from octavo.services.scheduler.request import Request, State
from octavo.shared.messages import ModelInfo, NewRequest, Step, StepResult, pack, unpack

_Filed = defaultdict[int, list[tuple[Request, int]]]
"""Step number -> requests to which something happens in it, each with its run at the time of filing."""

TYPICAL_AT_FIRST = 256.0  # tokens of a completion, before any has finished
TYPICAL_WEIGHT = 0.05  # of each finished completion in the running mean


class Planner:
    """Plans steps and settles their results. Knows no sockets and no clock."""

    def __init__(self, model: ModelInfo, epoch: int, is_caching: bool = True) -> None:
        room = model.num_blocks * model.block_size
        assert model.max_model_len <= room, f"{model.max_model_len} tokens would never fit in {room}"
        self.model = model
        self.epoch = epoch
        self.pool = BlockPool(model.num_blocks, is_caching)
        self.waiting: deque[Request] = deque()
        """Those that have run before come first, then by priority, then by arrival."""
        self.running: dict[Request, None] = {}
        """Filling, decoding and draining requests, oldest admission first."""
        self.number = 0
        """Of the last planned step."""
        self.num_settled = 0
        """Of the last settled step."""
        self.num_decoding = 0
        self.num_preemptions = 0
        self.prefix_queries = 0
        self.prefix_hits = 0
        self.num_unfilled = 0
        """Positions of held blocks that no known token is for: in the last block of each running request."""
        self.roster = 0
        """Grows whenever a row of the batch may belong to another request, or to none."""
        self.by_slot: list[Request | None] = [None] * model.num_slots
        self.append_of: list[Callable[[int], None]] = [_discard] * model.num_slots
        """Commits a token of the slot's request."""
        self.typical_output = TYPICAL_AT_FIRST
        self._free_slots = list(range(model.num_slots - 1, -1, -1))
        self._filling: deque[Request] = deque()
        self._released: list[int] = []
        self._expected_blocks = 0
        self._grow_at: _Filed = defaultdict(list)
        self._ends_at: _Filed = defaultdict(list)
        self._num_rows_at: dict[int, int] = {}
        self._slots_free_at: defaultdict[int, list[int]] = defaultdict(list)
        self._preempted: list[Request] = []
        self._peak: FuturePeak | None = None
        self._admission_is_futile = False

    @property
    def num_in_flight(self) -> int:
        return self.number - self.num_settled

    def add(self, request: Request) -> None:
        """Let a request wait for its turn."""
        request.max_output = min(request.params.max_tokens, self.model.max_model_len - request.num_prompt)
        insort(self.waiting, request, key=lambda each: (not each.is_resumed, each.priority, each.arrival))
        if request.is_resumed or len(self.waiting) <= LOOKAHEAD:
            self._admission_is_futile = False

    def plan(self, most_chunk_tokens: Callable[[int], int | None] = lambda _: None) -> Step | None:
        """The next step, or None if there is nothing to compute.

        most_chunk_tokens: says how many prompt tokens it may take beside so many requests that decode; None: no limit.
        """
        number = self.number + 1
        self._retire(number)
        grown_slots, grown_blocks = self._grow(number)
        self.num_unfilled += len(grown_blocks) * self.model.block_size - self.num_decoding
        budget = self.model.max_num_batched_tokens - self.num_decoding
        most = most_chunk_tokens(self.num_decoding)
        budget = budget if most is None else min(budget, most)
        chunks = [(request, length) for request, length in self._take_chunks(budget)]
        budget -= sum(length for _, length in chunks)
        new = []
        if self.waiting and not self._admission_is_futile:
            for request in self._admit(budget):
                num_cached = request.num_planned
                length = min(budget, len(request.token_ids) - num_cached)
                new.append(_new_request(request, num_cached))
                self._advance(request, length)
                chunks.append((request, length))
                budget -= length
        if not self.num_decoding and not chunks:
            assert not grown_slots
            return None
        self.number = number
        for request, _ in chunks:
            self._begin_decoding(request, number)
        self._num_rows_at[number] = self.num_decoding
        step = Step(
            self.epoch, number, pack(self._released), new, pack(grown_slots), pack(grown_blocks),
            pack([request.slot for request, _ in chunks]), pack([length for _, length in chunks]),
        )  # fmt: skip
        self._released = []
        return step

    def commit(self, result: StepResult) -> list[Request]:
        """Append a result's tokens to their requests; returns those that end with them, in no order.

        They are not finished yet: the caller says what it must of them, then calls `finish`.
        """
        assert result.number == self.num_settled + 1, f"step {result.number} came after {self.num_settled}"
        slots, tokens = unpack(result.slots), unpack(result.token_ids)
        num_rows = self._num_rows_at.pop(result.number)
        assert len(slots) == num_rows, f"step {result.number} has {len(slots)} tokens, not {num_rows}"
        append_of = self.append_of
        for slot, token in zip(slots, tokens, strict=True):
            append_of[slot](token)
        for slot in result.logprobs.keys() | result.prompt_logprobs.keys():
            owner = self.by_slot[slot]
            if owner is not None and append_of[slot] is not _discard:
                owner.note_logprobs(result.logprobs.get(slot), result.prompt_logprobs.get(slot))
        self.num_settled = number = result.number
        ended = [request for request, run in self._ends_at.pop(number, ()) if request.run == run]
        for request in ended:
            request.finish_reason = "length"
        return ended

    def after_commit(self) -> None:
        """Give back slots that no step in flight refers to; let preempted requests wait again."""
        for slot in self._slots_free_at.pop(self.num_settled, ()):
            self._free_slot(slot)
        for request in [each for each in self._preempted if each.last_step <= self.num_settled]:
            self._preempted.remove(request)
            request.go_back()
            self.add(request)

    def finish(self, request: Request) -> None:
        """The request ends, wherever it stands. Its tokens in flight are dropped."""
        if request.state is State.FINISHED:
            return
        if request.state is State.WAITING:
            self.waiting.remove(request)
            self._admission_is_futile = False
        elif request in self._preempted:
            self._preempted.remove(request)
            self.roster += 1
        else:
            self.typical_output += TYPICAL_WEIGHT * (request.num_output - self.typical_output)
            self._leave(request)
        if request.slot >= 0 and self.by_slot[request.slot] is request:
            self.append_of[request.slot] = _discard
        request.state = State.FINISHED

    def rows_of(self, slots: bytes) -> list[Request | None]:
        """The requests that own these packed slots; None for finished ones."""
        owners = (self.by_slot[slot] for slot in unpack(slots))
        return [None if each is None or each.state is State.FINISHED else each for each in owners]

    def stop(self) -> None:
        """The executor is gone: who is running waits again, with nothing but the tokens committed so far."""
        for request in [*self.running, *self._preempted]:
            request.go_back()

    def check(self) -> None:
        """Raise AssertionError if blocks or slots are lost or doubled, or an event is filed too early."""
        self.pool.check([request.blocks for request in self.running])
        quarantined = [slot for slots in self._slots_free_at.values() for slot in slots]
        used = [request.slot for request in self.running if request.slot not in quarantined]
        slots = sorted([*self._free_slots, *quarantined, *used])
        assert slots == list(range(self.model.num_slots)), "slots are lost or doubled"
        furthest = max([*self._grow_at, *self._ends_at], default=0)
        assert furthest <= self.number + self.model.block_size + 1, f"an event is filed under step {furthest}"

    def _retire(self, number: int) -> None:
        """Release the slots of those that had their last row in the step before, whose result is to come."""
        for request, run in self._ends_at.get(number - 1, ()):
            if request.run == run and request.state is State.DECODING:
                self._stop_decoding(request)
                request.state = State.DRAINING

    def _grow(self, number: int) -> tuple[list[int], list[int]]:
        """Give a block to each request that needs one in this step; returns their slots and the blocks."""
        growing = [request for request, run in self._grow_at.pop(number, ()) if request.run == run]
        for request in growing:
            self._publish(request, request.num_planned_at(number - 1))
        while len(growing) > self.pool.num_available:
            self._preempt(victim(each for each in self.running if each.state is not State.DRAINING))
            growing = [request for request in growing if request.state is State.DECODING]
        blocks = self.pool.take(len(growing))
        next_growth = number + self.model.block_size
        for request, block in zip(growing, blocks, strict=True):
            request.blocks.append(block)
            self._file(request, next_growth)
        return [request.slot for request in growing], blocks

    def _take_chunks(self, budget: int) -> Iterator[tuple[Request, int]]:
        """The next pieces of requests that were admitted in earlier steps."""
        for request in list(self._filling):
            if budget <= 0:
                return
            length = min(budget, len(request.token_ids) - request.num_planned)
            self._advance(request, length)
            budget -= length
            yield request, length

    def _advance(self, request: Request, length: int) -> None:
        request.num_planned += length
        self._publish(request, request.num_planned)

    def _admit(self, budget: int) -> Iterator[Request]:
        """Requests that begin now. The consumer takes the chunk of each before it asks for the next."""
        passed: list[Request] = []
        index, self._peak = 0, None
        while index < min(len(self.waiting), LOOKAHEAD) and self._free_slots and budget > 0:
            request = self.waiting[index]
            # One token at least is computed: its logits are wanted.
            num_shareable = (len(request.token_ids) - 1) // self.model.block_size
            if request.lacks_prompt_logprobs:
                num_shareable = 0
            shared = self.pool.find(request.block_hashes[:num_shareable])
            if not self._fits(request, shared):
                passed.append(request)
                index += 1
                if request.num_overtaken >= MAX_OVERTAKEN:
                    self._admission_is_futile = True
                    return
                continue
            del self.waiting[index]
            for each in passed:
                each.num_overtaken += 1
            self._place(request, shared)
            budget -= len(request.token_ids) - request.num_planned
            yield request
        self._admission_is_futile = bool(passed) and index >= min(len(self.waiting), LOOKAHEAD)

    def _fits(self, request: Request, shared: list[int]) -> bool:
        """Whether there are blocks for it to begin, and for all to end, as far as one can tell."""
        block_size = self.model.block_size
        num_own = -(-len(request.token_ids) // block_size) - len(shared)
        num_new = num_own + self.pool.num_cached(shared)
        if num_new > self.pool.num_available:
            return False
        if not self.running:
            return True
        rest = expected_output(request, self.typical_output, block_size)
        expected = -(-(len(request.token_ids) + rest) // block_size)
        if self._expected_blocks + expected <= self.pool.num_blocks:
            return True
        if self._peak is None:
            self._peak = FuturePeak(self._now_and_rest(each) for each in self.running)
        common = max(0, self.pool.num_held * block_size - self._peak.num_held)
        return common + self._peak.with_one(num_new * block_size, rest) <= self.pool.num_blocks * block_size

    def _now_and_rest(self, request: Request) -> tuple[int, int]:
        """Tokens of KV that a running request holds for itself, and those that it is expected to add."""
        block_size = self.model.block_size
        rest = expected_output(request, self.typical_output, block_size)
        return (len(request.blocks) - request.num_shared) * block_size, rest

    def _place(self, request: Request, shared: list[int]) -> None:
        block_size = self.model.block_size
        self.pool.share(shared)
        request.blocks = shared + self.pool.take(-(-len(request.token_ids) // block_size) - len(shared))
        request.num_shared = request.num_published = len(shared)
        request.num_planned = len(shared) * block_size
        self.num_unfilled += self._unfilled(request)
        self.prefix_queries += len(request.token_ids)
        self.prefix_hits += request.num_planned
        rest = expected_output(request, self.typical_output, block_size)
        request.expected_blocks = -(-(len(request.token_ids) + rest) // block_size)
        self._expected_blocks += request.expected_blocks
        request.slot = slot = self._free_slots.pop()
        self.by_slot[slot] = request
        self.append_of[slot] = request.token_ids.append
        request.state = State.FILLING
        request.run += 1
        self.running[request] = None
        if self._peak is not None:
            self._peak.add(*self._now_and_rest(request))
        self._filling.append(request)
        self.roster += 1

    def _begin_decoding(self, request: Request, number: int) -> None:
        """File the events of a request whose last known token is computed in step `number`."""
        known = len(request.token_ids)
        if request.num_planned < known:
            return
        self._filling.remove(request)
        request.state = State.DECODING
        request.decode_from = number
        request.last_step = number + request.num_left - 1
        self.num_decoding += 1
        self._file(request, number + 1 + -known % self.model.block_size)

    def _file(self, request: Request, next_growth: int) -> None:
        """File what happens first to a decoding request: it needs a block, or it ends."""
        if next_growth <= request.last_step:
            self._grow_at[next_growth].append((request, request.run))
        else:
            self._ends_at[request.last_step].append((request, request.run))

    def _publish(self, request: Request, num_planned: int) -> None:
        """Let others share the full blocks whose tokens are known and whose computation is planned."""
        if not self.pool.is_caching:
            return
        block_size = self.model.block_size
        full = min(len(request.token_ids), num_planned) // block_size
        while request.num_published < full:
            index = request.num_published
            self.pool.publish(request.blocks[index], request.hash_of_block(index, block_size))
            request.num_published += 1

    def _preempt(self, request: Request) -> None:
        """Take a request's blocks; it waits again once its tokens in flight have come."""
        self.num_preemptions += 1
        request.num_preemptions += 1
        self._leave(request)
        request.state = State.DRAINING
        request.last_step = self.number
        self._preempted.append(request)

    def _leave(self, request: Request) -> None:
        """Out of the running ones: blocks are given back, and nothing more is planned."""
        self.num_unfilled -= self._unfilled(request)
        if request.state is State.FILLING:
            self._filling.remove(request)
            self._release_slot(request)
        else:
            self._publish(request, request.num_planned_at(min(self.number, request.last_step)))
            if request.state is State.DECODING:
                self._stop_decoding(request)
        request.run += 1
        self.pool.release(request.blocks)
        request.blocks = []
        self._expected_blocks -= request.expected_blocks
        del self.running[request]
        self._admission_is_futile = False
        self.roster += 1

    def _unfilled(self, request: Request) -> int:
        """Positions of its blocks that are for no token known, or planned to be computed."""
        is_filling = request.state in (State.WAITING, State.FILLING)
        last = min(self.number, request.last_step)
        num_tokens = len(request.token_ids) if is_filling else request.num_planned_at(last)
        return len(request.blocks) * self.model.block_size - num_tokens

    def _stop_decoding(self, request: Request) -> None:
        self.num_decoding -= 1
        self._release_slot(request)

    def _release_slot(self, request: Request) -> None:
        """The next step tells the executor; the slot is reused once no result in flight refers to it."""
        self._released.append(request.slot)
        self.roster += 1
        if self.num_in_flight:
            self._slots_free_at[self.number].append(request.slot)
        else:
            self._free_slot(request.slot)

    def _free_slot(self, slot: int) -> None:
        self.by_slot[slot] = None
        self.append_of[slot] = _discard
        self._free_slots.append(slot)
        self._admission_is_futile = False


def _new_request(request: Request, num_cached: int) -> NewRequest:
    token_ids, blocks, params = pack(request.token_ids), pack(request.blocks), request.params
    if params.prompt_logprobs is not None and not request.lacks_prompt_logprobs:
        params = msgspec.structs.replace(params, prompt_logprobs=None)
    return NewRequest(request.slot, token_ids, num_cached, blocks, params, request.num_prompt)


def _discard(token: int) -> None:
    """Takes the place of `append` where a slot's tokens are no longer wanted."""
