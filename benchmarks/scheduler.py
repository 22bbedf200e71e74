"""How long the scheduler takes to plan and settle a step, without sockets and without an engine.

    python -m benchmarks.scheduler [--requests 1024] [--prompt 128] [--steps 1000] [--tokenizers 1 2 4]
                                   [--batched-tokens 8192]

All requests decode; every step's tokens are made up beforehand. Measured are, in milliseconds:

    plan     Planner.plan alone in steps in which no request enters, leaves or needs a block
    step     Scheduler.step with one result: settle it, plan the next step, build all messages
    wire     the same, and the encoding of all messages that leave and the decoding of the result that comes
    growing  `wire` of only the steps in which requests need blocks
    burst    all requests arrive at once: decode, admit, and plan what fits into the first two steps

Unless --batched-tokens is smaller than all prompts together, all requests begin in one step, and all need
blocks in the same steps; else they are spread, and some need blocks in every step.

Times are CPU time: nothing here ever waits, and other work on the machine shows less. The last line is JSON.
"""

import argparse
import json
import random
import statistics
import time
from collections import deque
from collections.abc import Sequence

import msgspec

from octavo.services.scheduler.core import Inbox, Outbox, Scheduler
from octavo.services.scheduler.planner import Planner
from octavo.shared.messages import (
    TO_SCHEDULER_FROM_EXECUTOR,
    TO_SCHEDULER_FROM_TOKENIZER,
    CallId,
    Enqueue,
    ExecutorReady,
    Message,
    ModelInfo,
    Step,
    StepResult,
    pack,
    request_id,
    unpack,
)
from octavo.shared.prefix_hash import hash_blocks, root_hash
from octavo.shared.sampling import SamplingParams
from octavo.shared.transport import Address

VOCAB = 128_000
BLOCK_SIZE = 16
EXECUTOR = Address(b"executor")

Addressed = list[tuple[Address, Message]]


class FakeExecutor:
    """Answers steps as an engine would, with random tokens."""

    def __init__(self) -> None:
        self.steps: deque[Step] = deque()
        self._left: dict[int, int] = {}
        self._decoding: dict[int, None] = {}
        self._random = random.Random(0)
        self._tokens = b""

    def result(self) -> StepResult:
        """The result of the oldest step."""
        step = self.steps.popleft()
        for slot in unpack(step.released):
            self._decoding.pop(slot, None)
        for request in step.new:
            self._left[request.slot] = len(request.token_ids) // 4 - request.num_computed
        slots = list(self._decoding)
        for slot, length in zip(unpack(step.chunk_slots), unpack(step.chunk_lengths), strict=True):
            self._left[slot] -= length
            if not self._left[slot]:
                slots.append(slot)
                self._decoding[slot] = None
        tokens = [self._random.randrange(VOCAB - 10) for _ in slots]
        return StepResult(step.epoch, step.number, pack(slots), pack(tokens))


def make_requests(count: int, prompt: int, max_tokens: int) -> list[Enqueue]:
    """Requests that share nothing and stop at a token that never comes."""
    draw = random.Random(1)
    params = SamplingParams(max_tokens, stop_token_ids=(VOCAB - 1, VOCAB - 2))
    requests = []
    for index in range(count):
        packed = pack([draw.randrange(VOCAB - 10) for _ in range(prompt)])
        hashes = root_hash(b"") + hash_blocks(packed, BLOCK_SIZE, b"")
        requests.append(Enqueue(request_id(CallId(draw.randbytes(16)), index), packed, params, hashes))
    return requests


class Bench:
    """A scheduler with its wire: everything goes through msgspec as it would through a socket."""

    def __init__(self, options: argparse.Namespace, num_tokenizers: int) -> None:
        self.routes = [Address(b"tokenizer %d" % index) for index in range(num_tokenizers)]
        length = options.prompt + options.steps + 200
        num_blocks = options.requests * (length // BLOCK_SIZE + 2)
        batched = options.batched_tokens or options.requests * options.prompt
        self.model = ModelInfo(VOCAB, length, BLOCK_SIZE, num_blocks, options.requests, batched, "sim", "none")
        self.requests = make_requests(options.requests, options.prompt, options.steps + 100)
        self.executor = FakeExecutor()
        self.scheduler = Scheduler(b"benchmark", max_queued_requests=options.requests)
        self._encoder = msgspec.msgpack.Encoder()
        self._from_tokenizer: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(TO_SCHEDULER_FROM_TOKENIZER)
        self._from_executor: msgspec.msgpack.Decoder[Message] = msgspec.msgpack.Decoder(TO_SCHEDULER_FROM_EXECUTOR)
        self.note(self.scheduler.step(0.0, Inbox(from_executor=[(EXECUTOR, ExecutorReady(b"", self.model))])))

    def note(self, outbox: Outbox) -> list[Step]:
        """Steps go to the executor; returns them."""
        steps = [message for _, message in outbox.to_executor if isinstance(message, Step)]
        self.executor.steps.extend(steps)
        return steps

    def encode(self, outbox: Outbox) -> None:
        for _, message in outbox.to_executor:
            self._encoder.encode(message)
        for _, message in outbox.to_tokenizers:
            self._encoder.encode(message)

    def burst_ms(self) -> float:
        """All requests arrive at once."""
        frames = [self._encoder.encode(request) for request in self.requests]
        began = time.thread_time()
        arrived: Addressed = [
            (self.routes[index % len(self.routes)], self._from_tokenizer.decode(frame))
            for index, frame in enumerate(frames)
        ]
        outbox = self.scheduler.step(0.0, Inbox(from_tokenizers=arrived))
        self.encode(outbox)
        took = time.thread_time() - began
        self.note(outbox)
        return took * 1000

    def fill(self) -> None:
        """Until all requests decode."""
        while self.scheduler.planner is None or self.scheduler.planner.num_decoding < len(self.requests):
            self.note(self.scheduler.step(0.0, Inbox(from_executor=[(EXECUTOR, self.executor.result())])))

    def settle(self) -> tuple[float, float, bool]:
        """One result from the wire: milliseconds without and with coding; whether anyone needed a block."""
        frame = self._encoder.encode(self.executor.result())
        began = time.thread_time()
        result = self._from_executor.decode(frame)
        decoded = time.thread_time()
        outbox = self.scheduler.step(0.0, Inbox(from_executor=[(EXECUTOR, result)]))
        stepped = time.thread_time()
        self.encode(outbox)
        done = time.thread_time()
        steps = self.note(outbox)
        return (stepped - decoded) * 1000, (done - began) * 1000, any(step.grown_slots for step in steps)


def plan_ms(planner: Planner, count: int) -> list[float]:
    """How long `plan` takes when nothing changes; leaves the planner far ahead of its results."""
    took = []
    for _ in range(count):
        began = time.thread_time()
        step = planner.plan()
        elapsed = (time.thread_time() - began) * 1000
        assert step is not None
        if not step.grown_slots:
            took.append(elapsed)
    return took


def summary(values: Sequence[float]) -> dict[str, float]:
    ordered = sorted(values) or [0.0]
    return {
        "median": round(statistics.median(ordered), 4),
        "p99": round(ordered[int(len(ordered) * 0.99)], 4),
    }


def measure(options: argparse.Namespace, num_tokenizers: int) -> dict[str, dict[str, float]]:
    """All numbers for requests of so many tokenizers."""
    bench = Bench(options, num_tokenizers)
    burst = bench.burst_ms()
    bench.fill()
    rows = [bench.settle() for _ in range(options.steps)]
    assert bench.scheduler.planner is not None
    planned = plan_ms(bench.scheduler.planner, 60)
    return {
        "plan": summary(planned),
        "step": summary([step for step, _, _ in rows]),
        "wire": summary([wire for _, wire, _ in rows]),
        "growing": summary([wire for _, wire, is_growing in rows if is_growing]),
        "burst": summary([burst]),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--requests", type=int, default=1024, help="decoding requests")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each prompt")
    parser.add_argument("--steps", type=int, default=1000, help="steps to measure")
    parser.add_argument("--batched-tokens", type=int, help="tokens that a step may compute; none: all prompts")
    parser.add_argument("--tokenizers", type=int, nargs="+", default=[1, 2, 4], help="runs with so many")
    options = parser.parse_args()
    results = {str(count): measure(options, count) for count in options.tokenizers}
    print(f"{options.requests} requests, prompts of {options.prompt}, {options.steps} steps; median (p99) in ms")
    print("tokenizers" + "".join(f"{name:>18}" for name in results[str(options.tokenizers[0])]))
    for count, numbers in results.items():
        cells = (f"{each['median']:.3f} ({each['p99']:.3f})" for each in numbers.values())
        print(f"{count:>10}" + "".join(f"{cell:>18}" for cell in cells))
    print(json.dumps({"benchmark": "scheduler", "options": vars(options), "ms": results}))


if __name__ == "__main__":
    main()
