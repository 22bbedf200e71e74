"""Triton: rows of logits without the tokens that masks forbid; see `octavo.kernels.masks` for the words of a mask."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.gpu.overlap import OVERLAP, begin

FORBIDDEN = tl.constexpr(-1.0e30)  # finite, so that distances are
BLOCK = 2048
WORD = tl.constexpr(32)  # tokens of a mask's word


def masked_rows(logits: Tensor, rows: Tensor, masks: Tensor) -> Tensor:
    """Copies of some rows, [len(rows), vocab] float32: FORBIDDEN where a token is not allowed.

    Args:
        logits: [any, vocab], its rows at one stride, any float dtype.
        rows: [rows] int64.
        masks: [rows, words] int32, contiguous.
    """
    vocab = logits.shape[1]
    out = torch.empty(len(rows), vocab, dtype=torch.float32, device=logits.device)
    _masked_rows[(len(rows), triton.cdiv(vocab, BLOCK))](
        logits, rows, masks, out, vocab, logits.stride(0), masks.shape[1], BLOCK=BLOCK, num_warps=4, **OVERLAP
    )
    return out


@triton.jit
def _masked_rows(
    logits_ptr, rows_ptr, masks_ptr, out_ptr, vocab, stride, words, BLOCK: tl.constexpr, OVERLAP: tl.constexpr
):
    """Grid: rows, blocks of the vocabulary."""
    begin(OVERLAP)
    row, token = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    is_token = token < vocab
    word = tl.load(masks_ptr + row * words + token // WORD, mask=is_token, other=0)
    source = tl.load(rows_ptr + row).to(tl.int64)
    logits = tl.load(logits_ptr + source * stride + token, mask=is_token, other=0.0).to(tl.float32)
    is_allowed = ((word >> (token % WORD)) & 1) != 0
    tl.store(out_ptr + row * vocab + token, tl.where(is_allowed, logits, FORBIDDEN), mask=is_token)
