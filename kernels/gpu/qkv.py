"""Triton: what lies between the QKV product and attention, in one pass: norm of heads, RoPE, and the cache write.

source: `octavo.kernels.rms_norm`, `octavo.kernels.rope` and `octavo.kernels.cache_write` have the formulas
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.fp8 import MOST
from octavo.kernels.gpu.overlap import OVERLAP, begin

HEADS_AT_ONCE = 8
MOST_FP8 = tl.constexpr(MOST)


def split_qkv(
    qkv: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    tables: Tensor,
    slots: Tensor,
    positions: Tensor,
    heads: int,
    cos: Tensor,
    sin: Tensor,
    interleaved: bool,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float = 0.0,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> Tensor:
    """Queries for attention; keys and values go into the cache.

    Args:
        qkv: [tokens, (heads + 2 * kv_heads) * head_dim], contiguous.
        key_cache, value_cache: [blocks, kv_heads, page, head_dim], contiguous; changed in place.
        tables: [slots, max_blocks] int32.
        slots, positions: [tokens] int32. A token is written to its slot's block for its position.
        cos, sin: [positions, 1, dim], as `octavo.kernels.rope.tables` makes them.
        q_weight, k_weight: [head_dim] of an RMS norm over each head with `eps`; None: no norm.
        k_scale, v_scale: a cache in FP8 holds keys and values divided by them; greater ones than it has become its
            greatest.

    Returns: [tokens, heads, head_dim], turned.
    """
    tokens, head_dim = len(qkv), key_cache.shape[3]
    kv_heads, page = key_cache.shape[1:3]
    q = torch.empty(tokens, heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    _split_qkv[(tokens, triton.cdiv(heads + 2 * kv_heads, HEADS_AT_ONCE))](
        qkv, q, key_cache, value_cache, tables, slots, positions, cos, sin,
        q_weight if q_weight is not None else qkv, k_weight if k_weight is not None else qkv, eps, tables.stride(0),
        1 / k_scale, 1 / v_scale, HEADS=heads, KV_HEADS=kv_heads, DIM=head_dim, BOX=triton.next_power_of_2(head_dim),
        TURNED=cos.shape[-1], PAGE=page, INTERLEAVED=interleaved, HAS_NORM=q_weight is not None,
        FP8=key_cache.itemsize == 1, AT_ONCE=HEADS_AT_ONCE, num_warps=4 if head_dim > 64 else 2,
        **OVERLAP,
    )  # fmt: skip
    return q


@triton.jit
def _split_qkv(
    qkv_ptr, q_ptr, keys_ptr, values_ptr, tables_ptr, slots_ptr, positions_ptr, cos_ptr, sin_ptr,
    q_weight_ptr, k_weight_ptr, eps, table_stride, k_factor, v_factor,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, BOX: tl.constexpr, TURNED: tl.constexpr,
    PAGE: tl.constexpr, INTERLEAVED: tl.constexpr, HAS_NORM: tl.constexpr, FP8: tl.constexpr, AT_ONCE: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid: tokens, groups of AT_ONCE heads of q, k and v in this order."""
    begin(OVERLAP)
    token = tl.program_id(0).to(tl.int64)
    head, dim = tl.program_id(1) * AT_ONCE + tl.arange(0, AT_ONCE), tl.arange(0, BOX)
    is_q, is_k = head < HEADS, (head >= HEADS) & (head < HEADS + KV_HEADS)
    is_v = (head >= HEADS + KV_HEADS) & (head < HEADS + 2 * KV_HEADS)
    is_dim = dim < DIM
    is_live = (head < HEADS + 2 * KV_HEADS)[:, None] & is_dim[None, :]
    # The dimension that each one is turned with.
    half: tl.constexpr = TURNED // 2
    if INTERLEAVED:
        other = tl.where(dim < TURNED, dim ^ 1, dim)
    elif TURNED == DIM:
        other = (dim + half) % DIM  # in this form the compiler sees that neighbours stay neighbours
    else:
        other = tl.where(dim < TURNED, tl.where(dim < half, dim + half, dim - half), dim)
    row = qkv_ptr + (token * (HEADS + 2 * KV_HEADS) + head)[:, None] * DIM
    x = tl.load(row + dim[None, :], mask=is_live, other=0.0).to(tl.float32)
    y = tl.load(row + other[None, :], mask=is_live, other=0.0).to(tl.float32)
    position = tl.load(positions_ptr + token)
    cos = tl.load(cos_ptr + position.to(tl.int64) * TURNED + dim, mask=dim < TURNED, other=1.0).to(tl.float32)
    sin = tl.load(sin_ptr + position.to(tl.int64) * TURNED + dim, mask=dim < TURNED, other=0.0).to(tl.float32)
    turned_x, turned_y = x, y
    if HAS_NORM:
        factor = tl.rsqrt(tl.sum(x * x, 1) / DIM + eps)
        q_weight = tl.load(q_weight_ptr + dim, mask=is_dim, other=0.0).to(tl.float32)
        k_weight = tl.load(k_weight_ptr + dim, mask=is_dim, other=0.0).to(tl.float32)
        q_other = tl.load(q_weight_ptr + other, mask=is_dim, other=0.0).to(tl.float32)
        k_other = tl.load(k_weight_ptr + other, mask=is_dim, other=0.0).to(tl.float32)
        turned_x = x * factor[:, None] * tl.where(is_q[:, None], q_weight[None, :], k_weight[None, :])
        turned_y = y * factor[:, None] * tl.where(is_q[:, None], q_other[None, :], k_other[None, :])
    turned = turned_x * cos[None, :] + turned_y * sin[None, :]
    q_place = (token * HEADS + head)[:, None] * DIM + dim[None, :]
    tl.store(q_ptr + q_place, turned.to(q_ptr.dtype.element_ty), mask=is_q[:, None] & is_dim[None, :])
    block = tl.load(tables_ptr + tl.load(slots_ptr + token).to(tl.int64) * table_stride + position // PAGE).to(tl.int64)
    kv_head = tl.where(is_v, head - HEADS - KV_HEADS, head - HEADS)
    place = ((block * KV_HEADS + kv_head) * PAGE + position % PAGE)[:, None] * DIM + dim[None, :]
    if FP8:
        turned = tl.clamp(turned * k_factor, -MOST_FP8, MOST_FP8, tl.PropagateNan.ALL)
        x = tl.clamp(x * v_factor, -MOST_FP8, MOST_FP8, tl.PropagateNan.ALL)
    tl.store(keys_ptr + place, turned.to(keys_ptr.dtype.element_ty), mask=is_k[:, None] & is_dim[None, :])
    tl.store(values_ptr + place, x.to(values_ptr.dtype.element_ty), mask=is_v[:, None] & is_dim[None, :])
