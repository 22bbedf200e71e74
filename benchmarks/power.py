"""What products of bfloat16 reach on a GPU that is kept busy: speed, power and clock of Qwen3-8B's linear layers.

    python -m benchmarks.power [--rows 1024 8192] [--out FILE]

Each runs without a pause for two seconds, of which the second is measured, on weights in turn, more than the L2 cache
holds. A card at its power limit lowers its clock: then joule per TFLOP decide how fast any kernel can be. `of zeros`
has the same products with weights of zeros, which cost less power.
"""

import argparse
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from octavo.services.bench.records import Records, Table, own_version

SHAPES = {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (24576, 4096), "down": (4096, 12288)}
SETS = 6
LEAST_TFLOP = 10.0  # of a graph: tens of milliseconds
QUERY = ["nvidia-smi", "--query-gpu=power.draw,clocks.sm", "--format=csv,noheader,nounits", "-lms", "50", "-i", "0"]


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=(1024, 2048, 8192))
    parser.add_argument("--out", type=Path, help="file that a JSON line for each case is added to")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        sys.exit("benchmarks.power: torch sees no GPU")
    cases = [(name, rows, False) for rows in options.rows for name in SHAPES]
    cases.append(("gate_up", max(options.rows), True))
    with Records(options.out, ["python", "-m", "benchmarks.power", *sys.argv[1:]], **own_version()) as records:
        table = Table(f"{'product':<18}", f"{'rows':>6}", "TFLOP/s", "W", "MHz", "J/TFLOP")
        for name, rows, is_zero in cases:
            outputs, inputs = SHAPES[name]
            speed, watts, mhz = sustained(products(rows, outputs, inputs, is_zero), 2e-12 * rows * outputs * inputs)
            label = f"{name} of zeros" if is_zero else name
            records.add(product=label, rows=rows, tflop_s=round(speed, 1), watts=round(watts), mhz=round(mhz))
            table.add(f"{label:<18}", f"{rows:>6}", speed, watts, mhz, watts / speed)


def products(rows: int, outputs: int, inputs: int, is_zero: bool) -> list[Callable[[], object]]:
    sets = []
    for _ in range(SETS):
        weight = torch.empty(outputs, inputs, dtype=torch.bfloat16, device="cuda").normal_(0, 0.0 if is_zero else 0.02)
        x = torch.randn(rows, inputs, device="cuda").bfloat16()
        sets.append((x, weight.t(), torch.empty(rows, outputs, dtype=torch.bfloat16, device="cuda")))
    return [lambda one=one: torch.mm(one[0], one[1], out=one[2]) for one in sets]  # type: ignore[misc]  # each its own


def sustained(calls: Sequence[Callable[[], object]], tflop: float) -> tuple[float, float, float]:
    """TFLOP/s, watts and MHz in the second of two seconds. tflop: of one call."""
    calls = [*calls] * max(1, int(LEAST_TFLOP / tflop / len(calls)))
    calls[0]()
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for call in calls:
            call()
    _run(graph, 1.0)
    with subprocess.Popen(QUERY, stdout=subprocess.PIPE, text=True) as smi:
        count, seconds = _run(graph, 1.0)
        smi.terminate()
        lines = smi.communicate()[0].splitlines()
    samples = [[float(each) for each in line.split(",")] for line in lines if line.count(",") == 1]
    watts, mhz = (sum(column) / len(column) for column in zip(*samples, strict=True))
    return count * len(calls) * tflop / seconds, watts, mhz


def _run(graph: torch.cuda.CUDAGraph, seconds: float) -> tuple[int, float]:
    """Replays, and how long they took; two are always on their way."""
    began, count = time.perf_counter(), 0
    graph.replay()
    while time.perf_counter() - began < seconds:
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]  # torch's own
        event.record()
        graph.replay()
        event.synchronize()
        count += 1
    torch.cuda.synchronize()
    return count + 1, time.perf_counter() - began


if __name__ == "__main__":
    main()
