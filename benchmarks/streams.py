"""Concurrent streams against a running `octavo serve --device sim`, every token compared with the oracle.

    octavo serve --device sim --sim-step-ms 100 --max-num-seqs 1000 &
    python -m benchmarks.streams --n 1000 --tokens 100

Prints how many events came a second, the gaps between them, the time to the first, and how many streams
were wrong.
"""

import argparse
import asyncio
import random
import sys
import time
from collections.abc import Sequence
from urllib.parse import urlsplit

from tests.tools.load_client import Stream, completion_body, run_streams

from octavo.shared.oracle import expected_tokens

DEFAULT_VOCAB = 49_152  # of SmolLM2, whose vocabulary `--device sim` takes over
SEED = 20260722


def main() -> int:
    options = _parser().parse_args()
    prompts = shared_prefix_prompts(options.n, options.vocab)
    bodies = [completion_body(prompt, options.tokens) for prompt in prompts]
    address = urlsplit(options.url)
    began = time.monotonic()
    streams = asyncio.run(run_streams(address.hostname or "127.0.0.1", address.port or 80, bodies, options.timeout))
    took_s = time.monotonic() - began
    num_wrong = 0
    for prompt, stream in zip(prompts, streams, strict=True):
        wanted = expected_tokens(prompt, options.tokens, options.vocab)
        num_wrong += stream.token_ids != wanted or bool(stream.error)
    _show(streams, took_s, num_wrong)
    return 1 if num_wrong else 0


def shared_prefix_prompts(count: int, vocab_size: int) -> list[list[int]]:
    """Prompts of 5 to 60 tokens, which begin with one of eight texts."""
    source = random.Random(SEED)
    prefixes = [[source.randrange(3, vocab_size) for _ in range(40)] for _ in range(8)]
    prompts = []
    for _ in range(count):
        shared = source.choice(prefixes)[: source.randint(3, 40)]
        prompts.append(shared + [source.randrange(3, vocab_size) for _ in range(source.randint(2, 20))])
    return prompts


def _show(streams: Sequence[Stream], took_s: float, num_wrong: int) -> None:
    num_tokens = sum(len(stream.token_ids) for stream in streams)
    num_events = sum(stream.num_events for stream in streams)
    firsts = sorted(stream.first_s for stream in streams if stream.arrivals_s)
    gaps = sorted(gap for stream in streams for gap in stream.gaps_s)
    print(f"streams          {len(streams)} in {took_s:.2f} s, {len(streams) / took_s:.0f}/s")
    print(f"tokens           {num_tokens}, {num_tokens / took_s:.0f}/s")
    print(f"events           {num_events}, {num_events / took_s:.0f}/s")
    print(f"first token      p50 {_ms(firsts, 0.5)}, p99 {_ms(firsts, 0.99)}")
    print(f"gap              p50 {_ms(gaps, 0.5)}, p99 {_ms(gaps, 0.99)}, longest {_ms(gaps, 1.0)}")
    print(f"wrong streams    {num_wrong}")
    for stream in [stream for stream in streams if stream.error][:5]:
        print(f"  {stream.error}", file=sys.stderr)


def _ms(ordered: Sequence[float], share: float) -> str:
    if not ordered:
        return "none"
    return f"{1000 * ordered[min(len(ordered) - 1, int(share * len(ordered)))]:.1f} ms"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--url", default="http://127.0.0.1:8000", help="the server (default: %(default)s)")
    parser.add_argument("--n", type=int, default=1000, help="streams at once (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=64, help="of each (default: %(default)s)")
    parser.add_argument("--vocab", type=int, default=DEFAULT_VOCAB, help="the model's (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=300.0, help="seconds for all (default: %(default)s)")
    return parser


if __name__ == "__main__":
    sys.exit(main())
