"""Triton: what the sampler's kernels do with one row of logits: weights within a distance, and limits of distance.

Not kernels but parts of one: one program works on a whole row, BLOCK tokens at a time. A distance is how far a logit,
penalties applied, is below the row's highest; see `octavo.kernels.sampling`. A row is where its logits begin, the
address of its counts (0: no penalties) and its three penalties.
"""

import triton
import triton.language as tl

STAGES = tl.constexpr(3)
LOWEST = tl.constexpr(-3.0e38)  # in place of -inf, whose distance from itself is NaN


@triton.jit
def as_float(bits):
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def as_bits(number):
    return number.to(tl.int32, bitcast=True)


@triton.jit
def logits_at(row_ptr, place, is_in, counts, repetition, frequency, presence):
    """Logits with penalties, float32; -inf where they are not in the row."""
    logits = tl.load(row_ptr + place, mask=is_in, other=float("-inf")).to(tl.float32)
    if counts != 0:
        count_ptr = tl.multiple_of(counts, 16).to(tl.pointer_type(tl.int32))
        count = tl.load(count_ptr + place, mask=is_in, other=0)
        repeated = tl.where(logits > 0, tl.div_rn(logits, repetition), logits * repetition)
        logits = tl.where(count > 0, repeated, logits)
        generated = count >> 1
        logits -= frequency * generated.to(tl.float32)
        logits -= tl.where(generated > 0, presence, 0.0)
    return logits


@triton.jit
def masses_within(
    row_ptr, length, counts, repetition, frequency, presence, peak, rate, limit,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Of each block, the weight of its tokens within the limit: [WIDTH] float64."""
    lane, offset = tl.arange(0, WIDTH), tl.arange(0, BLOCK)
    masses = tl.zeros((WIDTH,), tl.float64)
    for block in tl.range(0, tl.cdiv(length, BLOCK), num_stages=STAGES):
        place = block * BLOCK + offset
        logits = logits_at(row_ptr, place, place < length, counts, repetition, frequency, presence)
        distance = peak - logits
        mass = tl.sum(tl.where(distance <= limit, tl.exp2(-rate * distance), 0.0), 0)
        masses = tl.where(lane == block, mass.to(tl.float64), masses)
    return masses


@triton.jit
def narrow(
    row_ptr, length, counts, repetition, frequency, presence, peak, rate, limit, target,
    IS_COUNT: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The largest distance, up to the limit, before which there is less than target: tokens if IS_COUNT, else weight.

    What is before a distance grows with it, and the bits of distances are ordered as they are. So the last one with
    less before it is searched among them: `low` has less than target before it, `high` has not (or is behind the
    limit). Three pivots between them cut the rest to a quarter in each pass over the row; to where its first and
    last token are, too, which ends the search when all that is left is equally likely.
    """
    offset = tl.arange(0, BLOCK)
    low = as_bits(limit) * 0
    high = as_bits(limit) + 1
    nat = 1.44269504 / rate
    first, second, third = as_bits(2.0 * nat), as_bits(5.0 * nat), as_bits(10.0 * nat)
    while high - low > 1:
        first = tl.minimum(tl.maximum(first, low + 1), high - 1)
        second = tl.minimum(tl.maximum(second, low + 1), high - 1)
        third = tl.minimum(tl.maximum(third, low + 1), high - 1)
        before_first = tl.zeros((BLOCK,), tl.float32)
        before_second = tl.zeros((BLOCK,), tl.float32)
        before_third = tl.zeros((BLOCK,), tl.float32)
        nearest = tl.full((BLOCK,), float("inf"), tl.float32)
        farthest = tl.zeros((BLOCK,), tl.float32)
        for block in tl.range(0, tl.cdiv(length, BLOCK), num_stages=STAGES):
            place = block * BLOCK + offset
            logits = logits_at(row_ptr, place, place < length, counts, repetition, frequency, presence)
            distance = peak - logits
            weight = tl.where(place < length, 1.0, 0.0) if IS_COUNT else tl.exp2(-rate * distance)
            before_first += tl.where(distance < as_float(first), weight, 0.0)
            before_second += tl.where(distance < as_float(second), weight, 0.0)
            before_third += tl.where(distance < as_float(third), weight, 0.0)
            nearest = tl.minimum(nearest, tl.where(distance >= as_float(low), distance, float("inf")))
            farthest = tl.maximum(farthest, tl.where(distance < as_float(high), distance, 0.0))
        lowest, highest = as_bits(tl.min(nearest, 0)), as_bits(tl.max(farthest, 0)) + 1
        if tl.sum(before_first.to(tl.float64), 0) >= target:
            high = first
        elif tl.sum(before_second.to(tl.float64), 0) >= target:
            low, high = first, second
        elif tl.sum(before_third.to(tl.float64), 0) >= target:
            low, high = second, third
        else:
            low = third
        high = tl.maximum(tl.minimum(high, highest), low + 1)
        low = tl.minimum(tl.maximum(low, lowest), high - 1)
        quarter = (high - low) >> 2
        first, second, third = low + quarter, low + ((high - low) >> 1), high - quarter
    return as_float(low)
