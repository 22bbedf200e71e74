"""Triton: what a step changes before it runs: entries of block tables, and pages that it begins, which become zero.

One launch does it, whatever the number of layers: nearly every step of many requests begins pages, and torch fills
parts of a tensor of more than 2^31 elements by a launch for each of these parts.
"""

import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.gpu.overlap import OVERLAP, begin

BLOCK = 4096  # numbers that a program fills
ENTRIES = 256  # that are changed at a time


def begin_pages(tables: Tensor, slots: Tensor, places: Tensor, blocks: Tensor, cache: Tensor, fresh: Tensor) -> None:
    """tables[slots, places] = blocks, and cache[:, :, fresh] = 0.

    Args:
        tables: [slots, max_blocks] int32.
        slots, places, blocks: [entries] int32.
        cache: [layers, 2, blocks, ...], contiguous, of integers.
        fresh: [pages] int32.
    """
    size = cache[0, 0, 0].numel()
    halves = cache.shape[0] * 2
    grid = (halves, max(1, len(fresh)), triton.cdiv(size, BLOCK))
    _begin_pages[grid](
        tables, slots, places, blocks, cache, fresh, len(slots), len(fresh), tables.stride(0), cache.shape[2],
        SIZE=size, BLOCK=BLOCK, ENTRIES=ENTRIES, num_warps=4, **OVERLAP,
    )  # fmt: skip


@triton.jit(do_not_specialize=["num_entries", "num_fresh", "num_blocks"])
def _begin_pages(
    tables_ptr, slots_ptr, places_ptr, blocks_ptr, cache_ptr, fresh_ptr, num_entries, num_fresh, table_stride,
    num_blocks, SIZE: tl.constexpr, BLOCK: tl.constexpr, ENTRIES: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid: layers * 2, pages (at least one program, for the tables), parts of a page."""
    begin(OVERLAP)
    half, page, part = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    if page < num_fresh:
        block = tl.load(fresh_ptr + page).to(tl.int64)
        place = part * BLOCK + tl.arange(0, BLOCK)
        row = cache_ptr + (half.to(tl.int64) * num_blocks + block) * SIZE
        tl.store(row + place, tl.zeros([BLOCK], cache_ptr.dtype.element_ty), mask=place < SIZE)
    if half + page + part == 0:
        for start in range(0, num_entries, ENTRIES):
            entry = start + tl.arange(0, ENTRIES)
            is_in = entry < num_entries
            slot = tl.load(slots_ptr + entry, mask=is_in, other=0).to(tl.int64)
            place = tl.load(places_ptr + entry, mask=is_in, other=0)
            new = tl.load(blocks_ptr + entry, mask=is_in, other=0)
            tl.store(tables_ptr + slot * table_stride + place, new, mask=is_in)
