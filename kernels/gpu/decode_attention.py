"""Triton: attention of one new token a request over its pages; see `octavo.kernels.decode_attention` for the maths.

Flash-decoding: each request's pages are cut into `splits` runs, each of which one program reduces to a partial
output and its log-sum-exp; `_combine` joins them. All heads that share a kv head are columns of one program, so that
keys and values are read once. Pages are read by the tensor memory accelerator: one page of one kv head is one box.

What lies in a page behind a request's end weighs nothing, but it must be a number: a page is zeroed when a request
gets it. To mask the values as well would cost a fifth of the shared memory that keeps loads in flight.

source: Dao et al., Flash-Decoding (2023); Kwon et al. 2023 (PagedAttention), arXiv 2309.06180
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from octavo.kernels.gpu.multiprocessors import NUM_SMS
from octavo.kernels.gpu.overlap import OVERLAP, begin

LOG2_E = 1.4426950408889634
NEVER = tl.constexpr(-1.0e30)  # a score that weighs nothing; finite, so that no difference of two is NaN
PROGRAMS_PER_SM = 2
MOST_PROGRAMS = 128  # of one request: more cost more to join than they gain


def page_boxes(cache: Tensor) -> TensorDescriptor:
    """How the tensor memory accelerator reads a layer's keys or values, one page of one kv head at a time.

    cache: [blocks, kv_heads, page, head_dim], contiguous.
    """
    page, head_dim = cache.shape[2:]
    return TensorDescriptor.from_tensor(cache.view(-1, head_dim), [page, head_dim])


def decode_attention(
    q: Tensor,
    keys: TensorDescriptor,
    values: TensorDescriptor,
    tables: Tensor,
    slots: Tensor,
    positions: Tensor,
    scratch: Tensor,
    out: Tensor,
    kv_heads: int,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> None:
    """One new token a request, whose key and value already lie in the cache.

    Args:
        q: [requests, heads, head_dim], contiguous.
        keys, values: of one layer's cache, see `page_boxes`.
        tables: [slots, max_blocks] int32.
        slots: [requests] int32, each request's row of `tables`.
        positions: [requests] int32, of the new token.
        scratch: float32, at least `scratch_size` elements; overwritten.
        out: as q; overwritten.
    """
    requests, heads, head_dim = q.shape
    splits = num_splits(requests, kv_heads)
    rows = requests * heads * splits
    _decode[(requests, kv_heads, splits)](
        q, keys, values, tables, slots, positions, out, scratch, scratch[rows * head_dim :],
        scale * LOG2_E, (softcap or 0.0) * LOG2_E, tables.stride(0),
        HEADS=heads, KV_HEADS=kv_heads, DIM=head_dim, PAGE=keys.block_shape[0], SPLITS=splits,
        WINDOW=window or 0, SOFTCAP=softcap is not None, STAGES=3, num_warps=4, **OVERLAP,
    )  # fmt: skip
    if splits > 1:
        _combine[(requests * heads,)](
            scratch, scratch[rows * head_dim :], out,
            DIM=head_dim, SPLITS=splits, num_warps=2 if splits * head_dim <= 8192 else 8, **OVERLAP,
        )  # fmt: skip


def num_splits(requests: int, kv_heads: int) -> int:
    """A power of two that gives every multiprocessor some programs, however few requests there are."""
    wanted = max(1, NUM_SMS * PROGRAMS_PER_SM // (requests * kv_heads))
    return min(64, max(1, MOST_PROGRAMS // kv_heads), 1 << (wanted.bit_length() - 1))


def scratch_size(requests: int, heads: int, kv_heads: int, head_dim: int) -> int:
    """Floats that a batch of so many requests, or fewer, needs."""
    return max(n * heads * num_splits(n, kv_heads) * (head_dim + 1) for n in range(1, requests + 1))


@triton.jit
def _decode(
    q_ptr, keys, values, tables_ptr, slots_ptr, positions_ptr, out_ptr, partial_ptr, lse_ptr,
    scale, softcap, table_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, PAGE: tl.constexpr, SPLITS: tl.constexpr,
    WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, STAGES: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid: requests, kv heads, splits. scale is in units of log2, softcap too."""
    begin(OVERLAP)
    GROUP: tl.constexpr = HEADS // KV_HEADS
    ROWS: tl.constexpr = 16 if GROUP <= 16 else triton.next_power_of_2(GROUP)
    request, kv_head, split = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    length = tl.load(positions_ptr + request) + 1
    table = tables_ptr + tl.load(slots_ptr + request).to(tl.int64) * table_stride
    first = tl.maximum(length - WINDOW, 0) if WINDOW else 0
    first_page = first // PAGE
    end_page = tl.cdiv(length, PAGE)
    per_split = tl.cdiv(end_page - first_page, SPLITS)
    low = first_page + split * per_split
    high = tl.minimum(low + per_split, end_page)

    row, dim, offset = tl.arange(0, ROWS), tl.arange(0, DIM), tl.arange(0, PAGE)
    heads = request * HEADS + kv_head * GROUP + row
    q = tl.load(q_ptr + heads[:, None] * DIM + dim[None, :], mask=row[:, None] < GROUP, other=0.0)
    peak = tl.full([ROWS], NEVER, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([DIM, ROWS], tl.float32)
    qt = tl.trans(q)

    # The number of the next page's block is read while this page is: a load that waits for another is not pipelined.
    block = tl.load(table + low, mask=low < high, other=0)
    for page in tl.range(low, high, num_stages=STAGES):
        place = (block * KV_HEADS + kv_head) * PAGE
        block = tl.load(table + page + 1, mask=page + 1 < high, other=0)
        k = keys.load([place, 0])
        scores = tl.dot(k, qt, input_precision="ieee") * scale
        if SOFTCAP:
            # softcap * tanh(x / softcap)
            scores = softcap * (1.0 - 2.0 / (1.0 + tl.exp2(2.0 * 1.4426950408889634 * scores / softcap)))
        seen = (page * PAGE + offset >= first) & (page * PAGE + offset < length)
        scores = tl.where(seen[:, None], scores, NEVER)
        v = values.load([place, 0])
        new_peak = tl.maximum(peak, tl.max(scores, 0))
        weights = tl.exp2(scores - new_peak[None, :])
        shrink = tl.exp2(peak - new_peak)
        total = total * shrink + tl.sum(weights, 0)
        sums = tl.dot(tl.trans(v), weights.to(v.dtype), sums * shrink[None, :], input_precision="ieee")
        peak = new_peak

    divisor = tl.where(total > 0, total, 1.0)
    sums = tl.trans(sums / divisor[None, :])
    if SPLITS == 1:
        tl.store(
            out_ptr + heads[:, None] * DIM + dim[None, :], sums.to(out_ptr.dtype.element_ty), mask=row[:, None] < GROUP
        )
    else:
        place = heads * SPLITS + split
        tl.store(partial_ptr + place.to(tl.int64)[:, None] * DIM + dim[None, :], sums, mask=row[:, None] < GROUP)
        tl.store(lse_ptr + place, tl.where(total > 0, peak + tl.log2(divisor), NEVER), mask=row < GROUP)


@triton.jit
def _combine(partial_ptr, lse_ptr, out_ptr, DIM: tl.constexpr, SPLITS: tl.constexpr, OVERLAP: tl.constexpr):
    """Grid: requests * heads. A split without pages has the log-sum-exp NEVER and weighs nothing."""
    begin(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    split, dim = tl.arange(0, SPLITS), tl.arange(0, DIM)
    lse = tl.load(lse_ptr + row * SPLITS + split)
    weights = tl.exp2(lse - tl.max(lse, 0))
    partial = tl.load(partial_ptr + (row * SPLITS + split)[:, None] * DIM + dim[None, :])
    out = tl.sum(partial * weights[:, None], 0) / tl.sum(weights, 0)
    tl.store(out_ptr + row * DIM + dim, out.to(out_ptr.dtype.element_ty))
