"""Triton: a token a row by its slot's sampling parameters, in two passes; see `octavo.kernels.sampling`.

The first pass has a program for each block of the vocabulary, and finds the block's likeliest token and its weight.
The second has one for each row. A greedy row takes the likeliest token; a random one the block in which the draw
falls, and the token in it. Only rows with top-k, top-p or min-p are read as a whole again, to find the limit.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.gpu import sampler_state
from octavo.kernels.gpu.overlap import OVERLAP, let_next_start, wait_for_last
from octavo.kernels.gpu.truncation import LOWEST, as_float, logits_at, masses_within, narrow

BLOCK = 4096  # tokens of which one program of the first pass knows the weight
PART = 1024  # tokens at once

_RATE, _TOP_K, _TOP_P, _MIN_P = (
    tl.constexpr(each) for each in (sampler_state.RATE, sampler_state.TOP_K, sampler_state.TOP_P, sampler_state.MIN_P)
)
_SEED, _COUNTS = tl.constexpr(sampler_state.SEED), tl.constexpr(sampler_state.COUNTS)
_REPETITION, _FREQUENCY, _PRESENCE = (
    tl.constexpr(each) for each in (sampler_state.REPETITION, sampler_state.FREQUENCY, sampler_state.PRESENCE)
)
_COLUMNS, _HELD = tl.constexpr(sampler_state.COLUMNS), tl.constexpr(sampler_state.HELD)
_FARTHEST = tl.constexpr(120.0)  # in bits of weight: what is farther weighs nothing in float32


def sample(
    logits: Tensor,
    state: Tensor,
    slots: Tensor,
    positions: Tensor,
    out: Tensor,
    last: Tensor,
    with_held: bool = False,
) -> None:
    """Choose a token a row, note it as the last one of the row's slot, and count it if the slot has penalties.

    Args:
        logits: [rows, vocab], its rows at one stride, any float dtype.
        state: [slots, COLUMNS] int32, as `sampler_state.pack_state` gives each row.
        slots: [rows] int32. Both are read ahead of the kernel before: none that is launched to overlap may write them.
        positions: [rows] int32, of each row's last known token: the chosen one comes behind it.
        out: [rows] int32, overwritten.
        last: [slots] int32, changed in place.
        with_held: also of slots that are held; else these are left as they are.
    """
    rows, vocab = logits.shape
    blocks = triton.cdiv(vocab, BLOCK)
    peaks, masses = torch.empty(2, rows, blocks, dtype=torch.float32, device=logits.device)
    places = torch.empty(rows, blocks, dtype=torch.int32, device=logits.device)
    _peaks[(rows, blocks)](
        logits, state, slots, peaks, masses, places, vocab, logits.stride(0), blocks,
        BLOCK=BLOCK, num_warps=4, **OVERLAP,
    )  # fmt: skip
    _choose[(rows,)](
        logits, state, slots, positions, peaks, masses, places, out, last, vocab, logits.stride(0), blocks,
        WIDTH=triton.next_power_of_2(blocks), BLOCK=BLOCK, PART=PART, WITH_HELD=int(with_held), num_warps=16, **OVERLAP,
    )  # fmt: skip


@triton.jit
def _counts(state_ptr):
    """The address of the slot's counts, and its penalties."""
    low = tl.load(state_ptr + _COUNTS).to(tl.uint32, bitcast=True).to(tl.uint64)
    high = tl.load(state_ptr + _COUNTS + 1).to(tl.uint32, bitcast=True).to(tl.uint64)
    counts = (low | (high << 32)).to(tl.int64)
    repetition, frequency = tl.load(state_ptr + _REPETITION), tl.load(state_ptr + _FREQUENCY)
    return counts, as_float(repetition), as_float(frequency), as_float(tl.load(state_ptr + _PRESENCE))


@triton.jit
def _peaks(
    logits_ptr, state_ptr, slots_ptr, peaks_ptr, masses_ptr, places_ptr, vocab, stride, blocks,
    BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid: rows, blocks of the vocabulary."""
    let_next_start(OVERLAP)
    row, block = tl.program_id(0).to(tl.int64), tl.program_id(1)
    state_ptr += tl.load(slots_ptr + row).to(tl.int64) * _COLUMNS
    counts, repetition, frequency, presence = _counts(state_ptr)
    rate = as_float(tl.load(state_ptr + _RATE))
    wait_for_last(OVERLAP)
    place = block * BLOCK + tl.arange(0, BLOCK)
    logits = logits_at(logits_ptr + row * stride, place, place < vocab, counts, repetition, frequency, presence)
    peak = tl.max(logits, 0)
    best = tl.min(tl.where(logits == peak, place, vocab - 1), 0)
    peak = tl.maximum(peak, LOWEST)
    tl.store(peaks_ptr + row * blocks + block, peak)
    tl.store(places_ptr + row * blocks + block, best)
    if rate > 0:
        tl.store(masses_ptr + row * blocks + block, tl.sum(tl.exp2(rate * (logits - peak)), 0))


@triton.jit
def _choose(
    logits_ptr, state_ptr, slots_ptr, positions_ptr, peaks_ptr, masses_ptr, places_ptr, out_ptr, last_ptr,
    vocab, stride, blocks, WIDTH: tl.constexpr, BLOCK: tl.constexpr, PART: tl.constexpr, WITH_HELD: tl.constexpr,
    OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid: rows."""
    let_next_start(OVERLAP)
    row, lane = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH)
    slot = tl.load(slots_ptr + row).to(tl.int64)
    state_ptr += slot * _COLUMNS
    counts, repetition, frequency, presence = _counts(state_ptr)
    rate, held = as_float(tl.load(state_ptr + _RATE)), tl.load(state_ptr + _HELD)
    wait_for_last(OVERLAP)
    peaks = tl.load(peaks_ptr + row * blocks + lane, mask=lane < blocks, other=LOWEST)
    peak = tl.max(peaks, 0)
    token = tl.load(places_ptr + row * blocks + tl.min(tl.where(peaks == peak, lane, blocks - 1), 0))
    if rate > 0:
        row_ptr = logits_ptr + row * stride
        masses = tl.load(masses_ptr + row * blocks + lane, mask=lane < blocks, other=0.0)
        masses = (masses * tl.exp2(rate * (peaks - peak))).to(tl.float64)
        top_k, top_p = tl.load(state_ptr + _TOP_K), as_float(tl.load(state_ptr + _TOP_P))
        min_p = as_float(tl.load(state_ptr + _MIN_P))
        limit = tl.minimum(min_p, _FARTHEST / rate)
        if top_k > 0:
            limit = narrow(
                row_ptr, vocab, counts, repetition, frequency, presence, peak, rate, limit, top_k, True, 2 * PART
            )
        if (top_k > 0) | (min_p < float("inf")):
            masses = masses_within(
                row_ptr, vocab, counts, repetition, frequency, presence, peak, rate, limit, WIDTH, BLOCK
            )
        if top_p < 1:
            target = tl.sum(masses, 0) * top_p
            limit = narrow(
                row_ptr, vocab, counts, repetition, frequency, presence, peak, rate, limit, target, False, 2 * PART
            )
            masses = masses_within(
                row_ptr, vocab, counts, repetition, frequency, presence, peak, rate, limit, WIDTH, BLOCK
            )
        # Where the draw falls: in which block, in which part of it, at which token.
        block, draw = _divide(masses, _uniform(state_ptr, tl.load(positions_ptr + row) + 1), WIDTH)
        block_ptr, length = row_ptr + block * BLOCK, tl.minimum(vocab - block * BLOCK, BLOCK)
        counts = tl.where(counts != 0, counts + 4 * block * BLOCK, 0)
        masses = masses_within(
            block_ptr, length, counts, repetition, frequency, presence, peak, rate, limit, BLOCK // PART, PART
        )
        part, draw = _divide(masses, draw, BLOCK // PART)
        place = part * PART + tl.arange(0, PART)
        logits = logits_at(block_ptr, place, place < length, counts, repetition, frequency, presence)
        distance = peak - logits
        weights = tl.where(distance <= limit, tl.exp2(-rate * distance), 0.0)
        index, _ = _divide(weights.to(tl.float64), draw, PART)
        token = tl.minimum(block * BLOCK + part * PART + index, vocab - 1)
    is_chosen = held <= WITH_HELD
    tl.store(out_ptr + row, token, mask=is_chosen)
    tl.store(last_ptr + slot, token, mask=is_chosen)
    table, _, _, _ = _counts(state_ptr)
    if (table != 0) & is_chosen:
        count_ptr = table.to(tl.pointer_type(tl.int32)) + token
        tl.store(count_ptr, tl.load(count_ptr) + 2)


@triton.jit
def _divide(weights, draw, WIDTH: tl.constexpr):
    """The first index at which the running sum of weights exceeds draw of their total, and how far the draw lies in
    its weight: both numbers are in [0, 1)."""
    lane = tl.arange(0, WIDTH)
    running = tl.cumsum(weights, 0)
    aim = draw * tl.max(running, 0)
    index = tl.min(tl.where((running > aim) & (weights > 0), lane, WIDTH - 1), 0)
    end = tl.sum(tl.where(lane == index, running, 0.0), 0)
    weight = tl.sum(tl.where(lane == index, weights, 0.0), 0)
    rest = (aim - (end - weight)) / weight
    return index, tl.minimum(tl.maximum(rest, 0.0), 1.0 - 2.0**-53)


@triton.jit
def _uniform(state_ptr, position):
    """As `octavo.kernels.sampling.uniform`."""
    low = tl.load(state_ptr + _SEED).to(tl.uint32, bitcast=True).to(tl.uint64)
    high = tl.load(state_ptr + _SEED + 1).to(tl.uint32, bitcast=True).to(tl.uint64)
    counter = position.to(tl.uint32)
    zero = counter * 0
    first, second, _, _ = tl.philox(low | (high << 32), counter, zero, zero, zero)
    bits = (first.to(tl.uint64) << 21) | (second >> 11).to(tl.uint64)
    return bits.to(tl.float64) * 2.0**-53
