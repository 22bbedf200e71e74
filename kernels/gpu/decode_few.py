"""Triton: attention of few requests that decode, with norm, RoPE and cache write, from the QKV product.

One request leaves memory idle: what counts is how many things wait for each other. So the first page of each part is on
its way while the product before is still computed, for nothing of a step writes to pages but its new tokens, and those
come from the product. Else as `octavo.kernels.gpu.decode_attention`, whose `combine_splits` joins the parts.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from octavo.kernels.gpu.decode_attention import (
    LOG2_E,
    NEVER,
    PER_LOG2,
    attend_page,
    capped,
    combine_splits,
    load_page,
    num_splits,
)
from octavo.kernels.gpu.overlap import OVERLAP, let_next_start, wait_for_last
from octavo.kernels.gpu.qkv import Projection, angles, norm_weights, partner, turn


def decode_few(
    projection: Projection,
    keys: TensorDescriptor,
    values: TensorDescriptor,
    tables: Tensor,
    slots: Tensor,
    positions: Tensor,
    scratch: Tensor,
    out: Tensor,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    slopes: Tensor | None = None,
) -> None:
    """One new token a request; its key and value are written to the cache.

    Args:
        projection: of [requests] tokens, with a cache in their dtype.
        out: [requests, heads, head_dim], contiguous; overwritten.
        keys, values, tables, slots, positions, scratch, sinks, slopes: as for `decode_attention`. tables, slots and
            positions are read ahead of the kernel before: no kernel that is launched to overlap may write them.
    """
    some, (requests, heads, head_dim) = projection, out.shape
    splits, box = num_splits(requests, some.key_cache.shape[1]), keys.block_shape[2]
    lse = scratch[requests * splits * heads * head_dim :]
    _decode_few[(requests, some.key_cache.shape[1], splits)](
        some.qkv, keys, values, some.key_cache, some.value_cache, tables, slots, positions, out, scratch, lse, sinks,
        slopes, some.cos, some.sin, some.q_weight, some.k_weight, some.eps, scale * LOG2_E, (softcap or 0.0) * LOG2_E,
        tables.stride(0), BOX=box, SPLITS=splits, WINDOW=window or 0, SOFTCAP=softcap is not None, STAGES=3,
        num_warps=4, **some.constants, **OVERLAP,
    )  # fmt: skip
    if splits > 1:
        combine_splits(scratch, lse, out, box, splits)


@triton.jit
def _decode_few(
    qkv_ptr, keys, values, keys_ptr, values_ptr, tables_ptr, slots_ptr, positions_ptr, out_ptr, partial_ptr, lse_ptr,
    sinks_ptr, slopes_ptr, cos_ptr, sin_ptr, q_weight_ptr, k_weight_ptr, eps, scale, softcap, table_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, BOX: tl.constexpr, PAGE: tl.constexpr,
    SPLITS: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, TURNED: tl.constexpr,
    INTERLEAVED: tl.constexpr, HAS_NORM: tl.constexpr, STAGES: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid: requests, kv heads, splits of the pages behind which the new token comes. In units of log2."""
    let_next_start(OVERLAP)
    GROUP: tl.constexpr = HEADS // KV_HEADS
    ROWS: tl.constexpr = 16 if GROUP <= 16 else triton.next_power_of_2(GROUP)
    request, kv_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    position = tl.load(positions_ptr + request)
    table = tables_ptr + tl.load(slots_ptr + request).to(tl.int64) * table_stride
    first, low, high = _pages_of(part, position, PAGE, SPLITS, WINDOW)
    row, dim = tl.arange(0, ROWS), tl.arange(0, BOX)
    is_head, is_dim, head = row < GROUP, (dim < DIM)[None, :], kv_head * GROUP + row
    partial = (request * SPLITS + part).to(tl.int64) * HEADS + head
    if (part > 0) & (low >= high):  # leaves the multiprocessor to the kernel behind
        wait_for_last(OVERLAP)
        tl.store(lse_ptr + partial, tl.full([ROWS], NEVER, tl.float32), mask=is_head)
        return
    # Of a part without pages, behind whose end the new token begins a page, this loads nothing.
    block, start = tl.load(table + low), tl.minimum(position - low * PAGE - PAGE, 0)
    page_k = load_page(keys, block * KV_HEADS + kv_head, start)
    page_v = load_page(values, block * KV_HEADS + kv_head, start)
    other = partner(dim, DIM, TURNED, INTERLEAVED)
    cos, sin = angles(position, cos_ptr, sin_ptr, dim, TURNED)
    q_norm, q_other = norm_weights(q_weight_ptr, dim, other, DIM, HAS_NORM)
    k_norm, k_other = norm_weights(k_weight_ptr, dim, other, DIM, HAS_NORM)
    new_block = tl.load(table + position // PAGE).to(tl.int64)
    wait_for_last(OVERLAP)

    # The new key and value in every row: so no thread waits for another to compare them with the row's query.
    qkv_ptr += request.to(tl.int64) * ((HEADS + 2 * KV_HEADS) * DIM)
    own = HEADS + kv_head + 0 * row
    x, y = _heads(qkv_ptr, head, is_head, dim, other, DIM)
    new_x, new_y = _heads(qkv_ptr, own, row >= 0, dim, other, DIM)
    new_v = tl.load(qkv_ptr + (own + KV_HEADS)[:, None] * DIM + dim[None, :], mask=is_dim, other=0.0)
    tl.debug_barrier()  # else the assembler begins the last of these loads when it has used the first
    q = turn(x, y, q_norm, q_other, eps, cos, sin, DIM, HAS_NORM).to(qkv_ptr.dtype.element_ty)
    new_k = turn(new_x, new_y, k_norm, k_other, eps, cos, sin, DIM, HAS_NORM).to(new_v.dtype)
    place = ((new_block * KV_HEADS + kv_head) * PAGE + position % PAGE) * DIM + 0 * row[:, None] + dim[None, :]
    tl.store(keys_ptr + place, new_k, mask=is_dim & (row == 0)[:, None] & (part == 0))
    tl.store(values_ptr + place, new_v, mask=is_dim & (row == 0)[:, None] & (part == 0))

    score, peak, total = _new_token(q, new_k, part, sinks_ptr, head, is_head, scale, softcap, SOFTCAP)
    peak, total, sums = _pages(
        q, page_k, page_v, keys, values, table, kv_head, low, high, first, position,
        slopes_ptr + head if slopes_ptr is not None else None, is_head, scale, softcap, peak, total,
        tl.zeros([BOX, ROWS], tl.float32), KV_HEADS, PAGE, SOFTCAP, STAGES,
    )  # fmt: skip
    divisor = tl.where(total > 0, total, 1.0)
    sums = (tl.trans(sums) + tl.exp2(score - peak)[:, None] * new_v.to(tl.float32)) / divisor[:, None]
    place = (partial if SPLITS > 1 else request.to(tl.int64) * HEADS + head)[:, None] * DIM + dim[None, :]
    if SPLITS == 1:
        tl.store(out_ptr + place, sums.to(out_ptr.dtype.element_ty), mask=is_head[:, None] & is_dim)
    else:
        tl.store(partial_ptr + place, sums, mask=is_head[:, None] & is_dim)
        tl.store(lse_ptr + partial, tl.where(total > 0, peak + tl.log2(divisor), NEVER), mask=is_head)


@triton.jit
def _pages_of(part, position, PAGE: tl.constexpr, SPLITS: tl.constexpr, WINDOW: tl.constexpr):
    """The first position that is seen, and a part's first page and the one behind its last."""
    first = tl.maximum(position + 1 - WINDOW, 0) if WINDOW else 0
    per_split = tl.cdiv(tl.cdiv(position, PAGE) - first // PAGE, SPLITS)
    low = first // PAGE + part * per_split
    return first, low, tl.minimum(low + per_split, tl.cdiv(position, PAGE))


@triton.jit
def _new_token(q, new_k, part, sinks_ptr, head, is_head, scale, softcap, SOFTCAP: tl.constexpr):
    """Its score in the first part, where the softmax begins with it: [ROWS] each, the score, the peak and the total.

    A sink is one more key, without a value.
    """
    score = tl.sum(q.to(tl.float32) * new_k.to(tl.float32), 1) * scale
    if SOFTCAP:
        score = capped(score, softcap)
    score = tl.where(part == 0, score, NEVER)
    peak, total = score, tl.where(score > NEVER, 1.0, 0.0)
    if sinks_ptr is not None:
        sink = tl.load(sinks_ptr + head, mask=is_head & (part == 0), other=NEVER / PER_LOG2) * PER_LOG2
        peak = tl.maximum(score, sink)
        total = tl.where(score > NEVER, tl.exp2(score - peak) + tl.exp2(sink - peak), 0.0)
    return score, peak, total


@triton.jit
def _pages(
    q, page_k, page_v, keys, values, table, kv_head, low, high, first, position, slopes, is_head, scale, softcap,
    peak, total, sums,
    KV_HEADS: tl.constexpr, PAGE: tl.constexpr, SOFTCAP: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The softmax goes on over the page that is there already and those behind it."""
    offset, qt = tl.arange(0, PAGE), tl.trans(q)
    others = low * PAGE + tl.minimum(position - low * PAGE - PAGE, 0) + offset
    # Values must not go from shared memory to the tensor cores unmasked here: ptxas 12.8 then takes the other operand's
    # address from a register that nothing has written.
    peak, total, sums = attend_page(
        page_k, page_v, qt, (others >= low * PAGE) & (others >= first) & (others < position), others - position, slopes,
        is_head, scale, softcap, peak, total, sums, SOFTCAP, False, True,
    )  # fmt: skip
    block = tl.load(table + low + 1, mask=low + 1 < high, other=0)
    for page in tl.range(low + 1, high, num_stages=STAGES):
        place, start = block * KV_HEADS + kv_head, tl.minimum(position - page * PAGE - PAGE, 0)
        block = tl.load(table + page + 1, mask=page + 1 < high, other=0)
        others = page * PAGE + start + offset
        seen = (others >= page * PAGE) & (others >= first) & (others < position)
        peak, total, sums = attend_page(
            load_page(keys, place, start), load_page(values, place, start), qt, seen, others - position, slopes,
            is_head, scale, softcap, peak, total, sums, SOFTCAP, False, False,
        )  # fmt: skip
    return peak, total, sums


@triton.jit
def _heads(qkv_ptr, head, is_head, dim, other, DIM: tl.constexpr):
    """Heads of a token's product, and the same with partners in place of dimensions, [heads, dims] float32 each."""
    is_live = is_head[:, None] & (dim < DIM)[None, :]
    x = tl.load(qkv_ptr + head[:, None] * DIM + dim[None, :], mask=is_live, other=0.0)
    y = tl.load(qkv_ptr + head[:, None] * DIM + other[None, :], mask=is_live, other=0.0)
    return x.to(tl.float32), y.to(tl.float32)
