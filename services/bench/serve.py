"""`octavo bench serve`: any OpenAI-compatible server under streamed requests, at fixed concurrencies or rates.

Client processes send the requests, so that the client is not what is measured; this one starts them together and
joins what they report.
"""

import argparse
import random
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import msgspec

from octavo.services.bench.client import Job, Outcome, Report
from octavo.services.bench.options import positive, positives, rates, seconds
from octavo.services.bench.records import Records, Table, percentiles_ms
from octavo.services.bench.target import PATHS, Target, find
from octavo.shared.arguments import Parser
from octavo.shared.errors import ConfigError

PROG = "octavo bench serve"
PER_CLIENT = 8  # open requests: below that another process is not worth its start
REQUESTS = range(8, 1025)  # the least and the most of a level, if nothing else is said
REASONS_SHOWN = 3
STOP_S = 5.0


@dataclass(frozen=True)
class Level:
    """One load: so many open requests, or so many a second."""

    concurrency: int
    rate: float
    num_requests: int

    @property
    def name(self) -> str:
        return f"{self.rate:g}/s" if self.rate else str(self.concurrency)


WARM_UP = Level(concurrency=2, rate=0.0, num_requests=4)


def serve(arguments: Sequence[str]) -> int:
    """Measure all levels; returns 1 if a request failed. Raises ConfigError if nothing can be measured."""
    options = _parser().parse_args(arguments)
    target = find(options.url, options.model, options.engine, options.wait)
    draw = random.Random(options.seed)
    facts = {"engine": target.engine, "version": target.version, "model": target.model, "mode": "online"}
    with Records(options.out, [*PROG.split(), *arguments], **facts) as records:
        print(f"{target.engine} {target.version or ''} at {target.url}: {target.model}, ", end="")
        print(f"{options.input_len} words in, {options.output_len} tokens out, {options.endpoint}")
        if options.wait:
            print(f"server up after {target.waited_s:.1f} s")
            records.add(event="server up", seconds=round(target.waited_s, 1))
        warmed = _run(target, WARM_UP, options, draw)
        if all(each.error for report in warmed for each in report.outcomes):
            raise ConfigError(f"{target.url}: all requests to warm up failed: {warmed[0].outcomes[0].error}")
        table = Table("load", "requests", "errors", "out tok/s", "first token ms p50", "p99", "gap ms p50", "p99",
                      "request ms p50", "p99", "client core")  # fmt: skip
        num_errors = 0
        for level in _levels(options):
            reports = _run(target, level, options, draw)
            outcomes = [each for report in reports for each in report.outcomes]
            errors = Counter(each.error for each in outcomes if each.error)
            fields = _fields([each for each in outcomes if not each.error])
            share = round(max(report.core_share for report in reports), 2)
            load = {"request_rate": level.rate} if level.rate else {"concurrency": level.concurrency}
            records.add(
                endpoint=options.endpoint, input_words=options.input_len, output_len=options.output_len,
                seed=options.seed, **load, requests=len(outcomes), errors=errors.total(), reasons=dict(errors),
                **fields, client_core=share, clients=len(reports),
            )  # fmt: skip
            shown = [fields[name] for name in fields if name == "output_tok_s" or "_ms_" in name]
            table.add(level.name, len(outcomes), errors.total(), *shown, share)
            for reason, count in errors.most_common(REASONS_SHOWN):
                print(f"          {count} of {len(outcomes)} requests failed: {reason}")
            num_errors += errors.total()
    return 1 if num_errors else 0


def _fields(outcomes: Sequence[Outcome]) -> dict[str, float]:
    """Of the requests that were answered whole."""
    firsts, gaps = [], []
    for each in outcomes:
        firsts += [first - each.began_s for first in each.token_times[:1]]
        gaps += [later - earlier for earlier, later in zip(each.token_times, each.token_times[1:], strict=False)]
    took_s = max(each.ended_s for each in outcomes) - min(each.began_s for each in outcomes) if outcomes else 0.0
    num_out = sum(each.output_tokens for each in outcomes)
    return {
        "input_tokens": sum(each.input_tokens for each in outcomes),
        "output_tokens": num_out,
        "seconds": round(took_s, 3),
        "output_tok_s": round(num_out / took_s, 1) if took_s else 0.0,
        **percentiles_ms("ttft", firsts),
        **percentiles_ms("gap", gaps),
        **percentiles_ms("e2e", [each.ended_s - each.began_s for each in outcomes]),
    }


def _levels(options: argparse.Namespace) -> Iterator[Level]:
    def bounded(count: float) -> int:
        return options.requests or int(min(max(count, REQUESTS.start), REQUESTS.stop - 1))

    if options.request_rate:
        yield from (Level(0, rate, bounded(30 * rate)) for rate in options.request_rate)
    else:
        yield from (Level(count, 0.0, bounded(4 * count)) for count in options.concurrency)


def _run(target: Target, level: Level, options: argparse.Namespace, draw: random.Random) -> list[Report]:
    """One level, by several processes. Raises ConfigError if one of them dies."""
    open_requests = level.concurrency or level.num_requests
    count = max(1, min(options.processes, open_requests // PER_CLIENT, level.num_requests))
    host, port, is_tls = target.address
    fields = {
        "model": target.model, "max_tokens": options.output_len, "temperature": 0, "ignore_eos": True, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    jobs = [
        Job(
            host, port, is_tls, target.head(options.endpoint), options.endpoint == "chat", fields, num_requests,
            concurrency, level.rate / count, options.input_len, draw.getrandbits(32), options.timeout,
        )
        for num_requests, concurrency in zip(
            _share(level.num_requests, count), _share(level.concurrency, count), strict=True
        )
    ]  # fmt: skip
    with _clients(count) as clients:
        for client, job in zip(clients, jobs, strict=True):
            _tell(client, msgspec.json.encode(job))
        for client in clients:
            if not _output(client).readline():
                raise _died(client)
        for client in clients:
            _tell(client, b"")
        return [_report(client) for client in clients]


def _share(total: int, count: int) -> list[int]:
    """As evenly as it goes."""
    return [total // count + (index < total % count) for index in range(count)]


@contextmanager
def _clients(count: int) -> "Iterator[list[subprocess.Popen[bytes]]]":
    command = [sys.executable, "-P", "-m", "octavo.services.bench.client"]
    clients = [subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for _ in range(count)]
    try:
        yield clients
    finally:
        for client in clients:
            client.terminate()
            client.communicate(timeout=STOP_S)


def _tell(client: "subprocess.Popen[bytes]", line: bytes) -> None:
    assert client.stdin is not None
    try:
        client.stdin.write(line + b"\n")
        client.stdin.flush()
    except BrokenPipeError:
        raise _died(client) from None


def _report(client: "subprocess.Popen[bytes]") -> Report:
    try:
        return msgspec.msgpack.decode(_output(client).read(), type=Report)
    except msgspec.DecodeError:
        raise _died(client) from None


def _output(client: "subprocess.Popen[bytes]") -> IO[bytes]:
    assert client.stdout is not None
    return client.stdout


def _died(client: "subprocess.Popen[bytes]") -> ConfigError:
    return ConfigError(f"a client process ended with code {client.wait(STOP_S)} before it had reported")


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        PROG,
        description=(
            "Measure an OpenAI-compatible server with streamed requests: random words in, greedy, the end of a "
            "sequence ignored. An API key is read from OCTAVO_API_KEY."
        ),
    )
    parser.add_argument("--url", required=True, help="the server's address, such as http://127.0.0.1:8000")
    parser.add_argument("--model", help="model name (default: the first that the server lists)")
    parser.add_argument("--engine", help="name of the server in the results (default: who it says owns the model)")
    parser.add_argument("--endpoint", choices=PATHS, default="completions", help="(default: %(default)s)")
    load = parser.add_mutually_exclusive_group()
    load.add_argument("--concurrency", type=positives, default=[1, 32, 256], metavar="N,…",
                      help="requests that are open at a time; a level each (default: 1,32,256)")  # fmt: skip
    load.add_argument("--request-rate", type=rates, metavar="X,…",
                      help="instead: requests a second, at random times (Poisson); a level each")  # fmt: skip
    parser.add_argument("--requests", type=positive, help="of each level (default: 4 times the concurrency, or what "
                        f"comes in 30 s; {REQUESTS.start} to {REQUESTS.stop - 1:,})")  # fmt: skip
    parser.add_argument("--input-len", type=positive, default=512, help="words of a prompt (default: %(default)s)")
    parser.add_argument("--output-len", type=positive, default=128, help="tokens generated (default: %(default)s)")
    parser.add_argument("--processes", type=positive, default=4, help="clients at most (default: %(default)s)")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().getrandbits(32),
                        help="of the prompts (default: a new one each time, so that no cache knows them)")  # fmt: skip
    parser.add_argument("--wait", type=seconds, default=0.0, help="seconds to wait for the server (default: 0)")
    parser.add_argument("--timeout", type=seconds, default=600.0, help="seconds for a request (default: 600)")
    parser.add_argument("--out", type=Path, help="file that a JSON line for each level is added to")
    return parser
