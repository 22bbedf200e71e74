"""`octavo bench`: picks what is measured."""

import sys
from collections.abc import Callable, Sequence

from octavo.shared.errors import ConfigError

USAGE = """\
usage: octavo bench WHAT [options]

  throughput MODEL   tokens per second of scheduler and executor for whole workloads, without HTTP
  latency MODEL      times to the first token and between tokens for batches of one shape, without HTTP
  serve --url URL    any OpenAI-compatible server under streamed requests, ours or another

octavo bench WHAT --help tells more.
"""
INTERRUPTED = 130


def bench(arguments: Sequence[str]) -> int:
    """Returns the exit code. Raises ConfigError."""
    what, *options = arguments or ["--help"]
    if what in ("--help", "-h"):
        print(USAGE, end="")
        return 0
    measure = MEASUREMENTS.get(what)
    if measure is None:
        raise ConfigError(f"bench measures {', '.join(MEASUREMENTS)}, not {what!r}; see octavo bench --help")
    try:
        return measure(options)
    except KeyboardInterrupt:
        print("octavo: stopped; what was measured before is complete", file=sys.stderr)
        return INTERRUPTED


def _throughput(arguments: Sequence[str]) -> int:
    from octavo.services.bench.throughput import throughput

    return throughput(arguments)


def _latency(arguments: Sequence[str]) -> int:
    from octavo.services.bench.latency import latency

    return latency(arguments)


def _serve(arguments: Sequence[str]) -> int:
    from octavo.services.bench.serve import serve

    return serve(arguments)


MEASUREMENTS: dict[str, Callable[[Sequence[str]], int]] = {
    "throughput": _throughput,
    "latency": _latency,
    "serve": _serve,
}
