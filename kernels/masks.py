"""Masks of tokens: bit t % 32 of word t // 32 says whether token t is allowed.

logits   [rows, vocab] float, changed in place: -inf where a token is not allowed
masks    [rows, (vocab + 31) // 32] int32; what they say of tokens from vocab on does not matter

`sampling.sample` takes masks too, and changes no logits.
"""

import functools

import torch
from torch import Tensor

_ROWS = 8


def apply_masks(logits: Tensor, masks: Tensor) -> None:
    """On the CPU. logits: of any floating dtype, finite or -inf."""
    # One look-up for 8 tokens and a sum: five times as fast as masked_fill_, which goes element by element.
    # A few rows at a time, so that what is looked up stays in the cache.
    octets = masks.view(torch.uint8).to(torch.int32)
    for first in range(0, len(logits), _ROWS):
        few = logits[first : first + _ROWS]
        penalties = _penalties(logits.dtype).index_select(0, octets[first : first + _ROWS].flatten())
        few += penalties.view(len(few), -1)[:, : logits.shape[1]]


@functools.cache
def _penalties(dtype: torch.dtype) -> Tensor:
    """[256, 8]: for each byte of a mask what is added to the logits of its tokens, on a little-endian machine."""
    is_allowed = (torch.arange(256).unsqueeze(1) >> torch.arange(8)) & 1 == 1
    return torch.where(is_allowed, 0.0, -torch.inf).to(dtype)
