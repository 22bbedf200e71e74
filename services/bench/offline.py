"""Scheduler and executor as `octavo serve` starts them, without HTTP and text; and a client that sends token ids."""

import os
import select
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from octavo.services.bench.workloads import Workload
from octavo.services.launch import Child, end_within, new_environment
from octavo.shared.config import Config, to_flags
from octavo.shared.errors import ConfigError
from octavo.shared.messages import (
    INT32_BYTES,
    TO_TOKENIZER_FROM_SCHEDULER,
    CallId,
    Enqueue,
    Heartbeat,
    Join,
    Message,
    ModelInfo,
    Ready,
    Refused,
    RequestId,
    Tokens,
    pack,
    request_id,
)
from octavo.shared.prefix_hash import hash_blocks, root_hash
from octavo.shared.sampling import SamplingParams
from octavo.shared.transport import HEARTBEAT_S, Link, new_context, scheduler_endpoint, wait

START_TIMEOUT_S = 1800.0  # weights may have to be downloaded
STOP_S = 20.0
TURN_S = 0.1


@dataclass
class Run:
    """What a workload measured; times in seconds since its first request was sent."""

    seconds: float = 0.0
    num_tokens: int = 0
    steps_s: list[float] = field(default_factory=list)
    """When each step's tokens came."""
    firsts_s: dict[RequestId, float] = field(default_factory=dict)
    """When each request's first token came."""
    lasts_s: dict[RequestId, float] = field(default_factory=dict)
    sizes: dict[RequestId, int] = field(default_factory=dict)
    """How many tokens each request asked for."""

    @property
    def gaps_s(self) -> list[float]:
        """Between steps."""
        return [later - earlier for earlier, later in zip(self.steps_s, self.steps_s[1:], strict=False)]

    @property
    def per_token_s(self) -> list[float]:
        """Each request's time from a token to the next, on average over the request."""
        return [
            (self.lasts_s[id] - first) / (self.sizes[id] - 1)
            for id, first in self.firsts_s.items()
            if self.sizes[id] > 1
        ]


class Offline:
    """Speaks to the scheduler as a tokenizer does. Greedy; the end of a sequence is ignored."""

    def __init__(self, folder: Path, children: Sequence[Child]) -> None:
        self._link: Link[Message] = Link(new_context(), scheduler_endpoint(folder), TO_TOKENIZER_FROM_SCHEDULER)
        self._children = children
        self._boot = os.urandom(8)
        self._num_calls = 0
        self._beat_at = 0.0
        began = time.monotonic()
        self.model = self._wait_ready(began + START_TIMEOUT_S)
        self.start_s = time.monotonic() - began

    def run(self, workload: Workload, salt: str) -> Run:
        """All requests at once. Runs of different salts share no prefix cache.

        Raises ConfigError when a request does not fit or is refused, or a service ends.
        """
        longest = max(len(prompt) + num_tokens for prompt, num_tokens in workload)
        if longest > self.model.max_model_len:
            raise ConfigError(
                f"a request of {longest} tokens is to be measured, prompt and completion together; the model takes "
                f"{self.model.max_model_len} (--max-model-len)"
            )
        run, num_open = Run(), len(workload)
        began = time.perf_counter()
        for prompt, num_tokens in workload:
            id = self._send(prompt, num_tokens, salt.encode())
            run.sizes[id] = num_tokens
        while num_open:
            messages = self._receive(HEARTBEAT_S)
            now = time.perf_counter() - began
            for message in messages:
                if isinstance(message, Refused):
                    raise ConfigError(f"a request was refused: {message.error.message}")
                if isinstance(message, Tokens):
                    run.steps_s.append(now)
                    run.num_tokens += len(message.token_ids) // INT32_BYTES
                    if len(run.firsts_s) < len(workload):
                        for id in message.ids:
                            run.firsts_s.setdefault(id, now)
                    run.lasts_s.update((message.ids[index], now) for index in message.finished)
                    num_open -= len(message.finished)
        run.seconds = time.perf_counter() - began
        return run

    def close(self) -> None:
        self._link.close()

    def _send(self, prompt: Sequence[int], num_tokens: int, salt: bytes) -> RequestId:
        self._num_calls += 1
        id = request_id(CallId(self._num_calls.to_bytes(16, "little")), 0)
        packed = pack(prompt)
        params = SamplingParams(max_tokens=num_tokens, temperature=0.0)
        hashes = root_hash(salt) + hash_blocks(packed, self.model.block_size, salt)
        if not self._link.send(Enqueue(id, packed, params, hashes)):
            raise ConfigError("the scheduler has stopped reading")
        return id

    def _wait_ready(self, deadline: float) -> ModelInfo:
        while time.monotonic() < deadline:
            self._link.send(Join(self._boot))
            for message in self._receive(TURN_S):
                if isinstance(message, Ready):
                    return message.model
        raise ConfigError(f"scheduler and executor were not ready after {START_TIMEOUT_S:.0f} s")

    def _receive(self, timeout_s: float) -> list[Message]:
        now = time.monotonic()
        if now >= self._beat_at:
            self._beat_at = now + HEARTBEAT_S
            self._link.send(Heartbeat())
            for child in self._children:
                _check(child)
        wait([self._link], timeout_s)
        return self._link.receive()


@contextmanager
def offline(config: Config) -> Iterator[Offline]:
    """Start both, wait until they are ready, and end them behind the block. Raises ConfigError."""
    with tempfile.TemporaryDirectory(prefix="octavo-") as folder:
        flags = to_flags(msgspec.structs.replace(config, runtime_dir=folder))
        children: list[Child] = []
        try:
            # The executor takes longest to start, so it comes first.
            for role in ("executor", "scheduler"):
                children.append(Child(role, flags, new_environment()))
            client = Offline(Path(folder), children)
            try:
                yield client
            finally:
                client.close()
        finally:
            end_within(children, STOP_S)


def _check(child: Child) -> None:
    """Raises ConfigError with the reason if the child has ended."""
    while select.select([child.output], [], [], 0)[0]:
        lines = child.read_lines()
        for line in lines or ():
            if '"failed"' in line:
                raise ConfigError(msgspec.json.decode(line)["reason"])
        if lines is None:
            raise ConfigError(f"the {child.role} process ended with code {child.process.wait()}; see the log above")
