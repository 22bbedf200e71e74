"""Offline throughput of scheduler and executor, joined as in `octavo serve`: all requests of a workload at once.

    python -m benchmarks.throughput --workload single mixed -- MODEL --device cuda --load-format dummy

What follows -- are flags of `octavo serve`. Greedy, the end of a sequence is ignored. One JSON line a trial, with the
time from the first request's sending to the last one's last token. Trials share no prefix cache.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from benchmarks.workloads import WORKLOADS, Workload

from octavo.shared.messages import (
    TO_TOKENIZER_FROM_SCHEDULER,
    CallId,
    Enqueue,
    Heartbeat,
    Join,
    Message,
    ModelInfo,
    Ready,
    Refused,
    Tokens,
    pack,
    request_id,
)
from octavo.shared.prefix_hash import hash_blocks, root_hash
from octavo.shared.sampling import SamplingParams
from octavo.shared.transport import HEARTBEAT_S, Link, new_context, scheduler_endpoint, wait

START_TIMEOUT_S = 600.0


class Client:
    """Speaks to the scheduler as a tokenizer does."""

    def __init__(self, folder: Path) -> None:
        self._link: Link[Message] = Link(new_context(), scheduler_endpoint(folder), TO_TOKENIZER_FROM_SCHEDULER)
        self._boot = os.urandom(8)
        self._num_calls = 0
        self._beat_at = 0.0

    def wait_ready(self, processes: list["subprocess.Popen[bytes]"]) -> ModelInfo:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if any(process.poll() is not None for process in processes):
                sys.exit("a service ended before it was ready")
            self._link.send(Join(self._boot))
            for message in self._receive(0.2):
                if isinstance(message, Ready):
                    return message.model
        sys.exit(f"not ready after {START_TIMEOUT_S:.0f} s")

    def run(self, workload: Workload, model: ModelInfo, salt: bytes) -> tuple[float, list[float]]:
        """Seconds in all, and the times of each step's tokens."""
        open_ids, times = set(), []
        began = time.perf_counter()
        for prompt, num_tokens in workload:
            self._num_calls += 1
            id = request_id(CallId(self._num_calls.to_bytes(16, "little")), 0)
            open_ids.add(id)
            packed = pack(prompt)
            params = SamplingParams(max_tokens=num_tokens, temperature=0.0)
            hashes = root_hash(salt) + hash_blocks(packed, model.block_size, salt)
            if not self._link.send(Enqueue(id, packed, params, hashes)):
                sys.exit("the scheduler has stopped reading")
        while open_ids:
            for message in self._receive(HEARTBEAT_S):
                if isinstance(message, Refused):
                    sys.exit(f"refused: {message.error}")
                if isinstance(message, Tokens):
                    times.append(time.perf_counter() - began)
                    open_ids.difference_update(message.ids[index] for index in message.finished)
        return time.perf_counter() - began, times

    def _receive(self, timeout_s: float) -> list[Message]:
        now = time.monotonic()
        if now >= self._beat_at:
            self._beat_at = now + HEARTBEAT_S
            self._link.send(Heartbeat())
        wait([self._link], timeout_s)
        return self._link.receive()


@contextmanager
def services(flags: list[str]) -> Iterator[tuple[Path, list["subprocess.Popen[bytes]"]]]:
    """A scheduler and an executor in a folder of their own."""
    with tempfile.TemporaryDirectory(prefix="octavo-") as folder:
        processes = [
            subprocess.Popen([sys.executable, "-P", "-m", f"octavo.services.{role}", "--runtime-dir", folder, *flags])
            for role in ("executor", "scheduler")
        ]
        try:
            yield Path(folder), processes
        finally:
            for process in processes:
                process.terminate()
            for process in processes:
                process.wait(20)


def main() -> None:
    parser = argparse.ArgumentParser(description="Measure the offline throughput of scheduler and executor.")
    parser.add_argument("--workload", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--trials", type=int, default=2)
    parser.add_argument("--out", type=Path, help="file that the JSON lines are added to")
    parser.add_argument("flags", nargs="*", help="behind --: the model, and flags of octavo serve")
    options = parser.parse_args()
    began = time.perf_counter()
    with services(options.flags) as (folder, processes):
        client = Client(folder)
        model = client.wait_ready(processes)
        lines = [{"engine": "octavo", "event": "started", "seconds": round(time.perf_counter() - began, 1)}]
        _print(lines[-1], options.out)
        client.run([(list(range(10, 100)), 8)], model, b"warm-up")
        for name in options.workload:
            workload = WORKLOADS[name]()
            num_in, num_out = sum(len(prompt) for prompt, _ in workload), sum(count for _, count in workload)
            for trial in range(options.trials):
                seconds, times = client.run(workload, model, f"{name} {trial}".encode())
                gaps = sorted(later - earlier for earlier, later in zip(times, times[1:], strict=False)) or [0.0]
                _print(
                    {
                        "engine": "octavo", "model": options.flags[0], "workload": name, "trial": trial,
                        "seconds": round(seconds, 3), "input_tokens": num_in, "output_tokens": num_out,
                        "output_tok_s": round(num_out / seconds, 1),
                        "total_tok_s": round((num_in + num_out) / seconds, 1), "first_s": round(times[0], 4),
                        "gap_ms": {f"p{q}": round(1e3 * gaps[len(gaps) * q // 100], 3) for q in (10, 50, 90, 99)},
                    },
                    options.out,
                )  # fmt: skip


def _print(line: dict[str, object], out: Path | None) -> None:
    print(json.dumps(line), flush=True)
    if out is not None:
        with out.open("a") as lines:
            lines.write(json.dumps(line) + "\n")


if __name__ == "__main__":
    main()
