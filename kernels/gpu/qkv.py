"""Triton: what lies between the QKV product and attention, in one pass: norm of heads, RoPE, and the cache write.

source: `octavo.kernels.rms_norm`, `octavo.kernels.rope` and `octavo.kernels.cache_write` have the formulas
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.fp8 import MOST
from octavo.kernels.gpu.overlap import OVERLAP, let_next_start, wait_for_last

HEADS_AT_ONCE = 8
MANY_TOKENS = 1024
"""From here on one program does all heads of a token: what they share, angles and norm weights, is read once."""
MOST_FP8 = tl.constexpr(MOST)


@dataclass(frozen=True)
class Projection:
    """The product of tokens with a layer's QKV weight, and how it becomes queries, keys and values.

    qkv: [tokens, (heads + 2 * kv_heads) * head_dim], contiguous.
    key_cache, value_cache: [blocks, kv_heads, page, head_dim], contiguous; where new keys and values go.
    cos, sin: [positions, 1, dim], as `octavo.kernels.rope.tables` makes them.
    q_weight, k_weight: [head_dim] of an RMS norm over each head with `eps`; None: no norm.
    k_scale, v_scale: a cache in FP8 holds keys and values divided by them; what is too great becomes its greatest.
    """

    qkv: Tensor
    heads: int
    key_cache: Tensor
    value_cache: Tensor
    cos: Tensor
    sin: Tensor
    interleaved: bool
    q_weight: Tensor | None = None
    k_weight: Tensor | None = None
    eps: float = 0.0
    k_scale: float = 1.0
    v_scale: float = 1.0

    @property
    def constants(self) -> dict[str, int | bool]:
        """Of the kernels that read it."""
        kv_heads, page, head_dim = self.key_cache.shape[1:]
        return {
            "HEADS": self.heads, "KV_HEADS": kv_heads, "DIM": head_dim, "PAGE": page, "TURNED": self.cos.shape[-1],
            "INTERLEAVED": self.interleaved, "HAS_NORM": self.q_weight is not None,
        }  # fmt: skip


def split_qkv(projection: Projection, tables: Tensor, slots: Tensor, positions: Tensor) -> Tensor:
    """Queries for attention; keys and values go into the cache.

    Args:
        tables: [slots, max_blocks] int32.
        slots, positions: [tokens] int32. A token is written to its slot's block for its position. They are read ahead
            of the kernel before: no kernel that is launched to overlap may write them.

    Returns: [tokens, heads, head_dim], turned.
    """
    some, qkv = projection, projection.qkv
    tokens, kv_heads, head_dim = len(qkv), some.key_cache.shape[1], some.key_cache.shape[3]
    q = torch.empty(tokens, some.heads, head_dim, dtype=qkv.dtype, device=qkv.device)
    runs = triton.cdiv(some.heads + 2 * kv_heads, HEADS_AT_ONCE)
    is_many, num_warps = tokens >= MANY_TOKENS, 4 if head_dim > 64 else 2
    _split_qkv[(tokens, 1 if is_many else runs)](
        qkv, q, some.key_cache, some.value_cache, tables, slots, positions, some.cos, some.sin, some.q_weight,
        some.k_weight, some.eps, tables.stride(0), 1 / some.k_scale, 1 / some.v_scale,
        BOX=triton.next_power_of_2(head_dim), AT_ONCE=HEADS_AT_ONCE, RUNS=runs if is_many else 1,
        num_warps=num_warps // 2 if is_many else num_warps, FP8=some.key_cache.itemsize == 1, **some.constants,
        **OVERLAP,
    )  # fmt: skip
    return q


@triton.jit
def _split_qkv(
    qkv_ptr, q_ptr, keys_ptr, values_ptr, tables_ptr, slots_ptr, positions_ptr, cos_ptr, sin_ptr,
    q_weight_ptr, k_weight_ptr, eps, table_stride, k_factor, v_factor,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, BOX: tl.constexpr, TURNED: tl.constexpr,
    PAGE: tl.constexpr, INTERLEAVED: tl.constexpr, HAS_NORM: tl.constexpr, FP8: tl.constexpr, AT_ONCE: tl.constexpr,
    RUNS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid: tokens, runs of AT_ONCE heads of q, k and v in this order; if RUNS is more than 1, it is all of them."""
    let_next_start(OVERLAP)
    token, dim = tl.program_id(0).to(tl.int64), tl.arange(0, BOX)
    other = partner(dim, DIM, TURNED, INTERLEAVED)
    position, slot = tl.load(positions_ptr + token), tl.load(slots_ptr + token).to(tl.int64)
    cos, sin = angles(position, cos_ptr, sin_ptr, dim, TURNED)
    q_norm, q_other = norm_weights(q_weight_ptr, dim, other, DIM, HAS_NORM)
    k_norm, k_other = norm_weights(k_weight_ptr, dim, other, DIM, HAS_NORM)
    wait_for_last(OVERLAP)
    block = tl.load(tables_ptr + slot * table_stride + position // PAGE).to(tl.int64)
    is_dim = (dim < DIM)[None, :]
    for run in tl.static_range(RUNS):
        first = (run if RUNS > 1 else tl.program_id(1)) * AT_ONCE
        head = first + tl.arange(0, AT_ONCE)
        is_q, is_k = head < HEADS, (head >= HEADS) & (head < HEADS + KV_HEADS)
        is_v = (head >= HEADS + KV_HEADS) & (head < HEADS + 2 * KV_HEADS)
        is_live = (head < HEADS + 2 * KV_HEADS)[:, None] & is_dim
        row = qkv_ptr + (token * (HEADS + 2 * KV_HEADS) + head)[:, None] * DIM
        kv_head = tl.where(is_v, head - HEADS - KV_HEADS, head - HEADS)
        place = ((block * KV_HEADS + kv_head) * PAGE + position % PAGE)[:, None] * DIM + dim[None, :]
        x = tl.load(row + dim[None, :], mask=is_live, other=0.0).to(tl.float32)
        if first < HEADS + KV_HEADS:
            y = tl.load(row + other[None, :], mask=is_live, other=0.0).to(tl.float32)
            norm, other_norm = tl.where(is_q[:, None], q_norm, k_norm), tl.where(is_q[:, None], q_other, k_other)
            turned = turn(x, y, norm, other_norm, eps, cos, sin, DIM, HAS_NORM)
            q_place = (token * HEADS + head)[:, None] * DIM + dim[None, :]
            tl.store(q_ptr + q_place, turned.to(q_ptr.dtype.element_ty), mask=is_q[:, None] & is_dim)
            tl.store(keys_ptr + place, as_kept(turned, k_factor, keys_ptr, FP8), mask=is_k[:, None] & is_dim)
        if first + AT_ONCE > HEADS + KV_HEADS:
            tl.store(values_ptr + place, as_kept(x, v_factor, values_ptr, FP8), mask=is_v[:, None] & is_dim)


@triton.jit
def partner(dim, DIM: tl.constexpr, TURNED: tl.constexpr, INTERLEAVED: tl.constexpr):
    """The dimension that each one is turned with."""
    half: tl.constexpr = TURNED // 2
    if INTERLEAVED:
        other = tl.where(dim < TURNED, dim ^ 1, dim)
    elif TURNED == DIM:
        other = (dim + half) % DIM  # in this form the compiler sees that neighbours stay neighbours
    else:
        other = tl.where(dim < TURNED, tl.where(dim < half, dim + half, dim - half), dim)
    return other


@triton.jit
def norm_weights(weight_ptr, dim, other, DIM: tl.constexpr, HAS_NORM: tl.constexpr):
    """Of each dimension and of its partner, [1, dims] each; ones without a norm."""
    if HAS_NORM:
        own = tl.load(weight_ptr + dim, mask=dim < DIM, other=0.0).to(tl.float32)
        its = tl.load(weight_ptr + other, mask=dim < DIM, other=0.0).to(tl.float32)
    else:
        own = tl.full(dim.shape, 1.0, tl.float32)
        its = own
    return own[None, :], its[None, :]


@triton.jit
def angles(position, cos_ptr, sin_ptr, dim, TURNED: tl.constexpr):
    """cos and sin of each dimension at a position, [1, dims] each."""
    place = position.to(tl.int64) * TURNED + dim
    cos = tl.load(cos_ptr + place, mask=dim < TURNED, other=1.0).to(tl.float32)
    sin = tl.load(sin_ptr + place, mask=dim < TURNED, other=0.0).to(tl.float32)
    return cos[None, :], sin[None, :]


@triton.jit
def turn(x, y, weight, other_weight, eps, cos, sin, DIM: tl.constexpr, HAS_NORM: tl.constexpr):
    """Norm and RoPE of heads of one token. x, y: [heads, dims] of the dimensions and of their partners, float32."""
    if HAS_NORM:
        factor = tl.rsqrt(tl.sum(x * x, 1) / DIM + eps)
        x, y = x * factor[:, None] * weight, y * factor[:, None] * other_weight
    return x * cos + y * sin


@triton.jit
def as_kept(x, factor, cache_ptr, FP8: tl.constexpr):
    """A key or value as the cache holds it."""
    if FP8:
        x = tl.clamp(x * factor, -MOST_FP8, MOST_FP8, tl.PropagateNan.ALL)
    return x.to(cache_ptr.dtype.element_ty)
