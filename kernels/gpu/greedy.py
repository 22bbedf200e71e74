"""Triton: the most likely token of each row, the lowest id among equals, in two passes."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.gpu.overlap import OVERLAP, begin

BLOCK = 4096


def greedy(logits: Tensor, out: Tensor, slots: Tensor, last: Tensor) -> None:
    """Choose a token a row, and note it as the last one of the row's slot.

    Args:
        logits: [rows, vocab], its rows at one stride, any float dtype.
        out: [rows] int32, overwritten.
        slots: [rows] int32.
        last: [slots] int32, changed in place.
    """
    rows, vocab = logits.shape
    blocks = triton.cdiv(vocab, BLOCK)
    peaks = torch.empty(rows, blocks, dtype=torch.float32, device=logits.device)
    places = torch.empty(rows, blocks, dtype=torch.int32, device=logits.device)
    _peaks[(rows, blocks)](logits, peaks, places, vocab, logits.stride(0), blocks, BLOCK=BLOCK, num_warps=4, **OVERLAP)
    _best[(rows,)](
        peaks, places, out, slots, last, blocks, WIDTH=triton.next_power_of_2(blocks), num_warps=1, **OVERLAP
    )


@triton.jit
def _peaks(logits_ptr, peaks_ptr, places_ptr, vocab, stride, blocks, BLOCK: tl.constexpr, OVERLAP: tl.constexpr):
    """Grid: rows, blocks of the vocabulary."""
    begin(OVERLAP)
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    place = block * BLOCK + tl.arange(0, BLOCK)
    logits = tl.load(logits_ptr + row * stride + place, mask=place < vocab, other=float("-inf")).to(tl.float32)
    peak, best = tl.max(logits, 0, return_indices=True, return_indices_tie_break_left=True)
    tl.store(peaks_ptr + row * blocks + block, peak)
    tl.store(places_ptr + row * blocks + block, block * BLOCK + best)


@triton.jit
def _best(peaks_ptr, places_ptr, out_ptr, slots_ptr, last_ptr, blocks, WIDTH: tl.constexpr, OVERLAP: tl.constexpr):
    """Grid: rows."""
    begin(OVERLAP)
    row, block = tl.program_id(0), tl.arange(0, WIDTH)
    peaks = tl.load(peaks_ptr + row * blocks + block, mask=block < blocks, other=float("-inf"))
    _, best = tl.max(peaks, 0, return_indices=True, return_indices_tie_break_left=True)
    token = tl.load(places_ptr + row * blocks + best)
    tl.store(out_ptr + row, token)
    tl.store(last_ptr + tl.load(slots_ptr + row), token)
