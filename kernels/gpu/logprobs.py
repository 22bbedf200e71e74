"""Triton: logprobs of chosen and of the likeliest tokens, of the rows that ask for them; see `octavo.kernels.sampling`.

A program reads its row once for the sum of its exponentials and the highest logit of each block; then, for each of the
likeliest tokens, only the block that has it.
"""

import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.gpu import sampler_state
from octavo.kernels.gpu.overlap import OVERLAP, let_next_start, wait_for_last
from octavo.kernels.gpu.truncation import LOWEST

BLOCK = 2048

_COLUMNS, _LOGPROBS = tl.constexpr(sampler_state.COLUMNS), tl.constexpr(sampler_state.LOGPROBS)


def logprobs(
    logits: Tensor, state: Tensor, slots: Tensor, tokens: Tensor, chosen: Tensor, top: Tensor, top_ids: Tensor
) -> None:
    """Write those that the slots ask for, and leave the rest as it is.

    Args:
        logits: [rows, vocab], its rows at one stride, any float dtype.
        state: [slots, COLUMNS] int32, as `sampler_state.pack_state` gives each row.
        slots: [rows] int32. Both are read ahead of the kernel before: none that is launched to overlap may write them.
        tokens: [rows] int32.
        chosen: [rows] float32, of each row's token.
        top, top_ids: [rows, alternatives] float32 and int32, contiguous: of the likeliest tokens, the lower id first
            among equals.
    """
    rows, vocab = logits.shape
    blocks = triton.cdiv(vocab, BLOCK)
    _logprobs[(rows,)](
        logits, state, slots, tokens, chosen, top, top_ids, vocab, logits.stride(0), top.shape[1],
        WIDTH=triton.next_power_of_2(blocks), BLOCK=BLOCK, num_warps=8, **OVERLAP,
    )  # fmt: skip


@triton.jit
def _logprobs(
    logits_ptr, state_ptr, slots_ptr, tokens_ptr, chosen_ptr, top_ptr, top_ids_ptr, vocab, stride, most,
    WIDTH: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid: rows."""
    let_next_start(OVERLAP)
    row, lane, offset = tl.program_id(0).to(tl.int64), tl.arange(0, WIDTH), tl.arange(0, BLOCK)
    wanted = tl.load(state_ptr + tl.load(slots_ptr + row).to(tl.int64) * _COLUMNS + _LOGPROBS)
    wait_for_last(OVERLAP)
    if wanted > 0:
        row_ptr = logits_ptr + row * stride
        highest, sums = tl.full((BLOCK,), LOWEST, tl.float32), tl.zeros((BLOCK,), tl.float32)
        peaks = tl.full((WIDTH,), float("-inf"), tl.float32)
        for block in tl.range(0, tl.cdiv(vocab, BLOCK), num_stages=3):
            place = block * BLOCK + offset
            logits = tl.load(row_ptr + place, mask=place < vocab, other=float("-inf")).to(tl.float32)
            peaks = tl.where(lane == block, tl.max(logits, 0), peaks)
            higher = tl.maximum(highest, logits)
            sums = sums * tl.exp(highest - higher) + tl.exp(logits - higher)
            highest = higher
        peak = tl.max(highest, 0)
        log_sum = tl.log(tl.sum(sums * tl.exp(highest - peak), 0))
        token = tl.load(tokens_ptr + row)
        tl.store(chosen_ptr + row, tl.load(row_ptr + token).to(tl.float32) - peak - log_sum)
        last_logit, last_token = peak * 0 + float("inf"), token * 0 - 1
        for index in range(0, tl.minimum(wanted - 1, most)):
            logit = tl.max(peaks, 0)
            block = tl.min(tl.where(peaks == logit, lane, WIDTH), 0)
            place = block * BLOCK + offset
            logits = tl.load(row_ptr + place, mask=place < vocab, other=float("-inf")).to(tl.float32)
            # Tokens are named from high to low, those of equal logits by id: what is behind the last one is left.
            is_left = (logits < last_logit) | ((logits == last_logit) & (place > last_token))
            token = tl.min(tl.where(is_left & (logits == logit), place, vocab - 1), 0)
            is_left &= (logits < logit) | (place > token)
            peaks = tl.where(lane == block, tl.max(tl.where(is_left, logits, float("-inf")), 0), peaks)
            tl.store(top_ptr + row * most + index, logit - peak - log_sum)
            tl.store(top_ids_ptr + row * most + index, token)
            last_logit, last_token = logit, token
