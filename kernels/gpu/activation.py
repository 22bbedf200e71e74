"""Triton: act(gate) * up; see `octavo.kernels.activation`."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.gpu.overlap import OVERLAP, begin

BLOCK = 1024


def gated(gate_up: Tensor, is_gelu: bool) -> Tensor:
    """gate_up: [tokens, 2 * size], contiguous; silu, or gelu by its tanh form. Returns [tokens, size]."""
    tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = torch.empty(tokens, size, dtype=gate_up.dtype, device=gate_up.device)
    _gated[(tokens, triton.cdiv(size, BLOCK))](gate_up, out, size, IS_GELU=is_gelu, BLOCK=BLOCK, num_warps=4, **OVERLAP)
    return out


@triton.jit
def _gated(gate_up_ptr, out_ptr, size, IS_GELU: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    """Grid: tokens, blocks."""
    begin(OVERLAP)
    token, place = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_in = place < size
    gate = tl.load(gate_up_ptr + token * 2 * size + place, mask=is_in, other=0.0).to(tl.float32)
    up = tl.load(gate_up_ptr + token * 2 * size + size + place, mask=is_in, other=0.0).to(tl.float32)
    out = activate(gate, IS_GELU) * up
    tl.store(out_ptr + token * size + place, out.to(out_ptr.dtype.element_ty), mask=is_in)


@triton.jit
def activate(x, IS_GELU: tl.constexpr):
    """silu, or gelu by its tanh form, which is x * sigmoid(2 u); float32."""
    u = x * (1.5957691216057308 + 0.07135481282992444 * x * x) if IS_GELU else x
    return x / (1.0 + tl.exp(-u))
