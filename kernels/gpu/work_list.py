"""Triton: cuts the pages that a batch of decoding requests attends to into items of about equal work, on the device.

A request's pages are one unit of work. Neighbours in the batch that begin with the same pages have these as a unit of
their own: one program reads them for all, for the queries of several requests fill a tile of the tensor cores that
those of one leave nearly empty. A unit with `pages` of all `total` pages gets round(pages * room / total) items, at
least one, of equal size; so many as `room` for each kv head fill the machine. The largest come first, so that what is
left over at the end is small. Nothing but sizes of tensors depends on the host, so a CUDA graph that was recorded once
serves any lengths.

source: Sanovar et al. 2024 (LeanAttention), arXiv 2405.10480, for equal work whatever the lengths; Graham 1969 for the
order; Juravsky et al. 2024 (Hydragen), arXiv 2402.05099, for attention to what prompts share
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.gpu.hardware import NUM_SMS
from octavo.kernels.gpu.overlap import OVERLAP, begin

PROGRAMS_PER_SM = 2
MOST_PROGRAMS = 128  # of one request: more cost more to join than they gain
MOST_PARTS = 64  # items of one unit
TILE_ROWS = 16  # the queries that tensor cores multiply at once, at least
MOST_TOGETHER = 8  # requests whose common pages are one unit
LEAST_SHARED = 4  # pages: fewer are read sooner by everyone than joined
WORDS = tl.constexpr(8)  # of an item: request, slot, length, first and end page, part, requests from `request` on, 0
_PAGES_AT_ONCE = tl.constexpr(64)
_LEAST_SHARED = tl.constexpr(LEAST_SHARED)


@dataclass(frozen=True)
class WorkList:
    """Which pages each program attends to, for all layers of one step that share a window.

    items: [most_items, 8] int32, see WORDS. An item is the n-th part of each of its requests, counted from 0.
    num_items: [1] int32: how many of them there are.
    parts: [requests, 2] int32: where a request's partial outputs begin, and how many there are.
    counters: [requests, kv_heads] int32, zero: how many parts of a request are done.
    together: the most requests of an item.
    is_sparse: there may be far fewer items than room for them.
    """

    items: Tensor
    num_items: Tensor
    parts: Tensor
    counters: Tensor
    together: int
    is_sparse: bool


def most_together(heads: int, kv_heads: int) -> int:
    """Requests whose queries of one kv head fit into a tile."""
    return max(1, min(MOST_TOGETHER, TILE_ROWS * kv_heads // heads))


def most_items(requests: int, kv_heads: int, together: int = 1) -> int:
    """Items that a work list may have, whatever the lengths."""
    units = requests + (triton.cdiv(requests, together) if together > 1 else 0)
    return min(units + _room(kv_heads), units * most_parts(kv_heads))


def most_partials(requests: int, kv_heads: int, together: int = 1) -> int:
    """Parts that requests may have, all counted."""
    shared = together * (triton.cdiv(requests, together) + _room(kv_heads)) if together > 1 else 0
    return min(requests + shared + _room(kv_heads), (1 + (together > 1)) * requests * most_parts(kv_heads))


def most_parts(kv_heads: int) -> int:
    """Items that one unit may have."""
    return min(MOST_PARTS, max(1, MOST_PROGRAMS // kv_heads))


def plan_work(
    slots: Tensor,
    positions: Tensor,
    tables: Tensor,
    kv_heads: int,
    page: int,
    most_requests: int,
    window: int | None = None,
    is_sparse: bool = False,
    together: int = 1,
) -> WorkList:
    """The work list of requests that attend to all positions up to `positions`, or to the last `window` of them.

    Args:
        slots, positions: [requests] int32; a position of -1: there is no request, nor behind it.
        tables: [slots, max_blocks] int32, the blocks of each slot.
        page: positions in a page.
        most_requests: of any batch of this engine: one kernel is compiled for all of them.
        is_sparse: many positions may be -1.
        together: requests that may have items in common, see `most_together`; 1 with a window.
    """
    requests, device = len(positions), positions.device
    items = torch.empty(most_items(requests, kv_heads, together), WORDS.value, dtype=torch.int32, device=device)
    counters = torch.empty(requests, kv_heads, dtype=torch.int32, device=device)
    parts = torch.empty(requests, 2, dtype=torch.int32, device=device)
    num_items = torch.empty(4, dtype=torch.int32, device=device)[:1]
    shared = None
    if together > 1:
        bunches = triton.cdiv(requests, together)
        shared = torch.empty(bunches, 2, dtype=torch.int32, device=device)
        _find_shared[(bunches,)](
            slots, positions, tables, shared, requests, tables.stride(0), TOGETHER=together, PAGE=page, num_warps=4,
            **OVERLAP,
        )  # fmt: skip
    _plan[(requests,)](
        slots, positions, shared, items, num_items, parts, counters, requests, ROOM=_room(kv_heads),
        MOST=most_parts(kv_heads), KV_HEADS=kv_heads, PAGE=page, WINDOW=window or 0, TOGETHER=together,
        REQUESTS=triton.next_power_of_2(most_requests), num_warps=4, **OVERLAP,
    )  # fmt: skip
    return WorkList(items, num_items, parts, counters, together, is_sparse)


def _room(kv_heads: int) -> int:
    return max(1, NUM_SMS * PROGRAMS_PER_SM // kv_heads)


@triton.jit(do_not_specialize=["requests"])
def _find_shared(
    slots_ptr, positions_ptr, tables_ptr, shared_ptr, requests, table_stride,
    TOGETHER: tl.constexpr, PAGE: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid: bunches of TOGETHER requests, one after the other. Of each, how many pages its first requests begin with
    alike, and how many requests these are: so many that most pages less are read. Pages that are full, for all."""
    begin(OVERLAP)
    bunch = tl.program_id(0)
    first = bunch * TOGETHER
    member = tl.arange(0, triton.next_power_of_2(TOGETHER))
    is_member = (member < TOGETHER) & (first + member < requests)
    full = tl.load(positions_ptr + first + member, mask=is_member, other=0) // PAGE
    alike = tl.minimum(full, tl.load(positions_ptr + first) // PAGE)
    alike = tl.where(is_member & (member > 0), alike, 0)
    slots = tl.load(slots_ptr + first + member, mask=is_member, other=0).to(tl.int64)
    table = tables_ptr + tl.load(slots_ptr + first).to(tl.int64) * table_stride
    start = 0
    while start < tl.max(alike, 0):
        page = start + tl.arange(0, _PAGES_AT_ONCE)
        is_asked = page[None, :] < alike[:, None]
        blocks = tl.load(tables_ptr + slots[:, None] * table_stride + page[None, :], mask=is_asked, other=-1)
        firsts = tl.load(table + page, mask=page < tl.max(alike, 0), other=-1)
        ends = tl.where(is_asked & (blocks != firsts[None, :]), page[None, :], alike[:, None])
        alike = tl.min(ends, 1)
        start += _PAGES_AT_ONCE
    fewest = tl.max(alike, 0)
    saved, pages, number = 0, 0, 1
    for other in tl.static_range(1, TOGETHER):
        fewest = tl.minimum(fewest, tl.sum(tl.where(member == other, alike, 0), 0))
        is_better = (fewest >= _LEAST_SHARED) & (fewest * other > saved)
        saved = tl.where(is_better, fewest * other, saved)
        pages = tl.where(is_better, fewest, pages)
        number = tl.where(is_better, other + 1, number)
    tl.store(shared_ptr + bunch * 2, pages)
    tl.store(shared_ptr + bunch * 2 + 1, number)


@triton.jit
def _cut(pages, total, ROOM: tl.constexpr, MOST: tl.constexpr):
    """How large a unit's items are, in pages, and how many; none of none."""
    wanted = tl.maximum((2 * pages * ROOM + total) // (2 * total), 1)
    sizes = tl.cdiv(pages, tl.minimum(wanted, MOST))
    return sizes, tl.cdiv(pages, tl.maximum(sizes, 1))


@triton.jit(do_not_specialize=["requests"])
def _plan(
    slots_ptr, positions_ptr, shared_ptr, items_ptr, num_items_ptr, parts_ptr, counters_ptr, requests,
    ROOM: tl.constexpr, MOST: tl.constexpr, KV_HEADS: tl.constexpr, PAGE: tl.constexpr, WINDOW: tl.constexpr,
    TOGETHER: tl.constexpr, REQUESTS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid: requests. Each program counts the items of all, and writes those of its own; the first of a bunch also
    those that the bunch shares. Units of equal size: what is shared comes first."""
    begin(OVERLAP)
    request = tl.program_id(0)
    other = tl.arange(0, REQUESTS)
    lengths = tl.load(positions_ptr + other, mask=other < requests, other=-1) + 1
    pages = tl.cdiv(lengths, PAGE)
    if WINDOW:
        pages -= tl.maximum(lengths - WINDOW, 0) // PAGE
    if TOGETHER > 1:
        bunch = shared_ptr + other // TOGETHER * 2
        shared = tl.load(bunch, mask=other < requests, other=0)
        number = tl.load(bunch + 1, mask=other < requests, other=1)
        is_first = other % TOGETHER == 0
        pages -= tl.where(other % TOGETHER < number, shared, 0)
        total = tl.maximum(tl.sum(pages, 0) + tl.sum(tl.where(is_first, shared, 0), 0), 1)
        shared_sizes, shared_parts = _cut(shared, total, ROOM, MOST)
        sizes, parts = _cut(pages, total, ROOM, MOST)
        all_parts = parts + tl.where(other % TOGETHER < number, shared_parts, 0)
        shared_sizes, shared_parts = tl.where(is_first, shared_sizes, 0), tl.where(is_first, shared_parts, 0)
    else:
        sizes, parts = _cut(pages, tl.maximum(tl.sum(pages, 0), 1), ROOM, MOST)
        all_parts = parts

    slot, length = tl.load(slots_ptr + request), tl.load(positions_ptr + request) + 1
    own, num = tl.sum(tl.where(other == request, sizes, 0), 0), tl.sum(tl.where(other == request, parts, 0), 0)
    is_before = (sizes > own) | ((sizes == own) & (other < request))
    first = tl.sum(tl.where(is_before, parts, 0), 0)
    low = tl.maximum(length - WINDOW, 0) // PAGE if WINDOW else 0
    all_own = tl.sum(tl.where(other == request, all_parts, 0), 0)
    if TOGETHER > 1:
        first += tl.sum(tl.where(shared_sizes >= own, shared_parts, 0), 0)
        low += tl.sum(tl.where((other == request) & (other % TOGETHER < number), shared, 0), 0)
        if request % TOGETHER == 0:
            members = tl.sum(tl.where(other == request, number, 0), 0)
            end = tl.sum(tl.where(other == request, shared, 0), 0)
            size = tl.sum(tl.where(other == request, shared_sizes, 0), 0)
            count = tl.sum(tl.where(other == request, shared_parts, 0), 0)
            is_before = (shared_sizes > size) | ((shared_sizes == size) & (other < request))
            before = tl.sum(tl.where(is_before, shared_parts, 0), 0) + tl.sum(tl.where(sizes > size, parts, 0), 0)
            _write(items_ptr + before * WORDS, request, slot, length, 0, end, size, count, 0, members, MOST)
    _write(
        items_ptr + first * WORDS, request, slot, length, low, tl.cdiv(length, PAGE), own, num, all_own - num, 1, MOST
    )
    tl.store(parts_ptr + request * 2, tl.sum(tl.where(other < request, all_parts, 0), 0))
    tl.store(parts_ptr + request * 2 + 1, all_own)
    head = tl.arange(0, triton.next_power_of_2(KV_HEADS))
    tl.store(counters_ptr + request * KV_HEADS + head, tl.zeros_like(head), mask=head < KV_HEADS)
    if request == 0:
        num_items = tl.sum(parts, 0)
        if TOGETHER > 1:
            num_items += tl.sum(shared_parts, 0)
        tl.store(num_items_ptr, num_items)


@triton.jit
def _write(row_ptr, request, slot, length, low, end, size, num, first_part, members, MOST: tl.constexpr):
    """The items of a unit: its pages from low to end."""
    item = tl.arange(0, triton.next_power_of_2(MOST))
    row, is_live, zero = row_ptr + item * WORDS, item < num, tl.zeros_like(item)
    tl.store(row, zero + request, mask=is_live)
    tl.store(row + 1, zero + slot, mask=is_live)
    tl.store(row + 2, zero + length, mask=is_live)
    tl.store(row + 3, low + item * size, mask=is_live)
    tl.store(row + 4, tl.minimum(low + (item + 1) * size, end), mask=is_live)
    tl.store(row + 5, first_part + item, mask=is_live)
    tl.store(row + 6, zero + members, mask=is_live)
