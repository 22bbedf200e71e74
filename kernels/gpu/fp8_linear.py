"""Triton: a linear layer of few rows in FP8; see `octavo.kernels.fp8`.

As for one row, the bytes of the weight are the floor: the tensor cores are there so that more rows cost no more. On
Hopper a product of so few rows is one of float16, to which e4m3 converts exactly, with float32 sums.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.gpu.linear import LEAST_DEPTH
from octavo.kernels.gpu.overlap import OVERLAP, begin

MOST_ROWS = 64  # that one tile of the kernel holds


def fits(rows: int, weight: Tensor) -> bool:
    """Whether `few_rows_linear` is for these."""
    return rows <= MOST_ROWS and weight.shape[1] % LEAST_DEPTH == 0


def few_rows_linear(
    x: tuple[Tensor, Tensor],
    weight: tuple[Tensor, Tensor],
    bias: Tensor | None,
    residual: Tensor | None,
    dtype: torch.dtype,
) -> Tensor:
    """All tensors are contiguous.

    Args:
        x: values [rows, inputs] float8_e4m3fn, scale [rows] float32; rows up to MOST_ROWS.
        weight: values [outputs, inputs], scale [outputs]; inputs a multiple of LEAST_DEPTH.
        bias: [outputs] or None.
        residual: [rows, outputs] or None.

    Returns: [rows, outputs] in `dtype`; sums are float32.
    """
    (values, scale), (weight_values, weight_scale) = x, weight
    rows, (outputs, inputs) = len(values), weight_values.shape
    out = torch.empty(rows, outputs, dtype=dtype, device=values.device)
    padded = max(16, triton.next_power_of_2(rows))
    at_once, depth = tile(padded, outputs, inputs)
    _few_rows[(triton.cdiv(outputs, at_once),)](
        values, scale, weight_values, weight_scale, scale if bias is None else bias,
        scale if residual is None else residual, out, rows, outputs,
        INPUTS=inputs, ROWS=padded, AT_ONCE=at_once, DEPTH=depth,
        HAS_BIAS=bias is not None, HAS_RESIDUAL=residual is not None, STAGES=4, num_warps=4, **OVERLAP,
    )  # fmt: skip
    return out


def tile(rows: int, outputs: int, inputs: int) -> tuple[int, int]:
    """Outputs of one program, and inputs that it takes at a time, for 16, 32 or 64 rows."""
    at_once, depth = (64, 256) if outputs >= 16384 else (32, 512)
    depth = min(depth, 8192 // rows)
    while inputs % depth:
        depth //= 2
    return at_once, depth


@triton.jit(do_not_specialize=["rows"])  # one compiled form for any number of them
def _few_rows(
    x_ptr, x_scale_ptr, weight_ptr, weight_scale_ptr, bias_ptr, residual_ptr, out_ptr, rows, outputs,
    INPUTS: tl.constexpr, ROWS: tl.constexpr, AT_ONCE: tl.constexpr, DEPTH: tl.constexpr, HAS_BIAS: tl.constexpr,
    HAS_RESIDUAL: tl.constexpr, STAGES: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid: runs of AT_ONCE outputs."""
    n = tl.program_id(0) * AT_ONCE + tl.arange(0, AT_ONCE)
    m, depth = tl.arange(0, ROWS), tl.arange(0, DEPTH)
    is_out, is_row = n < outputs, m < rows
    weights = weight_ptr + n.to(tl.int64)[:, None] * INPUTS + depth[None, :]
    xs = x_ptr + m[:, None] * INPUTS + depth[None, :]
    # The first weights are on their way while the kernel before still makes x.
    w = tl.load(weights, mask=is_out[:, None], other=0.0)
    weight_scale = tl.load(weight_scale_ptr + n, mask=is_out, other=0.0)
    begin(OVERLAP)
    x = tl.load(xs, mask=is_row[:, None], other=0.0)
    # Where the tensor cores take FP8 itself (64 rows), they keep 14 bits of a sum: it is added up after each 128.
    sums = tl.dot(x, w.T, max_num_imprecise_acc=128)
    for start in tl.range(DEPTH, INPUTS, DEPTH, num_stages=STAGES):
        w = tl.load(weights + start, mask=is_out[:, None], other=0.0)
        x = tl.load(xs + start, mask=is_row[:, None], other=0.0)
        sums = tl.dot(x, w.T, sums, max_num_imprecise_acc=128)
    y = sums * tl.load(x_scale_ptr + m, mask=is_row, other=0.0)[:, None] * weight_scale[None, :]
    if HAS_BIAS:
        y += tl.load(bias_ptr + n, mask=is_out, other=0.0).to(tl.float32)[None, :]
    places, is_in = m[:, None].to(tl.int64) * outputs + n[None, :], is_row[:, None] & is_out[None, :]
    if HAS_RESIDUAL:
        y += tl.load(residual_ptr + places, mask=is_in, other=0.0).to(tl.float32)
    tl.store(out_ptr + places, y.to(out_ptr.dtype.element_ty), mask=is_in)
