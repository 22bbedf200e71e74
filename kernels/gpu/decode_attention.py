"""Triton: attention of one new token a request over its pages; see `octavo.kernels.decode_attention` for the maths.

Flash-decoding: one program reduces a run of a request's pages to a partial output and its log-sum-exp; these are joined
afterwards, and a request that is one run is written at once. All heads that share a kv head are columns of one program,
so that keys and values are read once. Pages are read by the tensor memory accelerator: one page of one kv head is one
box, as wide as a power of two. What of a box lies beyond the head, or before the page's first token, is read as zeros
and is not fetched: so the box of a request's last page begins as far before the page as the request's end is before the
page's.

There are two ways to cut. With a work list (`octavo.kernels.gpu.work_list`) runs are of about equal work, a run that
several requests begin with is read once for all of them, and the program that ends last of a request joins its runs.
Without, every request is cut into as many runs, by the size of the batch alone, and `combine_splits` joins them.

Of a cache in FP8 (e4m3) keys and values become float16, which takes one instruction for two of them; to bfloat16 the
way leads through float32.

source: Dao et al., Flash-Decoding (2023); Kwon et al. 2023 (PagedAttention), arXiv 2309.06180
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from octavo.kernels.gpu.hardware import NUM_SMS, box_width
from octavo.kernels.gpu.overlap import OVERLAP, begin
from octavo.kernels.gpu.work_list import (
    PROGRAMS_PER_SM,
    WORDS,
    WorkList,
    most_partials,
    most_parts,
    most_together,
)

LOG2_E = 1.4426950408889634
NEVER = tl.constexpr(-1.0e30)  # a score that weighs nothing; finite, so that no difference of two is NaN
PER_LOG2 = tl.constexpr(LOG2_E)
FLOATS_AT_ONCE = 4096  # of partial outputs, while they are joined: 32 registers a thread
MOST_ROWS = 2**31  # that the tensor memory accelerator counts to


def page_boxes(cache: Tensor) -> TensorDescriptor:
    """How the tensor memory accelerator reads a layer's keys or values, one page of one kv head at a time.

    cache: [blocks, kv_heads, page, head_dim], contiguous. Raises ValueError if it has more rows than can be named.
    """
    page, head_dim = cache.shape[2:]
    rows = cache.numel() // head_dim
    if rows >= MOST_ROWS:
        raise ValueError(f"a layer's KV cache has {rows} rows; kernels count to {MOST_ROWS - 1}: lower --num-kv-blocks")
    return TensorDescriptor.from_tensor(cache.view(-1, page, head_dim), [1, page, box_width(head_dim)])


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
    sinks: Tensor | None = None,
    slopes: Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
    work: WorkList | None = None,
) -> None:
    """One new token a request, whose key and value already lie in the cache.

    Args:
        q: [requests, heads, head_dim], contiguous.
        keys, values: of one layer's cache, see `page_boxes`; in FP8 they are what was divided by k_scale and v_scale.
        tables: [slots, max_blocks] int32.
        slots: [requests] int32, each request's row of `tables`.
        positions: [requests] int32, of the new token.
        scratch: float32, at least `scratch_size` elements; overwritten.
        out: as q; overwritten.
        sinks, slopes: [heads] float32, see `octavo.kernels.decode_attention`.
        work: of these requests and this window; None: all are cut alike.
    """
    requests, heads, head_dim = q.shape
    _, page, box = keys.block_shape
    items = num_items = parts = counters = None
    if work is None:
        splits, together = num_splits(requests, kv_heads), 1
        num_partials, grid = requests * splits, (requests, kv_heads, splits)
    else:
        splits, together = 0, work.together
        items, num_items, parts, counters = work.items, work.num_items, work.parts, work.counters
        num_partials, grid = most_partials(requests, kv_heads, together), (kv_heads, len(items), 1)
        if work.is_sparse:
            grid = (min(kv_heads * len(items), PROGRAMS_PER_SM * NUM_SMS), 1, 1)
    lse = scratch[num_partials * heads * head_dim :]
    _decode[grid](
        q, keys, values, tables, slots, positions, items, num_items, parts, counters, out, scratch, lse, sinks, slopes,
        scale * k_scale * LOG2_E, v_scale, (softcap or 0.0) * LOG2_E, tables.stride(0),
        HEADS=heads, KV_HEADS=kv_heads, DIM=head_dim, BOX=box, PAGE=page, SPLITS=splits, TOGETHER=together,
        SPARSE=work is not None and work.is_sparse, WINDOW=window or 0, SOFTCAP=softcap is not None,
        FP8=keys.base.itemsize == 1, AT_ONCE=FLOATS_AT_ONCE, STAGES=3, num_warps=4, **OVERLAP,
    )  # fmt: skip
    if splits > 1:
        combine_splits(scratch, lse, out[:requests], box, splits)


def combine_splits(partial: Tensor, lse: Tensor, out: Tensor, box: int, splits: int) -> None:
    """The outputs and log-sum-exps of all splits, joined to out, [requests, heads, head_dim]."""
    requests, heads, head_dim = out.shape
    floats = splits * box
    _combine[(requests * heads,)](
        partial, lse, out, HEADS=heads, DIM=head_dim, BOX=box, SPLITS=splits,
        num_warps=1 if floats <= 2048 else 2 if floats <= 8192 else 8, **OVERLAP,
    )  # fmt: skip


def num_splits(requests: int, kv_heads: int) -> int:
    """A power of two that gives every multiprocessor some programs; the same up to the next power of two requests."""
    wanted = max(1, NUM_SMS * PROGRAMS_PER_SM // (kv_heads << (requests - 1).bit_length()))
    return 1 << (min(wanted, most_parts(kv_heads)).bit_length() - 1)


def scratch_size(requests: int, heads: int, kv_heads: int, head_dim: int) -> int:
    """Floats that a batch of so many requests, or fewer, needs."""
    even = max(n * num_splits(n, kv_heads) for n in range(1, requests + 1))
    listed = max(most_partials(requests, kv_heads, n) for n in (1, most_together(heads, kv_heads)))
    return max(even, listed) * heads * (head_dim + 1)


@triton.jit
def _decode(
    q_ptr, keys, values, tables_ptr, slots_ptr, positions_ptr, items_ptr, num_items_ptr, parts_ptr, counters_ptr,
    out_ptr, partial_ptr, lse_ptr, sinks_ptr, slopes_ptr, scale, v_scale, softcap, table_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, BOX: tl.constexpr, PAGE: tl.constexpr,
    SPLITS: tl.constexpr, TOGETHER: tl.constexpr, SPARSE: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr,
    FP8: tl.constexpr, AT_ONCE: tl.constexpr, STAGES: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid: requests, kv heads, splits; with a work list (SPLITS is 0) kv heads, items, a program each. With a sparse
    one as many programs as run at once, which take one after another. In units of log2."""
    begin(OVERLAP)
    if SPARSE:
        for index in range(tl.program_id(0), tl.load(num_items_ptr) * KV_HEADS, tl.num_programs(0)):
            _attend_listed(
                q_ptr, keys, values, tables_ptr, items_ptr, parts_ptr, counters_ptr, out_ptr, partial_ptr, lse_ptr,
                sinks_ptr, slopes_ptr, index % KV_HEADS, index // KV_HEADS, scale, v_scale, softcap, table_stride,
                HEADS, KV_HEADS, DIM, BOX, PAGE, SPLITS, TOGETHER, WINDOW, SOFTCAP, FP8, AT_ONCE, STAGES,
            )  # fmt: skip
    elif SPLITS == 0:
        if tl.program_id(1) < tl.load(num_items_ptr):
            _attend_listed(
                q_ptr, keys, values, tables_ptr, items_ptr, parts_ptr, counters_ptr, out_ptr, partial_ptr, lse_ptr,
                sinks_ptr, slopes_ptr, tl.program_id(0), tl.program_id(1), scale, v_scale, softcap, table_stride,
                HEADS, KV_HEADS, DIM, BOX, PAGE, SPLITS, TOGETHER, WINDOW, SOFTCAP, FP8, AT_ONCE, STAGES,
            )  # fmt: skip
    else:
        request, kv_head, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
        slot, length = tl.load(slots_ptr + request), tl.load(positions_ptr + request) + 1
        first_page = (tl.maximum(length - WINDOW, 0) if WINDOW else 0) // PAGE
        end_page = tl.cdiv(length, PAGE)
        per_split = tl.cdiv(end_page - first_page, SPLITS)
        low = first_page + part * per_split
        _attend_item(
            q_ptr, keys, values, tables_ptr, parts_ptr, counters_ptr, out_ptr, partial_ptr, lse_ptr, sinks_ptr,
            slopes_ptr, request, 1, slot, kv_head, part, length, low, tl.minimum(low + per_split, end_page),
            scale, v_scale, softcap, table_stride,
            HEADS, KV_HEADS, DIM, BOX, PAGE, SPLITS, TOGETHER, WINDOW, SOFTCAP, FP8, AT_ONCE, STAGES,
        )  # fmt: skip


@triton.jit
def _attend_listed(
    q_ptr, keys, values, tables_ptr, items_ptr, parts_ptr, counters_ptr, out_ptr, partial_ptr, lse_ptr, sinks_ptr,
    slopes_ptr, kv_head, item, scale, v_scale, softcap, table_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, BOX: tl.constexpr, PAGE: tl.constexpr,
    SPLITS: tl.constexpr, TOGETHER: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, FP8: tl.constexpr,
    AT_ONCE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """An item of a work list."""
    words = items_ptr + item * WORDS
    request, slot, length = tl.load(words), tl.load(words + 1), tl.load(words + 2)
    low, high, part, members = tl.load(words + 3), tl.load(words + 4), tl.load(words + 5), tl.load(words + 6)
    _attend_item(
        q_ptr, keys, values, tables_ptr, parts_ptr, counters_ptr, out_ptr, partial_ptr, lse_ptr, sinks_ptr, slopes_ptr,
        request, members, slot, kv_head, part, length, low, high, scale, v_scale, softcap, table_stride,
        HEADS, KV_HEADS, DIM, BOX, PAGE, SPLITS, TOGETHER, WINDOW, SOFTCAP, FP8, AT_ONCE, STAGES,
    )  # fmt: skip


@triton.jit
def _attend_item(
    q_ptr, keys, values, tables_ptr, parts_ptr, counters_ptr, out_ptr, partial_ptr, lse_ptr, sinks_ptr, slopes_ptr,
    request, members, slot, kv_head, part, length, low, high, scale, v_scale, softcap, table_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, BOX: tl.constexpr, PAGE: tl.constexpr,
    SPLITS: tl.constexpr, TOGETHER: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, FP8: tl.constexpr,
    AT_ONCE: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The pages from low to high for `members` requests from `request` on; of each of them its n-th part, n = part.

    Where they are several, they all see all of these pages, and each has another part.
    """
    GROUP: tl.constexpr = HEADS // KV_HEADS
    ROWS: tl.constexpr = 16 if GROUP * TOGETHER <= 16 else triton.next_power_of_2(GROUP * TOGETHER)
    row, dim = tl.arange(0, ROWS), tl.arange(0, BOX)
    owner = request + row // GROUP
    is_head = row < GROUP * members
    head = kv_head * GROUP + row % GROUP
    is_live = is_head[:, None] & (dim < DIM)[None, :]
    place = (owner.to(tl.int64) * HEADS + head)[:, None] * DIM + dim[None, :]
    peak, total, sums = _attend_pages(
        tl.load(q_ptr + place, mask=is_live, other=0.0), keys, values,
        tables_ptr + slot.to(tl.int64) * table_stride, kv_head, low, high,
        tl.maximum(length - WINDOW, 0) if WINDOW else 0, length, part == 0,
        sinks_ptr + head if sinks_ptr is not None else None, slopes_ptr + head if slopes_ptr is not None else None,
        is_head, scale, softcap, KV_HEADS, BOX, PAGE, ROWS, SOFTCAP, FP8, STAGES,
    )  # fmt: skip
    divisor = tl.where(total > 0, total, 1.0)
    sums = tl.trans(sums / divisor[None, :]) * v_scale
    num = SPLITS if SPLITS > 0 else tl.load(parts_ptr + request * 2 + 1)
    if num == 1:
        tl.store(out_ptr + place, sums.to(out_ptr.dtype.element_ty), mask=is_live)
    else:
        first = owner * SPLITS if SPLITS > 0 else tl.load(parts_ptr + owner * 2, mask=is_head, other=0)
        partial = (first + part).to(tl.int64) * HEADS + head
        tl.store(partial_ptr + partial[:, None] * DIM + dim[None, :], sums, mask=is_live)
        tl.store(lse_ptr + partial, tl.where(total > 0, peak + tl.log2(divisor), NEVER), mask=is_head)
        if SPLITS == 0:
            tl.debug_barrier()  # so that the releases below cover the stores of all threads
            for member in range(members):
                each = request + member
                first_part, num = tl.load(parts_ptr + each * 2), tl.load(parts_ptr + each * 2 + 1)
                counter = counters_ptr + each * KV_HEADS + kv_head
                if tl.atomic_add(counter, 1, sem="acq_rel", scope="gpu") == num - 1:
                    tl.store(counter, 0)
                    _join(
                        each, kv_head, first_part, num, partial_ptr, lse_ptr, out_ptr,
                        HEADS, GROUP, DIM, BOX, AT_ONCE,
                    )  # fmt: skip


@triton.jit
def _attend_pages(
    q, keys, values, table, kv_head, low, high, first, length, is_first_part, sinks, slopes, is_head, scale, softcap,
    KV_HEADS: tl.constexpr, BOX: tl.constexpr, PAGE: tl.constexpr, ROWS: tl.constexpr, SOFTCAP: tl.constexpr,
    FP8: tl.constexpr, STAGES: tl.constexpr,
):  # fmt: skip
    """The softmax over the pages from low to high: its peak and total of each row, and the sums of values, [BOX, ROWS].

    A sink is a key of the first part that has no value.
    """
    offset = tl.arange(0, PAGE)
    peak = tl.full([ROWS], NEVER, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    if sinks is not None:
        has_sink = is_head & is_first_part
        peak = tl.load(sinks, mask=has_sink, other=NEVER / PER_LOG2) * PER_LOG2
        total = tl.where(has_sink, 1.0, 0.0)
    sums = tl.zeros([BOX, ROWS], tl.float32)
    qt = tl.trans(q.to(tl.float16) if FP8 else q)

    # The number of the next page's block is read while this page is: a load that waits for another is not pipelined.
    block = tl.load(table + low, mask=low < high, other=0)
    for page in tl.range(low, high, num_stages=STAGES):
        place, start = block * KV_HEADS + kv_head, tl.minimum(length - page * PAGE - PAGE, 0)
        block = tl.load(table + page + 1, mask=page + 1 < high, other=0)
        position = page * PAGE + start + offset
        seen = (position >= page * PAGE) & (position >= first) & (position < length)
        peak, total, sums = attend_page(
            load_page(keys, place, start), load_page(values, place, start), qt, seen, position - length + 1, slopes,
            is_head, scale, softcap, peak, total, sums, SOFTCAP, FP8, False,
        )  # fmt: skip
    return peak, total, sums


@triton.jit
def load_page(boxes, place, start):
    """The tokens of a page from start on, as many as a page has: zeros before its first and behind its last one."""
    return tl.reshape(boxes.load([place, start, 0]), [boxes.block_shape[1], boxes.block_shape[2]])


@triton.jit
def attend_page(
    k, v, qt, seen, distance, slopes, is_head, scale, softcap, peak, total, sums,
    SOFTCAP: tl.constexpr, FP8: tl.constexpr, MASKS_VALUES: tl.constexpr,
):  # fmt: skip
    """The softmax over one more page, k and v [PAGE, BOX]. seen: [PAGE]; distance: [PAGE], from the query, <= 0.

    Something must be seen of it, or peak be a score. MASKS_VALUES: what is not seen may be no number.
    """
    scores = tl.dot(k.to(tl.float16) if FP8 else k, qt, input_precision="ieee") * scale
    if SOFTCAP:
        scores = capped(scores, softcap)
    if slopes is not None:
        slope = tl.load(slopes, mask=is_head, other=0.0) * PER_LOG2
        scores += slope[None, :] * distance.to(tl.float32)[:, None]
    scores = tl.where(seen[:, None], scores, NEVER)
    v = v.to(tl.float16) if FP8 else v
    new_peak = tl.maximum(peak, tl.max(scores, 0))
    weights = tl.exp2(scores - new_peak[None, :])
    if MASKS_VALUES:
        v = tl.where(seen[:, None], v, 0.0)
    shrink = tl.exp2(peak - new_peak)
    total = total * shrink + tl.sum(weights, 0)
    sums = tl.dot(tl.trans(v), weights.to(v.dtype), sums * shrink[None, :], input_precision="ieee")
    return new_peak, total, sums


@triton.jit
def capped(scores, softcap):
    """softcap * tanh(scores / softcap), in units of log2."""
    return softcap * (1.0 - 2.0 / (1.0 + tl.exp2(scores * (2.0 * PER_LOG2) / softcap)))


@triton.jit
def _join(
    request, kv_head, first, num, partial_ptr, lse_ptr, out_ptr,
    HEADS: tl.constexpr, GROUP: tl.constexpr, DIM: tl.constexpr, BOX: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """The outputs of all parts of a request, weighted; past the first cache, for other programs have written them."""
    ROWS: tl.constexpr = triton.next_power_of_2(GROUP)
    PARTS: tl.constexpr = AT_ONCE // (ROWS * BOX) if AT_ONCE >= ROWS * BOX else 1
    row, dim = tl.arange(0, ROWS), tl.arange(0, BOX)
    head = kv_head * GROUP + row
    is_live = (row < GROUP)[:, None] & (dim < DIM)[None, :]
    peak = tl.full([ROWS], NEVER, tl.float32)
    total = tl.zeros([ROWS], tl.float32)
    sums = tl.zeros([ROWS, BOX], tl.float32)
    for start in range(0, num, PARTS):
        part = start + tl.arange(0, PARTS)
        place = (first + part).to(tl.int64)[:, None] * HEADS + head[None, :]
        is_part = (part < num)[:, None] & (row < GROUP)[None, :]
        lse = tl.load(lse_ptr + place, mask=is_part, other=NEVER, cache_modifier=".cg")
        partial = tl.load(
            partial_ptr + place[:, :, None] * DIM + dim[None, None, :],
            mask=is_part[:, :, None] & (dim < DIM)[None, None, :], other=0.0, cache_modifier=".cg",
        )  # fmt: skip
        new_peak = tl.maximum(peak, tl.max(lse, 0))
        weights = tl.exp2(lse - new_peak[None, :])
        shrink = tl.exp2(peak - new_peak)
        total = total * shrink + tl.sum(weights, 0)
        sums = sums * shrink[:, None] + tl.sum(partial * weights[:, :, None], 0)
        peak = new_peak
    place = (request.to(tl.int64) * HEADS + head)[:, None] * DIM + dim[None, :]
    tl.store(out_ptr + place, (sums / total[:, None]).to(out_ptr.dtype.element_ty), mask=is_live)


@triton.jit
def _combine(
    partial_ptr, lse_ptr, out_ptr,
    HEADS: tl.constexpr, DIM: tl.constexpr, BOX: tl.constexpr, SPLITS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid: requests * heads. A split without pages has the log-sum-exp NEVER, and no output."""
    begin(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    split, dim = tl.arange(0, SPLITS), tl.arange(0, BOX)
    place = (row // HEADS * SPLITS + split) * HEADS + row % HEADS
    lse = tl.load(lse_ptr + place)
    # Of parts that are none, too: to know which are would take as long as to read them.
    partial = tl.load(partial_ptr + place[:, None] * DIM + dim[None, :], mask=(dim < DIM)[None, :], other=0.0)
    partial = tl.where((lse > NEVER)[:, None], partial, 0.0)
    weights = tl.exp2(lse - tl.max(lse, 0))
    out = tl.sum(partial * weights[:, None], 0) / tl.sum(weights, 0)
    tl.store(out_ptr + row * DIM + dim, out.to(out_ptr.dtype.element_ty), mask=dim < DIM)
