"""What structured output costs a step: the gaps between tokens of many streams, with a JSON schema and without.

    python -m benchmarks.masks --streams 64 -- Qwen/Qwen3-8B --load-format dummy

Starts a server (with the arguments behind --) and runs the same streams again and again, in turns without a grammar
and with one that each follows from its first token to its last. What is told is the median gap of each run, and from
each pair of neighbours how much longer a step was: a shared machine changes more from minute to minute than masks cost.
"""

import argparse
import asyncio
import random
import statistics
import sys
from pathlib import Path

from tests.tools.load_client import completion_body, run_streams
from tests.tools.server import Server, running

from octavo.services.bench.records import Records

SCHEMA = {
    "type": "array",
    "minItems": 40,  # more than any stream gets to
    "items": {
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "age": {"type": "integer", "minimum": 0, "maximum": 150},
            "role": {"enum": ["admin", "user", "guest"]},
            "tags": {"type": "array", "items": {"type": "string"}},
            "address": {"type": "object", "properties": {"street": {"type": "string"}, "city": {"type": "string"}}},
        },
        "required": ["name", "age", "role", "tags", "address"],
    },
}


def main() -> int:
    options = _parser().parse_args()
    masked: dict[str, object] = {"structured_outputs": {"json": SCHEMA}}
    with (
        running(*options.serve) as server,
        Records(options.out, ["python", "-m", "benchmarks.masks", *sys.argv[1:]]) as records,
    ):
        _gap_ms(server, options, masked)  # compiles the grammar
        print(f"{'streams':>8}{'plain ms':>10}{'masked ms':>11}{'longer':>9}", flush=True)
        costs = []
        for _ in range(options.repeat):
            plain_ms, masked_ms = _gap_ms(server, options, {}), _gap_ms(server, options, masked)
            costs.append(masked_ms / plain_ms - 1.0)
            print(f"{options.streams:>8}{plain_ms:>10.2f}{masked_ms:>11.2f}{costs[-1]:>9.1%}", flush=True)
            records.add(streams=options.streams, plain_ms=plain_ms, masked_ms=masked_ms)
    print(f"median: {statistics.median(costs):.1%} longer")
    return 0


def _gap_ms(server: Server, options: argparse.Namespace, fields: dict[str, object]) -> float:
    """The median over streams and tokens, first and last ones left out, in which streams begin and end."""
    draw = random.Random(1)
    bodies = [
        completion_body(
            [draw.randrange(100, 10_000) for _ in range(8)], options.tokens, temperature=0.8, seed=number, **fields
        )
        for number in range(options.streams)
    ]
    streams = asyncio.run(run_streams(server.host, server.port, bodies, timeout_s=600.0))
    errors = [stream.error for stream in streams if stream.error]
    if errors:
        sys.exit(f"a stream failed: {errors[0]}")
    edge = options.tokens // 5
    return 1e3 * statistics.median(gap for stream in streams for gap in stream.gaps_s[edge:-edge])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--streams", type=int, default=64, help="(default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=60, help="of each stream (default: %(default)s)")
    parser.add_argument("--repeat", type=int, default=5, help="pairs of runs (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="file that a JSON line for each pair is added to")
    parser.add_argument("serve", nargs="*", help="arguments of octavo serve, behind --")
    return parser


if __name__ == "__main__":
    sys.exit(main())
