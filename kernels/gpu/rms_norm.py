"""Triton: RMS norm of rows; see `octavo.kernels.rms_norm`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.gpu.overlap import OVERLAP, let_next_start, wait_for_last


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    """x: [..., size], its rows at one stride; weight: [size] or None."""
    rows = x if x.dim() == 2 else x.flatten(0, -2)
    size = rows.shape[1]
    out = torch.empty(rows.shape, dtype=x.dtype, device=x.device)
    block = triton.next_power_of_2(size)
    _rms_norm[(len(rows),)](
        rows, weight if weight is not None else x, out, rows.stride(0), eps,
        SIZE=size, BLOCK=block, HAS_WEIGHT=weight is not None, num_warps=min(8, max(1, block // 512)), **OVERLAP,
    )  # fmt: skip
    return out.view(x.shape)


@triton.jit
def _rms_norm(
    x_ptr, weight_ptr, out_ptr, stride, eps,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, HAS_WEIGHT: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid: rows."""
    let_next_start(OVERLAP)
    row, place = tl.program_id(0).to(tl.int64), tl.arange(0, BLOCK)
    is_in = place < SIZE
    if HAS_WEIGHT:  # nothing writes it, so it comes while x is still made
        weight = tl.load(weight_ptr + place, mask=is_in, other=0.0).to(tl.float32)
    wait_for_last(OVERLAP)
    x = tl.load(x_ptr + row * stride + place, mask=is_in, other=0.0).to(tl.float32)
    y = x * tl.rsqrt(tl.sum(x * x, 0) / SIZE + eps)
    if HAS_WEIGHT:
        y *= weight
    tl.store(out_ptr + row * SIZE + place, y.to(out_ptr.dtype.element_ty), mask=is_in)
