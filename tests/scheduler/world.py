"""A whole serving pipeline in one process, driven by a seed: tokenizers, scheduler, simulated executor.

Everything that a network or an operating system may do is a dice roll: results come late, processes die and
come back under new addresses, messages are sent twice, clients go away.
"""

import random
from collections import deque
from dataclasses import dataclass, field

from octavo.services.executor.sim import SimEngine
from octavo.services.scheduler.core import SHORT_STEPS_AHEAD, STEPS_AHEAD, Inbox, Outbox, Scheduler
from octavo.shared.messages import (
    Cancel,
    Enqueue,
    ExecutorReady,
    Heartbeat,
    Join,
    Message,
    ModelInfo,
    Ready,
    Refused,
    RequestId,
    Reset,
    Step,
    StepFailed,
    StepResult,
    Tokens,
    pack,
    unpack,
)
from octavo.shared.oracle import expected_tokens
from octavo.shared.prefix_hash import hash_blocks, root_hash
from octavo.shared.sampling import SamplingParams
from octavo.shared.transport import Address

SALT = b"tenant"
SETTLING_TICKS = 5_000  # after the last fault; far more than the longest schedule needs


@dataclass
class Client:
    """One request as its tokenizer and its gateway see it."""

    request: Enqueue
    prompt: list[int]
    route: Address
    received: list[int] = field(default_factory=list)
    reason: str | None = None

    def take(self, start: int, tokens: list[int], reason: str | None) -> None:
        """New tokens. They may overlap with known ones, but must agree with them and leave no gap."""
        known = len(self.received)
        assert self.reason is None or start + len(tokens) <= known, "tokens came after the end"
        assert start <= known, f"tokens {known} to {start} are missing"
        assert self.received[start : start + len(tokens)] == tokens[: known - start], (
            "tokens differ from the first time"
        )
        self.received += tokens[known - start :]
        self.reason = self.reason or reason


class Executor:
    """A process that runs steps in order, as late as the dice want."""

    def __init__(self, address: Address, info: ModelInfo) -> None:
        self.address = address
        self.steps: deque[Step] = deque()
        self._most_steps = SHORT_STEPS_AHEAD if info.device == "cuda" else STEPS_AHEAD
        self._engine = SimEngine(info, step_ms=0)
        self._epoch = -1

    def hear(self, message: Message) -> None:
        if isinstance(message, Reset):
            self._epoch = message.epoch
            self.steps.clear()
            self._engine.reset()
        elif isinstance(message, Step) and message.epoch == self._epoch:
            self.steps.append(message)
            assert len(self.steps) <= self._most_steps

    def run(self) -> StepResult:
        return self._engine.run(self.steps.popleft())


class Ledger:
    """What the slots' blocks hold once all planned steps have run, told from the steps alone."""

    def __init__(self) -> None:
        self._held: dict[int, list[int]] = {}  # slot -> blocks, tokens known or computed, tokens left to compute

    def apply(self, step: Step) -> None:
        decoding = [slot for slot, (_, _, left) in self._held.items() if left == 0]
        for slot in unpack(step.released):
            decoding = [each for each in decoding if each != slot]
            self._held[slot][2] = -1  # it stays as it is
        for new in step.new:
            known = len(unpack(new.token_ids))
            self._held[new.slot] = [len(unpack(new.blocks)), known, known - new.num_computed]
        for slot in unpack(step.grown_slots):
            self._held[slot][0] += 1
        for slot in decoding:
            self._held[slot][1] += 1
        for slot, length in zip(unpack(step.chunk_slots), unpack(step.chunk_lengths), strict=True):
            self._held[slot][2] -= length

    def num_unfilled(self, slots: list[int], block_size: int) -> int:
        """Positions of these slots' blocks without a token."""
        return sum(self._held[slot][0] * block_size - self._held[slot][1] for slot in slots)


class World:
    """Turns of the whole system; `turn` moves each part on by a random amount."""

    def __init__(self, seed: int, num_clients: int, fault_rate: float) -> None:
        self.random = random.Random(seed)
        self.fault_rate = fault_rate
        self.now = 0.0
        self.info = self._make_model()
        self.clients: dict[RequestId, Client] = {}
        self.num_to_come = num_clients
        self.num_faults = dict.fromkeys(("executor", "tokenizer", "scheduler", "cancel", "again"), 0)
        self._num_addresses = 0
        self._is_caching = self.random.random() < 0.8
        self._is_optimistic = self.random.random() < 0.6
        """Completions are always taken for short, so that too many are admitted and some are preempted."""
        self._prefixes = [self._some_tokens(self.info.max_model_len) for _ in range(3)]
        self._inbox = Inbox([], [], [])
        self._homeless: list[Client] = []
        self._ledger = Ledger()
        self._start_scheduler()
        self._start_executor()
        self.tokenizers = [self._new_tokenizer() for _ in range(self.random.randint(1, 3))]

    def turn(self, may_fail: bool) -> None:
        """Some time passes."""
        # On what passes for a GPU steps are so short that one more of them is sent ahead.
        self.now += self.random.choice((0.0, 0.01, 0.3, 0.6)) * (0.003 if self.info.device == "cuda" else 1.0)
        if may_fail and self.random.random() < self.fault_rate:
            fail = self.random.choice(
                (
                    self._fail_executor,
                    self._fail_tokenizer,
                    self._restart_scheduler,
                    self._cancel,
                    self._send_again,
                )
            )
            fail()
        if self.num_to_come and self.random.random() < 0.7:
            self._arrive()
        if self.random.random() < 0.5:
            self._bring_home()
        for address in self.tokenizers:
            self._say(address, Heartbeat())
        for _ in range(self.random.choice((0, 1, 1, 2))):
            if self.executor.steps:
                self._inbox.from_executor.append((self.executor.address, self.executor.run()))
        if self._is_optimistic and self.scheduler.planner is not None:
            self.scheduler.planner.typical_output = 0.0
        inbox, self._inbox = self._inbox, Inbox([], [], [])
        self._deliver(self.scheduler.step(self.now, inbox))
        if self.scheduler.planner is not None:
            self.scheduler.planner.check()
            self._check_waste()

    def _check_waste(self) -> None:
        """The metric is what the steps sent to the executor add up to."""
        planner, stats = self.scheduler.planner, self.scheduler.stats()
        assert planner is not None
        slots = [request.slot for request in planner.running]
        assert stats.num_unfilled == self._ledger.num_unfilled(slots, self.info.block_size)
        assert stats.num_positions == len({block for each in planner.running for block in each.blocks}) * (
            self.info.block_size
        )
        assert stats.num_unfilled < max(1, len(slots)) * self.info.block_size

    def finish(self) -> None:
        """Without more faults, everything comes to its end, and nothing is left behind."""
        for _ in range(SETTLING_TICKS):
            if self.is_done:
                break
            self.turn(may_fail=False)
        assert self.is_done, [(len(each.received), each.request.params) for each in self.clients.values()]
        self._let_orphans_expire()
        planner = self.scheduler.planner
        assert planner is not None
        assert planner.pool.num_held == 0 and not planner.running and not planner.waiting
        assert planner.num_in_flight == 0 and self.scheduler.stats().num_waiting == 0

    @property
    def is_done(self) -> bool:
        return not self.num_to_come and all(each.reason is not None for each in self.clients.values())

    def check_tokens(self) -> None:
        """Every stream is what the oracle says."""
        for client in self.clients.values():
            params = client.request.params
            room = self.info.max_model_len - len(client.prompt)
            expected = expected_tokens(
                client.prompt, min(params.max_tokens, room), self.info.vocab_size, params.stop_token_ids
            )
            assert client.received == expected
            assert client.reason == ("stop" if expected[-1] in params.stop_token_ids else "length")

    def _make_model(self) -> ModelInfo:
        choose = self.random
        block_size, num_blocks = choose.choice((1, 2, 4, 8)), choose.randint(3, 30)
        room = block_size * num_blocks
        return ModelInfo(
            vocab_size=choose.choice((4, 30, 1000)), max_model_len=choose.randint(room // 2 + 1, room),
            block_size=block_size, num_blocks=num_blocks, num_slots=choose.randint(1, 8),
            max_num_batched_tokens=choose.randint(1, 40), device=choose.choice(("sim", "cuda")),
            dtype="none",
        )  # fmt: skip

    def _some_tokens(self, count: int) -> list[int]:
        return [self.random.randrange(self.info.vocab_size) for _ in range(count)]

    def _new_address(self, kind: bytes) -> Address:
        self._num_addresses += 1
        return Address(kind + b"%d" % self._num_addresses)

    def _say(self, address: Address, message: Message) -> None:
        self._inbox.from_tokenizers.append((address, message))

    # What happens

    def _arrive(self) -> None:
        """One prompt with one or a few choices."""
        limit = self.info.max_model_len
        length = self.random.randint(1, max(1, limit - 1))
        shared = self.random.randint(0, length)
        prompt = self.random.choice(self._prefixes)[:shared] + self._some_tokens(length - shared)
        stops = tuple(self._some_tokens(self.random.choice((0, 0, 1))))
        params = SamplingParams(self.random.randint(1, limit), stop_token_ids=stops)
        packed = pack(prompt)
        hashes = root_hash(SALT) + hash_blocks(packed, self.info.block_size, SALT)
        for _ in range(min(self.num_to_come, self.random.choice((1, 1, 1, 2, 4)))):
            id = RequestId(self.num_to_come.to_bytes(18, "little"))
            self.num_to_come -= 1
            route = self.random.choice(self.tokenizers)
            client = self.clients[id] = Client(Enqueue(id, packed, params, hashes), prompt, route)
            self._enqueue(client)

    def _enqueue(self, client: Client) -> None:
        request = client.request
        again = Enqueue(request.id, request.prompt_ids, request.params, request.block_hashes, pack(client.received))
        self._say(client.route, again)

    def _bring_home(self) -> None:
        """The gateway sends the calls of a dead tokenizer to others. It knows of no more than it was sent."""
        for client in self._homeless:
            if client.request.id in self.clients and client.reason is None:
                del client.received[self.random.randint(0, len(client.received)) :]
                client.route = self.random.choice(self.tokenizers)
                self._enqueue(client)
        self._homeless = []

    def _deliver(self, outbox: Outbox) -> None:
        for to, message in outbox.to_executor:
            if isinstance(message, Reset):
                self._ledger = Ledger()
            elif isinstance(message, Step):
                self._ledger.apply(message)
            if to == self.executor.address:
                self.executor.hear(message)
            else:
                self._inbox.lost.append(to)
        for to, message in outbox.to_tokenizers:
            if to not in self.tokenizers:
                self._inbox.lost.append(to)
            elif isinstance(message, Tokens):
                self._take_tokens(to, message)
            elif isinstance(message, Refused):
                assert message.error.status == 429, message.error
                self.clients.pop(message.id, None)
            elif isinstance(message, Ready) and message.boot != self._heard_boots.get(to):
                self._heard_boots[to] = message.boot
                for client in self.clients.values():
                    if client.route == to and client.reason is None:
                        self._enqueue(client)

    def _take_tokens(self, to: Address, message: Tokens) -> None:
        starts, tokens = unpack(message.starts).tolist(), unpack(message.token_ids).tolist()
        counts = unpack(message.counts).tolist() if message.counts else [1] * len(starts)
        assert sum(counts) == len(tokens)
        for row, (id, start, count) in enumerate(zip(message.ids, starts, counts, strict=True)):
            taken, tokens = tokens[:count], tokens[count:]
            client = self.clients.get(id)
            if client is not None and client.route == to:
                client.take(start, taken, message.finished.get(row))

    # What goes wrong

    def _start_scheduler(self) -> None:
        self._heard_boots: dict[Address, bytes] = {}
        boot = self.random.randbytes(8)
        self.scheduler = Scheduler(boot, max_queued_requests=20, is_caching=self._is_caching)

    def _start_executor(self) -> None:
        self.executor = Executor(self._new_address(b"e"), self.info)
        self._inbox.from_executor.append((self.executor.address, ExecutorReady(b"", self.info)))

    def _new_tokenizer(self) -> Address:
        address = self._new_address(b"t")
        self._say(address, Join(b""))
        return address

    def _fail_executor(self) -> None:
        """It dies with or without last words; or it is alive, and merely greets once more."""
        self.num_faults["executor"] += 1
        old, kind = self.executor, self.random.randrange(4)
        if kind == 0:
            self._inbox.from_executor.append((old.address, StepFailed(0, 0, "broken")))
        elif kind == 1:
            self._inbox.lost.append(old.address)
        elif kind == 2:
            self._inbox.from_executor.append((old.address, ExecutorReady(b"", self.info)))
            return
        late = old.run() if old.steps and self.random.random() < 0.5 else None
        self._start_executor()
        if late is not None:
            self._inbox.from_executor.append((old.address, late))

    def _fail_tokenizer(self) -> None:
        self.num_faults["tokenizer"] += 1
        place = self.random.randrange(len(self.tokenizers))
        dead, self.tokenizers[place] = self.tokenizers[place], self._new_tokenizer()
        self._inbox.from_tokenizers[:] = [each for each in self._inbox.from_tokenizers if each[0] != dead]
        self._homeless += [client for client in self.clients.values() if client.route == dead]

    def _restart_scheduler(self) -> None:
        self.num_faults["scheduler"] += 1
        self._inbox = Inbox([], [], [])
        self._start_scheduler()
        self._inbox.from_executor.append((self.executor.address, ExecutorReady(b"", self.info)))

    def _cancel(self) -> None:
        if self.clients:
            self.num_faults["cancel"] += 1
            client = self.clients.pop(self.random.choice(list(self.clients)))
            self._say(client.route, Cancel([client.request.id]))

    def _send_again(self) -> None:
        """A tokenizer is not sure that its request came."""
        if self.clients:
            self.num_faults["again"] += 1
            client = self.clients[self.random.choice(list(self.clients))]
            if client.reason is None:
                self._enqueue(client)

    def _let_orphans_expire(self) -> None:
        """Cancels that were lost with their tokenizer leave orphans: time passes until they are given up."""
        for _ in range(12):
            self.now += 4.0
            self.turn(may_fail=False)
