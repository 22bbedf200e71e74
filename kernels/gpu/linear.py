"""Triton: a linear layer of one row, with what comes before and after it: y = f(x) weight^T + residual.

One row reads every weight once and does little with it: the bytes of the weight are the floor, and for a small layer a
launch more costs as much as the layer. f is nothing, or an RMS norm, whose factor is applied to the sums, so that x is
read once. Of a gated MLP's first layer a program computes outputs of the gate and the same ones of up, and returns
act(gate) * up. The weight may be FP8 with a scale for each output (`octavo.kernels.fp8`): x is not quantized then.
"""

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.gpu.activation import activate
from octavo.kernels.gpu.hardware import NUM_SMS
from octavo.kernels.gpu.overlap import OVERLAP, begin

Gate = Literal["silu", "gelu"]
RmsNorm = tuple[Tensor | None, float]  # its weight [inputs], if it has one, and eps
LEAST_DEPTH = 128
WARP_BYTES = 512  # that its threads load at a time, 16 each


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether `one_row_linear` is for these."""
    return x.is_cuda and len(x) == 1 and x.is_contiguous() and weight.shape[1] % LEAST_DEPTH == 0


def one_row_linear(
    x: Tensor,
    weight: Tensor,
    residual: Tensor | None = None,
    norm: RmsNorm | None = None,
    gate: Gate | None = None,
    scale: Tensor | None = None,
) -> Tensor:
    """All tensors are contiguous and of one dtype, but for a weight with a scale.

    Args:
        x: [1, inputs].
        weight: [outputs, inputs], inputs a multiple of LEAST_DEPTH; with a gate [2 * outputs, inputs], its half first.
        residual: [1, outputs] or None; none with a gate.
        norm: of x.
        gate: silu, or gelu by its tanh form.
        scale: float32, one for each row of a weight in float8_e4m3fn.

    Returns: [1, outputs] in the dtype of x; sums are float32.
    """
    rows, inputs = weight.shape
    outputs = rows if gate is None else rows // 2
    out = torch.empty(1, outputs, dtype=x.dtype, device=x.device)
    at_once, depth, num_warps, stages = _tile(rows, inputs) if scale is None else _fp8_tile(rows, inputs)
    if gate is not None:
        at_once = max(1, at_once // 2, WARP_BYTES // (depth * weight.itemsize))
    num_warps = max(1, min(num_warps, at_once * depth * weight.itemsize // WARP_BYTES))
    norm_weight, eps = norm or (None, 0.0)
    _one_row[(triton.cdiv(outputs, at_once),)](
        x, weight, norm_weight, residual, scale, out, outputs, eps,
        INPUTS=inputs, AT_ONCE=at_once, DEPTH=depth, HAS_NORM=norm is not None, GATED=gate is not None,
        IS_GELU=gate == "gelu", STAGES=stages, num_warps=num_warps, **OVERLAP,
    )  # fmt: skip
    return out


Tile = tuple[int, int, int, int]
"""Rows of the weight that a program computes, inputs that it takes at a time, its most warps, stages of its loads."""

# By rows and inputs; found on an H200 in the whole decoding step of Qwen3-8B and Qwen3-0.6B.
TILES: dict[tuple[int, int], Tile] = {
    (6144, 4096): (8, 1024, 4, 2),
    (4096, 4096): (16, 1024, 8, 3),
    (24_576, 4096): (8, 1024, 4, 3),
    (4096, 12_288): (8, 2048, 8, 2),
    (151_936, 4096): (8, 1024, 8, 3),
    (1024, 2048): (4, 2048, 8, 1),
    (1024, 3072): (1, 1024, 4, 1),
}
FP8_TILES: dict[tuple[int, int], Tile] = {
    (4096, 4096): (8, 1024, 8, 1),
    (4096, 12_288): (16, 2048, 8, 3),
}


def _tile(rows: int, inputs: int) -> Tile:
    """For other sizes by what was the best for most."""
    if (rows, inputs) in TILES:
        return TILES[rows, inputs]
    depth, at_once, num_warps, stages = (1024, 8 if inputs > 2048 else 4, 4, 2) if inputs > 1024 else (512, 4, 2, 1)
    return (*_fitting(rows, inputs, at_once, depth), num_warps, stages)


def _fp8_tile(rows: int, inputs: int) -> Tile:
    """The same for FP8."""
    if (rows, inputs) in FP8_TILES:
        return FP8_TILES[rows, inputs]
    return (*_fitting(rows, inputs, 8, 1024), 4, 1)


def _fitting(rows: int, inputs: int, at_once: int, depth: int) -> tuple[int, int]:
    """A depth that divides the inputs, and rows for all multiprocessors."""
    while inputs % depth:
        depth //= 2
    while at_once > 1 and rows < at_once * 1.9 * NUM_SMS:
        at_once //= 2
    return at_once, depth


@triton.jit
def _one_row(
    x_ptr, weight_ptr, norm_ptr, residual_ptr, scale_ptr, out_ptr, outputs, eps,
    INPUTS: tl.constexpr, AT_ONCE: tl.constexpr, DEPTH: tl.constexpr, HAS_NORM: tl.constexpr, GATED: tl.constexpr,
    IS_GELU: tl.constexpr, STAGES: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid: runs of AT_ONCE outputs."""
    HAS_SCALE: tl.constexpr = scale_ptr is not None
    UNIT: tl.constexpr = 128 // weight_ptr.dtype.element_ty.primitive_bitwidth  # weights that a thread loads at once
    n = tl.program_id(0) * AT_ONCE + tl.arange(0, AT_ONCE)
    depth = tl.arange(0, DEPTH)
    is_in = n < outputs
    weights = weight_ptr + n.to(tl.int64)[:, None] * INPUTS + depth[None, :]
    ups = weight_ptr + (n.to(tl.int64) + outputs)[:, None] * INPUTS + depth[None, :]
    # All that no kernel before writes is on its way while x is still made.
    w = tl.load(weights, mask=is_in[:, None], other=0.0)
    if GATED:
        u = tl.load(ups, mask=is_in[:, None], other=0.0)
    norm = _norm_weight(norm_ptr, depth)
    if HAS_SCALE:
        scale = tl.load(scale_ptr + n, mask=is_in, other=0.0)
        if GATED:
            up_scale = tl.load(scale_ptr + outputs + n, mask=is_in, other=0.0)
    begin(OVERLAP)
    if residual_ptr is not None:  # added last, when nothing is left to do while it comes
        residual = tl.load(residual_ptr + n, mask=is_in, other=0.0)
    x, squares = _before(x_ptr + depth, norm, tl.zeros([DEPTH // UNIT], tl.float32), HAS_NORM, UNIT)
    sums = _products(w, x, UNIT)
    if GATED:
        up_sums = _products(u, x, UNIT)
    for start in tl.range(DEPTH, INPUTS, DEPTH, num_stages=STAGES):
        w = tl.load(weights + start, mask=is_in[:, None], other=0.0)
        if GATED:
            u = tl.load(ups + start, mask=is_in[:, None], other=0.0)
        norm = _norm_weight(norm_ptr, start + depth)
        x, squares = _before(x_ptr + start + depth, norm, squares, HAS_NORM, UNIT)
        sums += _products(w, x, UNIT)
        if GATED:
            up_sums += _products(u, x, UNIT)
    # Threads wait for each other in every reduction: so there is but one.
    squares = tl.broadcast_to(squares[None, :], sums.shape)
    if GATED:
        y, up, squares = tl.reduce((sums, up_sums, squares), 1, _add_3)
    elif HAS_NORM:
        y, squares = tl.reduce((sums, squares), 1, _add_2)
    else:
        y = tl.sum(sums, 1)
    factor = tl.rsqrt(squares / INPUTS + eps) if HAS_NORM else 1.0
    y *= factor
    if HAS_SCALE:
        y *= scale
    if GATED:
        up *= factor
        if HAS_SCALE:
            up *= up_scale
        y = activate(y, IS_GELU) * up
    if residual_ptr is not None:
        y += residual.to(tl.float32)
    tl.store(out_ptr + n, y.to(out_ptr.dtype.element_ty), mask=is_in)


@triton.jit
def _add_2(a, b, c, d):
    return a + c, b + d


@triton.jit
def _add_3(a, b, c, d, e, f):
    return a + d, b + e, c + f


@triton.jit
def _norm_weight(norm_ptr, place):
    """As it lies in memory, so that nothing waits for it yet; 1 without one."""
    return 1.0 if norm_ptr is None else tl.load(norm_ptr + place)


@triton.jit
def _products(w, x, UNIT: tl.constexpr):
    """[outputs, sums of UNIT products]."""
    return _in_units(w.to(tl.float32) * x[None, :], UNIT)


@triton.jit
def _in_units(x, UNIT: tl.constexpr):
    """Sums of UNIT numbers, which one thread holds, along the last dimension: this saves up to 64 registers."""
    if UNIT > 1:
        x = tl.sum(tl.reshape(x, x.shape[:-1] + [x.shape[-1] // UNIT, UNIT]), len(x.shape))
    return x


@triton.jit
def _before(x_ptr, norm, squares, HAS_NORM: tl.constexpr, UNIT: tl.constexpr):
    """f of some inputs, and the sums of squares so far."""
    x = tl.load(x_ptr).to(tl.float32)
    if HAS_NORM:
        squares += _in_units(x * x, UNIT)
        x = x * norm
    return x, squares
