"""Output tokens per second of any OpenAI-compatible server at 1, 8 and 32 streams: 128 tokens in, 128 out, greedy.

    octavo serve --dtype bfloat16 --port 8000 &
    python -m benchmarks.cpu --url octavo=http://127.0.0.1:8000 --url other=http://127.0.0.1:8080

With several servers their runs alternate, so that a machine whose speed drifts is fair to all. Every stream gets a
prompt of its own, so that no prefix cache helps. A JSON line for each run goes to --out, the table to the screen.
"""

import argparse
import asyncio
import json
import random
import statistics
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import aiohttp

WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend"
).split()


@dataclass(frozen=True)
class Run:
    """What one round of parallel streams measured."""

    server: str
    streams: int
    prompt_tokens: float
    output_tokens: int
    seconds: float
    first_token_s: float

    @property
    def tokens_per_s(self) -> float:
        return self.output_tokens / self.seconds


async def main() -> None:
    options = _parser().parse_args()
    servers = [tuple(each.split("=", 1)) for each in options.url]
    runs: list[Run] = []
    async with aiohttp.ClientSession(timeout=aiohttp.ClientTimeout(total=1800)) as session:
        for name, url in servers:
            await measure(session, name, url, 2, options)  # warm-up, not counted
        for streams in options.streams:
            for _ in range(options.rounds):
                for name, url in servers:
                    runs.append(await measure(session, name, url, streams, options))
                    _keep(options.out, runs[-1])
    _print_table(runs, [name for name, _ in servers], options.streams)


async def measure(
    session: aiohttp.ClientSession, name: str, url: str, streams: int, options: argparse.Namespace
) -> Run:
    """One round: all streams begin together; the clock stops when the last one has ended."""
    prompts = [_prompt(options.words) for _ in range(streams)]
    began = time.perf_counter()
    answers = await asyncio.gather(*(_stream(session, url, prompt, options) for prompt in prompts))
    seconds = time.perf_counter() - began
    return Run(
        name,
        streams,
        statistics.mean(answer[0] for answer in answers),
        sum(answer[1] for answer in answers),
        seconds,
        statistics.median(answer[2] for answer in answers),
    )


async def _stream(
    session: aiohttp.ClientSession, url: str, prompt: str, options: argparse.Namespace
) -> tuple[int, int, float]:
    """Prompt tokens, output tokens and seconds to the first chunk of one completion."""
    body = {
        "prompt": prompt, "max_tokens": options.tokens, "temperature": 0, "ignore_eos": True, "stream": True,
        "stream_options": {"include_usage": True},
    }  # fmt: skip
    if options.model:
        body["model"] = options.model
    began, first, num_chunks, usage = time.perf_counter(), 0.0, 0, {}
    async with session.post(f"{url.rstrip('/')}/v1/completions", json=body) as response:
        if response.status != 200:
            sys.exit(f"{url} answered {response.status}: {await response.text()}")
        async for line in response.content:
            if not line.startswith(b"data: {"):
                continue
            event = json.loads(line[6:])
            usage = event.get("usage") or usage
            if event.get("choices"):
                first = first or time.perf_counter() - began
                num_chunks += 1
    # A server that does not report usage is taken at one token a chunk.
    return usage.get("prompt_tokens", 0), usage.get("completion_tokens", num_chunks), first


def _prompt(num_words: int) -> str:
    """Words in random order; most of them are one token in most vocabularies."""
    return " ".join(random.choice(WORDS) for _ in range(num_words))


def _keep(path: Path | None, run: Run) -> None:
    if path is not None:
        with path.open("a") as lines:
            lines.write(json.dumps({**vars(run), "tokens_per_s": round(run.tokens_per_s, 1)}) + "\n")


def _print_table(runs: list[Run], servers: list[str], streams: list[int]) -> None:
    print(f"{'server':<16}" + "".join(f"{count:>8} streams" for count in streams) + "   (median output tok/s)")
    for server in servers:
        cells = []
        for count in streams:
            rates = [run.tokens_per_s for run in runs if run.server == server and run.streams == count]
            cells.append(f"{statistics.median(rates):>16.1f}")
        print(f"{server:<16}" + "".join(cells))
    prompt = statistics.mean(run.prompt_tokens for run in runs)
    print(f"prompts had {prompt:.0f} tokens on average")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Measure OpenAI-compatible servers at 1, 8 and 32 streams.")
    parser.add_argument("--url", action="append", required=True, metavar="NAME=URL", help="a server; may be repeated")
    parser.add_argument("--streams", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--rounds", type=int, default=3, help="rounds of each count (default: %(default)s)")
    parser.add_argument("--words", type=int, default=128, help="words in a prompt (default: %(default)s)")
    parser.add_argument("--tokens", type=int, default=128, help="tokens to generate (default: %(default)s)")
    parser.add_argument("--model", help="model name, where a server insists on one")
    parser.add_argument("--out", type=Path, help="file that JSON lines are added to")
    return parser


if __name__ == "__main__":
    asyncio.run(main())
