"""`octavo bench throughput`: whole workloads through scheduler and executor, all requests of one at once."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from octavo.services.bench.offline import Run, offline
from octavo.services.bench.options import FLAGS_OF_SERVE, names, positive
from octavo.services.bench.records import Records, Table, own_version, percentiles_ms
from octavo.services.bench.workloads import WORKLOADS, Workload
from octavo.shared.arguments import Parser
from octavo.shared.config import parse

PROG = "octavo bench throughput"


def throughput(arguments: Sequence[str]) -> int:
    """Run the workloads; returns the exit code. Raises ConfigError."""
    options, rest = _parser().parse_known_args(arguments)
    config = parse(rest, PROG, "")
    with Records(options.out, [*PROG.split(), *arguments], **own_version(), model=config.model_names[0]) as records:
        with offline(config) as engine:
            print(f"{config.model_names[0]} on {engine.model.device} in {engine.model.dtype}: ", end="")
            print(f"ready after {engine.start_s:.1f} s")
            records.add(event="started", seconds=round(engine.start_s, 1))
            engine.run([(list(range(10, 100)), 8)], "warm-up")
            table = Table("workload", "trial", "seconds", "tokens in", "out", "out tok/s", "all tok/s", "step ms p50",
                          "p99")  # fmt: skip
            for name in options.workload:
                workload = WORKLOADS[name]()
                for trial in range(options.trials):
                    fields = _fields(workload, engine.run(workload, f"{name} {trial}"))
                    records.add(workload=name, trial=trial, **fields)
                    table.add(name, trial, *fields.values())
    return 0


def _fields(workload: Workload, run: Run) -> dict[str, float]:
    num_in = sum(len(prompt) for prompt, _ in workload)
    return {
        "seconds": round(run.seconds, 3),
        "input_tokens": num_in,
        "output_tokens": run.num_tokens,
        "output_tok_s": round(run.num_tokens / run.seconds, 1),
        "total_tok_s": round((num_in + run.num_tokens) / run.seconds, 1),
        **percentiles_ms("step", run.gaps_s),
    }


def _parser() -> argparse.ArgumentParser:
    parser = Parser(
        PROG,
        usage=f"{PROG} MODEL [--workload NAMES] [--trials N] [--out FILE] [flags of octavo serve]",
        description=(
            "Measure tokens per second of scheduler and executor, joined as in `octavo serve`: all requests of a "
            "workload at once, greedy, the end of a sequence ignored. Trials share no prefix cache. "
        )
        + FLAGS_OF_SERVE,
        epilog="workloads: " + "; ".join(f"{name}: {make.__doc__}" for name, make in WORKLOADS.items()),
    )
    parser.add_argument("--workload", type=names(WORKLOADS), default=list(WORKLOADS), metavar="NAME,…",
                        help=f"of {', '.join(WORKLOADS)} (default: all)")  # fmt: skip
    parser.add_argument("--trials", type=positive, default=2, help="of each workload (default: %(default)s)")
    parser.add_argument("--out", type=Path, help="file that a JSON line for each trial is added to")
    return parser
