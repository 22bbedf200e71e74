"""Triton: rows quantized to FP8, with what comes before it; see `octavo.kernels.fp8`."""

from typing import Literal

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.fp8 import LEAST, MOST
from octavo.kernels.gpu.activation import activate
from octavo.kernels.gpu.overlap import OVERLAP, let_next_start, wait_for_last

Kind = Literal["", "norm", "silu", "gelu"]
KINDS: dict[Kind, int] = {"": 0, "norm": 1, "silu": 2, "gelu": 3}
_MOST = tl.constexpr(MOST)
_LEAST = tl.constexpr(LEAST)


def quantize_rows(
    x: Tensor, kind: Kind = "", norm_weight: Tensor | None = None, eps: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Of f(x): x itself, its RMS norm, or act(gate) * up.

    Args:
        x: [rows, size], its rows at one stride; for "silu" and "gelu" (its tanh form) [rows, 2 * size], the gate first.
        norm_weight: [size], for "norm"; None: the norm has no weight.

    Returns: values [rows, size] float8_e4m3fn, scale [rows] float32.
    """
    rows, size = len(x), x.shape[1] // (2 if KINDS[kind] >= 2 else 1)
    values = torch.empty(rows, size, dtype=torch.float8_e4m3fn, device=x.device)
    scale = torch.empty(rows, dtype=torch.float32, device=x.device)
    block = triton.next_power_of_2(size)
    if rows:
        _quantize[(rows,)](
            x, x if norm_weight is None else norm_weight, values, scale, x.stride(0), eps,
            SIZE=size, BLOCK=block, KIND=KINDS[kind], HAS_WEIGHT=norm_weight is not None,
            num_warps=num_warps_of(block), **OVERLAP,
        )  # fmt: skip
    return values, scale


def num_warps_of(block: int) -> int:
    """32 numbers a thread in the longest rows, 16 in most."""
    return min(32 if block > 16384 else 16, max(1, block // 512))


@triton.jit
def _quantize(
    x_ptr, norm_ptr, values_ptr, scale_ptr, stride, eps,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, KIND: tl.constexpr, HAS_WEIGHT: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid: rows."""
    let_next_start(OVERLAP)
    row, place = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    is_in = place < SIZE
    if HAS_WEIGHT:
        norm = tl.load(norm_ptr + place, mask=is_in, other=0.0).to(tl.float32)
    wait_for_last(OVERLAP)
    y = tl.load(x_ptr + row * stride + place, mask=is_in, other=0.0).to(tl.float32)
    if KIND == 1:
        y *= tl.rsqrt(tl.sum(y * y, 0) / SIZE + eps)
        if HAS_WEIGHT:
            y *= norm
    if KIND >= 2:
        up = tl.load(x_ptr + row * stride + SIZE + place, mask=is_in, other=0.0).to(tl.float32)
        y = activate(y, KIND == 3) * up
    most = tl.maximum(tl.max(tl.abs(y), 0), _LEAST)
    values = (y * tl.div_rn(_MOST, most)).to(tl.float8e4nv)
    tl.store(values_ptr + row * SIZE + place, values, mask=is_in)
    tl.store(scale_ptr + row, tl.div_rn(most, _MOST))
