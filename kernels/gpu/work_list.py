"""Triton: cuts the pages that a batch of decoding requests attends to into items of about equal work, on the device.

A request with `pages` of all `total` pages gets round(pages * room / total) items, at least one, of equal size; so
many as `room` for each kv head fill the machine. The largest come first, so that what is left over at the end is small.
Nothing but sizes of tensors depends on the host, so a CUDA graph that was recorded once serves any lengths.

source: Sanovar et al. 2024 (LeanAttention), arXiv 2405.10480, for equal work whatever the lengths; Graham 1969 for the
order
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
MOST_PARTS = 64  # items of one request
WORDS = tl.constexpr(8)  # of an item: request, slot, length, first and end page, its request's first item and items, 0


@dataclass(frozen=True)
class WorkList:
    """Which pages each program attends to, for all layers of one step that share a window.

    items: [most_items, 8] int32, see WORDS.
    num_items: [1] int32: how many of them there are.
    counters: [requests, kv_heads] int32, zero: how many items of a request are done.
    is_sparse: there may be far fewer items than room for them.
    """

    items: Tensor
    num_items: Tensor
    counters: Tensor
    is_sparse: bool


def most_items(requests: int, kv_heads: int) -> int:
    """Items that a work list may have, whatever the lengths."""
    return min(requests + _room(kv_heads), requests * most_parts(kv_heads))


def most_parts(kv_heads: int) -> int:
    """Items that one request may have."""
    return min(MOST_PARTS, max(1, MOST_PROGRAMS // kv_heads))


def plan_work(
    slots: Tensor,
    positions: Tensor,
    kv_heads: int,
    page: int,
    most_requests: int,
    window: int | None = None,
    is_sparse: bool = False,
) -> WorkList:
    """The work list of requests that attend to all positions up to `positions`, or to the last `window` of them.

    Args:
        slots, positions: [requests] int32; a position of -1: there is no request.
        page: positions in a page.
        most_requests: of any batch of this engine: one kernel is compiled for all of them.
        is_sparse: many positions may be -1.
    """
    requests, size = len(positions), most_items(len(positions), kv_heads)
    items = torch.empty(size, WORDS.value, dtype=torch.int32, device=positions.device)
    counters = torch.empty(requests, kv_heads, dtype=torch.int32, device=positions.device)
    num_items = torch.empty(4, dtype=torch.int32, device=positions.device)[:1]
    _plan[(requests,)](
        slots, positions, items, num_items, counters, requests, ROOM=_room(kv_heads), MOST=most_parts(kv_heads),
        KV_HEADS=kv_heads, PAGE=page, WINDOW=window or 0, REQUESTS=triton.next_power_of_2(most_requests),
        num_warps=4, **OVERLAP,
    )  # fmt: skip
    return WorkList(items, num_items, counters, is_sparse)


def _room(kv_heads: int) -> int:
    return max(1, NUM_SMS * PROGRAMS_PER_SM // kv_heads)


@triton.jit(do_not_specialize=["requests"])
def _plan(
    slots_ptr, positions_ptr, items_ptr, num_items_ptr, counters_ptr, requests,
    ROOM: tl.constexpr, MOST: tl.constexpr, KV_HEADS: tl.constexpr, PAGE: tl.constexpr, WINDOW: tl.constexpr,
    REQUESTS: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid: requests. Each program counts the items of all, and writes those of its own."""
    begin(OVERLAP)
    request = tl.program_id(0)
    other = tl.arange(0, REQUESTS)
    lengths = tl.load(positions_ptr + other, mask=other < requests, other=-1) + 1
    pages = tl.cdiv(lengths, PAGE)
    if WINDOW:
        pages -= tl.maximum(lengths - WINDOW, 0) // PAGE
    total = tl.maximum(tl.sum(pages, 0), 1)
    wanted = tl.maximum((2 * pages * ROOM + total) // (2 * total), 1)
    sizes = tl.cdiv(pages, tl.minimum(wanted, MOST))
    parts = tl.cdiv(pages, tl.maximum(sizes, 1))

    own = tl.sum(tl.where(other == request, sizes, 0), 0)
    is_before = (sizes > own) | ((sizes == own) & (other < request))
    first = tl.sum(tl.where(is_before, parts, 0), 0)
    length = tl.load(positions_ptr + request) + 1
    low_page = tl.maximum(length - WINDOW, 0) // PAGE if WINDOW else 0
    end_page = tl.cdiv(length, PAGE)
    num = tl.cdiv(end_page - low_page, tl.maximum(own, 1))
    part = tl.arange(0, triton.next_power_of_2(MOST))
    row = items_ptr + (first + part) * WORDS
    is_live = part < num
    zero = tl.zeros_like(part)
    tl.store(row, zero + request, mask=is_live)
    tl.store(row + 1, zero + tl.load(slots_ptr + request), mask=is_live)
    tl.store(row + 2, zero + length, mask=is_live)
    tl.store(row + 3, low_page + part * own, mask=is_live)
    tl.store(row + 4, tl.minimum(low_page + (part + 1) * own, end_page), mask=is_live)
    tl.store(row + 5, zero + first, mask=is_live)
    tl.store(row + 6, zero + num, mask=is_live)
    head = tl.arange(0, triton.next_power_of_2(KV_HEADS))
    tl.store(counters_ptr + request * KV_HEADS + head, tl.zeros_like(head), mask=head < KV_HEADS)
    if request == 0:
        tl.store(num_items_ptr, tl.sum(parts, 0))
