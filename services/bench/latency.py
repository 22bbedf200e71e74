"""`octavo bench latency`: batches of one shape through scheduler and executor, one batch after the other."""

import argparse
import random
from collections.abc import Sequence
from pathlib import Path

from octavo.services.bench.offline import Run, offline
from octavo.services.bench.options import FLAGS_OF_SERVE, positive, positives
from octavo.services.bench.records import Records, Table, own_version, percentiles_ms
from octavo.services.bench.workloads import random_ids
from octavo.shared.arguments import Parser
from octavo.shared.config import parse

PROG = "octavo bench latency"


def latency(arguments: Sequence[str]) -> int:
    """Run the batches; returns the exit code. Raises ConfigError."""
    options, rest = _parser().parse_known_args(arguments)
    config = parse(rest, PROG, "")
    with Records(options.out, [*PROG.split(), *arguments], **own_version(), model=config.model_names[0]) as records:
        with offline(config) as engine:
            print(f"{config.model_names[0]} on {engine.model.device} in {engine.model.dtype}: ", end="")
            print(f"ready after {engine.start_s:.1f} s; {options.input_len} tokens in, {options.output_len} out")
            records.add(event="started", seconds=round(engine.start_s, 1))
            table = Table("batch", "batches", "out tok/s", "first token ms p50", "p99", "per token ms p50", "p99",
                          "batch ms p50", "p99")  # fmt: skip
            for size in options.batch_size:
                rng = random.Random(size)
                runs = []
                for number in range(-1, options.iterations):  # the first one warms up
                    prompts = [random_ids(rng, options.input_len) for _ in range(size)]
                    runs.append(engine.run([(each, options.output_len) for each in prompts], f"{size} {number}"))
                fields = _fields(runs[1:])
                shape = {"input_len": options.input_len, "output_len": options.output_len, "batch_size": size}
                records.add(**shape, iterations=options.iterations, **fields)
                table.add(size, options.iterations, *fields.values())
    return 0


def _fields(runs: Sequence[Run]) -> dict[str, float]:
    seconds = [run.seconds for run in runs]
    return {
        "output_tok_s": round(sum(run.num_tokens for run in runs) / sum(seconds), 1),
        **percentiles_ms("ttft", [first for run in runs for first in run.firsts_s.values()]),
        **percentiles_ms("tpot", [each for run in runs for each in run.per_token_s]),
        **percentiles_ms("batch", seconds),
    }


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        PROG,
        usage=f"{PROG} MODEL [--input-len N] [--output-len N] [--batch-size N,…] [--iterations N] [--out FILE] "
        "[flags of octavo serve]",
        description=(
            "Measure scheduler and executor, joined as in `octavo serve`: all requests of a batch at once, the next "
            "batch when all have ended. Greedy, the end of a sequence ignored; no prompt comes twice. "
        )
        + FLAGS_OF_SERVE,
    )
    parser.add_argument("--input-len", type=positive, default=128, help="tokens of a prompt (default: %(default)s)")
    parser.add_argument("--output-len", type=positive, default=128, help="tokens generated (default: %(default)s)")
    parser.add_argument("--batch-size", type=positives, default=[1, 8, 64], metavar="N,…",
                        help="requests of a batch (default: 1,8,64)")  # fmt: skip
    parser.add_argument("--iterations", type=positive, default=5, help="batches of a size (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="file that a JSON line for each size is added to")
    return parser
