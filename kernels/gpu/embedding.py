"""Triton: rows of the embedding table, of tokens that the host knows and of those that only the device knows so far."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.gpu.overlap import OVERLAP, begin

BLOCK = 1024


def gather(table: Tensor, last: Tensor, slots: Tensor, token_ids: Tensor | None = None) -> Tensor:
    """[rows, size] in the dtype of the table.

    Args:
        table: [vocab, size], contiguous.
        last: [slots] int32, the last token of each slot.
        slots: [rows] int32.
        token_ids: [rows] int32; -1: the last token of the row's slot. None: so for all rows.
    """
    size = table.shape[1]
    out = torch.empty(len(slots), size, dtype=table.dtype, device=table.device)
    _gather[(len(slots), triton.cdiv(size, BLOCK))](
        table, last, slots, token_ids, out, SIZE=size, BLOCK=BLOCK, num_warps=4, **OVERLAP
    )
    return out


@triton.jit
def _gather(
    table_ptr, last_ptr, slots_ptr, token_ids_ptr, out_ptr,
    SIZE: tl.constexpr, BLOCK: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid: rows, blocks of a row."""
    begin(OVERLAP)
    row, place = tl.program_id(0).to(tl.int64), tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    token = tl.load(last_ptr + tl.load(slots_ptr + row))
    if token_ids_ptr is not None:
        known = tl.load(token_ids_ptr + row)
        token = tl.where(known < 0, token, known)
    values = tl.load(table_ptr + token.to(tl.int64) * SIZE + place, mask=place < SIZE, other=0.0)
    tl.store(out_ptr + row * SIZE + place, values, mask=place < SIZE)
