"""The linear layers of Qwen3-8B on a GPU: FP8 in each of its ways beside bfloat16, in microseconds a layer.

    python -m benchmarks.fp8 [--rows 1 2 4 ...] [--tiles one | few]

Each time is of a CUDA graph of several calls on weights in turn, more than the L2 cache holds. Of FP8, `quantize` is
what comes before the product, an RMS norm or the activation of a gated MLP included. `bf16` is F.linear alone, for one
row our kernel. --tiles tries the tiles of the kernels for one row or for few rows, on 1 and 16 rows.
"""

import argparse
import itertools
from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
import triton
from benchmarks.timing import seconds
from torch import Tensor

from octavo.kernels.fp8 import Quantized, quantize, quantize_gated, quantize_normed
from octavo.kernels.gpu import fp8_linear, linear
from octavo.kernels.gpu.overlap import OVERLAP
from octavo.services.executor.models.fp8_linear import many_rows_linear

SHAPES = {"qkv": (6144, 4096), "o": (4096, 4096), "gate_up": (24576, 4096), "down": (4096, 12288)}
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024, 2048, 8192)
GATED: dict[str, linear.Gate] = {"gate_up": "silu"}
WITH_RESIDUAL = ("o", "down")  # the others have a norm before them
WEIGHT_BYTES = 400 * 2**20


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", type=int, nargs="+", default=ROWS)
    parser.add_argument("--tiles", choices=("one", "few"))
    options = parser.parse_args()
    torch.set_grad_enabled(False)
    for name, (outputs, inputs) in SHAPES.items():
        weights = [
            quantize(torch.randn(outputs, inputs, device="cuda").bfloat16())
            for _ in range(max(2, WEIGHT_BYTES // (outputs * inputs)))
        ]
        torch.cuda.synchronize()
        if options.tiles:
            _try_tiles(options.tiles, name, weights)
            continue
        whole = [torch.randn(outputs, inputs, device="cuda").bfloat16() for _ in weights[: len(weights) // 2 + 1]]
        for rows in options.rows:
            times = {way: _measure(calls) for way, calls in _ways(name, rows, weights, whole).items()}
            print(f"{name:8}{rows:6}  " + "  ".join(f"{way} {time:8.1f}" for way, time in times.items()), flush=True)


def _ways(
    name: str, rows: int, weights: Sequence[Quantized], whole: Sequence[Tensor]
) -> dict[str, list[Callable[[], object]]]:
    outputs, inputs = weights[0][0].shape
    x = torch.randn(rows, 2 * inputs, device="cuda").bfloat16()
    half, norm_weight = x[:, :inputs].contiguous(), torch.ones(inputs, device="cuda").bfloat16()
    residual = torch.zeros(rows, outputs, device="cuda").bfloat16() if name in WITH_RESIDUAL else None
    q = quantize(half)
    before: dict[str, Callable[[], object]] = {"o": lambda: quantize(half), "down": lambda: quantize_gated(x, "silu")}
    ways: dict[str, list[Callable[[], object]]] = {"bf16": [lambda w=w: F.linear(half, w) for w in whole]}
    ways["quantize"] = [before.get(name, lambda: quantize_normed(half, norm_weight, 1e-6))] * 20
    if rows == 1:
        ways["bf16"] = [lambda w=w: linear.one_row_linear(half, w) for w in whole]
        norm, gate = None if residual is not None else (norm_weight, 1e-6), GATED.get(name)
        ways["one"] = [lambda w=w: linear.one_row_linear(half, w[0], residual, norm, gate, w[1]) for w in weights]
    if fp8_linear.fits(rows, weights[0][0]):
        ways["few"] = [lambda w=w: fp8_linear.few_rows_linear(q, w, None, residual, x.dtype) for w in weights]
    ways["many"] = [lambda w=w: many_rows_linear(q, w, None, residual, x.dtype) for w in weights]
    return ways


def _try_tiles(kernel: str, name: str, weights: Sequence[Quantized]) -> None:
    """The best tiles of a kernel for one row, or for 16."""
    launcher = _launcher_of_one if kernel == "one" else _launcher_of_few
    tried = ((2, 4, 8, 16), (1024, 2048, 4096), (1, 2, 3)) if kernel == "one" else ((16, 32, 64), (256, 512), (3, 4, 6))
    launch, results = launcher(name, *weights[0][0].shape), []
    for tile in itertools.product(*tried, (4, 8)):
        try:
            results.append((_measure([lambda w=w, tile=tile: launch(w, *tile) for w in weights]), tile))
        except triton.runtime.errors.OutOfResources:
            continue
    for time, tile in sorted(results)[:8]:
        speed = weights[0][0].nbytes / time / 1e6
        print(f"{name:8} {time:7.1f} us {speed:5.2f} TB/s  outputs, inputs, stages, warps {tile}", flush=True)


Launch = Callable[[Quantized, int, int, int, int], None]


def _launcher_of_one(name: str, outputs: int, inputs: int) -> Launch:
    x, y = (torch.randn(1, size, device="cuda").bfloat16() for size in (inputs, outputs))
    has_norm, is_gated, out = name not in WITH_RESIDUAL, name in GATED, torch.empty_like(y)
    outputs = outputs // 2 if is_gated else outputs

    def launch(weight: Quantized, at_once: int, depth: int, stages: int, num_warps: int) -> None:
        linear._one_row[(triton.cdiv(outputs, at_once),)](
            x, weight[0], x if has_norm else None, None if has_norm else y, weight[1], out, outputs, 1e-6,
            INPUTS=inputs, AT_ONCE=at_once, DEPTH=depth, HAS_NORM=has_norm, GATED=is_gated, IS_GELU=False,
            STAGES=stages, num_warps=num_warps, **OVERLAP,
        )  # fmt: skip

    return launch


def _launcher_of_few(name: str, outputs: int, inputs: int) -> Launch:
    values, scale = quantize(torch.randn(16, inputs, device="cuda").bfloat16())
    out = torch.empty(16, outputs, dtype=torch.bfloat16, device="cuda")
    has_residual = name in WITH_RESIDUAL

    def launch(weight: Quantized, at_once: int, depth: int, stages: int, num_warps: int) -> None:
        fp8_linear._few_rows[(triton.cdiv(outputs, at_once),)](
            values, scale, *weight, scale, out, out, 16, outputs, INPUTS=inputs, ROWS=16, AT_ONCE=at_once, DEPTH=depth,
            HAS_BIAS=False, HAS_RESIDUAL=has_residual, STAGES=stages, num_warps=num_warps, **OVERLAP,
        )  # fmt: skip

    return launch


def _measure(calls: Sequence[Callable[[], object]]) -> float:
    """Microseconds of one of them."""
    return seconds(calls) / len(calls) * 1e6


if __name__ == "__main__":
    main()
