"""The ways to multiply the default model's linear layers on this CPU, in bfloat16, side by side.

    python -m benchmarks.linear [--rows 1 8 32 64 512] [--seconds 8]

One round does all layers of a step in each way, one way after another, so that the weights come from memory and other
work on the machine meets all ways alike. For each number of rows and each way the fastest fifth of the rounds is
printed, in milliseconds a round. tiles needs a CPU with AMX; dots is for one row alone.
"""

import argparse
import time
from collections.abc import Callable

import torch
from torch import Tensor

from octavo.kernels.linear import can_tile, few_rows_linear, pack_tiles, tile_linear
from octavo.services.executor.models.linear import PACK_ROWS

LAYERS = 30
SHAPES = ((960, 576), (576, 576), (3072, 576), (576, 1536))  # outputs, inputs of a layer
HEAD = (49_152, 576)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 8, 32, 64, 512])
    parser.add_argument("--seconds", type=float, default=8.0)
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    weights = [torch.randn(shape).bfloat16() for shape in (*SHAPES * LAYERS, HEAD)]
    packed = [torch.ops.mkldnn._reorder_linear_weight(weight, PACK_ROWS) for weight in weights]
    tiles = [pack_tiles(weight) for weight in weights] if can_tile(weights[0]) else []
    for rows in options.rows:
        inputs = {size: torch.randn(rows, size).bfloat16() for _, size in SHAPES}
        xs = [inputs[weight.shape[1]] for weight in weights]
        ways: dict[str, Callable[[], None]] = {"oneDNN": lambda xs=xs: _by_onednn(xs, packed)}
        if tiles:
            ways["tiles"] = lambda xs=xs: _by_tiles(xs, tiles)
        if rows == 1:
            ways["dots"] = lambda xs=xs: _by_dots(xs, weights)
        times = _measure(ways, options.seconds)
        print(f"{rows:4} rows:", "  ".join(f"{name} {fifth:.1f} ms" for name, fifth in times.items()), flush=True)


def _measure(ways: dict[str, Callable[[], None]], seconds: float) -> dict[str, float]:
    """Milliseconds of the fastest fifth of each way's rounds."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        for name, run in ways.items():
            began = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - began)
    return {name: sorted(each)[len(each) // 5] * 1e3 for name, each in times.items()}


def _by_onednn(xs: list[Tensor], packed: list[Tensor]) -> None:
    for x, weight in zip(xs, packed, strict=True):
        torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")


def _by_tiles(xs: list[Tensor], tiles: list[Tensor]) -> None:
    for x, weight in zip(xs, tiles, strict=True):
        tile_linear(x, weight, None, None)


def _by_dots(xs: list[Tensor], weights: list[Tensor]) -> None:
    for x, weight in zip(xs, weights, strict=True):
        few_rows_linear(x, weight, None, None)


if __name__ == "__main__":
    main()
