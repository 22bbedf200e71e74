"""What a gateway and a tokenizer carry: token events a second, and the CPU that each process takes for one.

    python -m benchmarks.gateway --cores

Two loads against servers with a simulated executor that this starts itself, each with one tokenizer and with two:
`streams`, a thousand short prompts whose tokens are streamed; `text`, long prompts to encode, with one token each.
Clients are processes of their own and read nothing before all streams have ended; `client` is the share of a core that
the busiest of them took, that reading included: above 1 it is the client that was measured. --cores binds each gateway
and each tokenizer to a core of its own, as far as the machine has them. A JSON line for each load goes to --out.
"""

import argparse
import asyncio
import itertools
import json
import multiprocessing
import os
import random
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.tools.load_client import completion_body, run_streams
from tests.tools.server import Server, running

from octavo.services.bench.client import WORDS
from octavo.services.bench.records import Records

ROLES = ("gateway", "tokenizer", "scheduler", "executor")
VOCAB = 49_152  # of the default model, which the simulated executor takes over


@dataclass(frozen=True)
class Load:
    """Requests that are all sent at once."""

    name: str
    bodies: list[bytes]
    unit: str
    """What is counted: events, or prompt tokens."""


@dataclass(frozen=True)
class Report:
    """Of one client process; times by the clock that all processes of a machine share."""

    first_s: float
    last_s: float
    num_events: int
    num_prompt_tokens: int
    errors: list[str]
    core_share: float


def main() -> int:
    options = _parser().parse_args()
    num_errors = 0
    with Records(options.out, ["python", "-m", "benchmarks.gateway", *sys.argv[1:]]) as records:
        print(f"{'load':<9}{'tokenizers':>11}{'count':>10}{'a second':>10}{'client':>8}   microseconds of CPU for each")
        for name, num_tokenizers in itertools.product(options.loads, options.tokenizers):
            load = _streams(options) if name == "streams" else _text(options)
            step_ms = options.step_ms if name == "streams" else 0.0
            flags = ["--device", "sim", "--sim-step-ms", str(step_ms), "--max-num-seqs", str(len(load.bodies))]
            with running(*flags, "--tokenizers", str(num_tokenizers), *options.serve) as server:
                if options.cores:
                    _bind(server)
                num_errors += _measure(server, load, num_tokenizers, options, records)
    return 1 if num_errors else 0


def _measure(server: Server, load: Load, num_tokenizers: int, options: argparse.Namespace, records: Records) -> int:
    """One load, after a small one that wakes everything; returns the number of streams that went wrong."""
    _run(server, [completion_body([5, 6, 7], 8)] * 16, 1)
    before = dict(_cpu_s(server))
    reports = _run(server, load.bodies, options.processes)
    spent = {role: cpu_s - before.get(role, 0.0) for role, cpu_s in _cpu_s(server)}
    count = sum(each.num_events if load.unit == "events" else each.num_prompt_tokens for each in reports)
    took_s = max(each.last_s for each in reports) - min(each.first_s for each in reports)
    errors = [error for each in reports for error in each.errors]
    share = max(each.core_share for each in reports)
    each_us = {role: round(1e6 * cpu_s / max(1, count), 1) for role, cpu_s in spent.items()}
    cores = {role: round(cpu_s / took_s, 2) for role, cpu_s in spent.items()}
    costs = ", ".join(f"{role} {us:g} ({cores[role]:g} cores)" for role, us in each_us.items())
    rate = count / took_s
    print(f"{load.name:<9}{num_tokenizers:>11}{count:>10}{rate:>10.0f}{share:>8.2f}   {costs}", flush=True)
    for error in errors[:3]:
        print(f"          {error}")
    records.add(
        load=load.name, tokenizers=num_tokenizers, requests=len(load.bodies), unit=load.unit, count=count,
        seconds=round(took_s, 3), per_second=round(rate, 1), client_core=round(share, 2),
        cpu_us_each=each_us, cores=cores, errors=len(errors),
    )  # fmt: skip
    return len(errors)


def _streams(options: argparse.Namespace) -> Load:
    draw = random.Random(1)
    prompts = [[draw.randrange(3, VOCAB) for _ in range(16)] for _ in range(options.n)]
    bodies = [_completion({"prompt": prompt, "max_tokens": options.tokens}) for prompt in prompts]
    return Load("streams", bodies, "events")


def _text(options: argparse.Namespace) -> Load:
    draw = random.Random(1)
    prompts = [" ".join(draw.choices(WORDS, k=options.words)) for _ in range(options.texts)]
    return Load("text", [_completion({"prompt": prompt, "max_tokens": 1}) for prompt in prompts], "prompt tokens")


def _completion(fields: dict[str, object]) -> bytes:
    shared = {"stream": True, "stream_options": {"include_usage": True}, "ignore_eos": True}
    return json.dumps(fields | shared).encode()


def _run(server: Server, bodies: Sequence[bytes], processes: int) -> list[Report]:
    """All bodies at once, by several client processes that begin together."""
    context = multiprocessing.get_context("spawn")
    with context.Pool(processes) as pool:
        pool.map(time.sleep, [0.5] * processes)  # all are up
        shares = [bodies[index::processes] for index in range(processes)]
        return pool.starmap(_client, [(server.host, server.port, share) for share in shares], chunksize=1)


def _client(host: str, port: int, bodies: Sequence[bytes]) -> Report:
    cpu_s = time.process_time()
    streams = asyncio.run(run_streams(host, port, bodies, timeout_s=600.0))
    cpu_s = time.process_time() - cpu_s
    starts = [stream.start_s for stream in streams]
    ends = [stream.arrivals_s[-1] for stream in streams if stream.arrivals_s]
    last_s = max(ends, default=max(starts))
    return Report(
        min(starts), last_s, sum(stream.num_events for stream in streams),
        sum(stream.usage.prompt_tokens for stream in streams if stream.usage),
        [stream.error for stream in streams if stream.error], cpu_s / (last_s - min(starts)),
    )  # fmt: skip


def _cpu_s(server: Server) -> Iterator[tuple[str, float]]:
    """CPU time of each role so far, children included."""
    for role in ROLES:
        times = [process.cpu_times() for process in server.services(role)]
        yield role, sum(each.user + each.system + each.children_user + each.children_system for each in times)


def _bind(server: Server) -> None:
    """Each gateway and tokenizer to a core of its own, as far as the machine has them."""
    own = [process for role in ROLES[:2] for process in server.services(role)]
    allowed = sorted(os.sched_getaffinity(0))
    for process, core in zip(own, allowed, strict=False):
        process.cpu_affinity([core])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", nargs="+", choices=["streams", "text"], default=["streams", "text"])
    parser.add_argument("--tokenizers", nargs="+", type=int, default=[1, 2], help="a server each (default: 1 2)")
    parser.add_argument("--n", type=int, default=1000, help="streams at once (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=100, help="of each stream (default: %(default)s)")
    parser.add_argument("--step-ms", type=float, default=100.0, help="of the simulated executor (default: %(default)s)")
    parser.add_argument("--texts", type=int, default=200, help="long prompts at once (default: %(default)s)")
    parser.add_argument("--words", type=int, default=4000, help="of a long prompt (default: %(default)s)")
    parser.add_argument("--processes", type=int, default=2, help="clients (default: %(default)s)")
    parser.add_argument("--cores", action="store_true", help="bind each gateway and tokenizer to a core of its own")
    parser.add_argument("--out", type=Path, help="file that a JSON line for each load is added to")
    parser.add_argument("serve", nargs="*", help="arguments of octavo serve, behind --")
    return parser


if __name__ == "__main__":
    sys.exit(main())
