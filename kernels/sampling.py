"""From logits to tokens: temperature, min-p, top-k, top-p, then one draw by inverse transform.

logits   [rows, vocab] float
returns  [rows] int64 token ids

A draw needs one uniform number, Philox4x32-10 keyed by the request's seed with the position as counter: the
same seed and position give the same number on every device and in every batch. The token is the first one, by
id, at which the running sum of the kept probabilities exceeds the number times their total.

The order is vLLM's. Of equally likely tokens at the edge of top-k or top-p, all are kept.
source   Salmon et al. 2011 (Philox); Holtzman et al. 2019 (top-p); Nguyen et al. 2024 (min-p)
"""

from collections.abc import Sequence

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF


def sample(
    logits: Tensor,
    temperatures: Tensor,
    top_ks: Tensor,
    top_ps: Tensor,
    min_ps: Tensor,
    seeds: Sequence[int],
    positions: Sequence[int],
) -> Tensor:
    """One token a row. temperatures (> 0), top_ps, min_ps: [rows] float; top_ks: [rows] int, 0 for all."""
    scaled = logits.float() / temperatures[:, None]
    scaled = scaled - scaled.amax(-1, keepdim=True)
    scaled = scaled.masked_fill(scaled < min_ps.log()[:, None], float("-inf"))
    if bool((top_ks > 0).any() | (top_ps < 1).any()):
        scaled = _truncate(scaled, top_ks, top_ps)
    # Summed in float64: in float32 a vocabulary of 100k loses the tail.
    running = scaled.double().exp().cumsum(-1)
    draws = torch.tensor(
        [uniform(seed, position) for seed, position in zip(seeds, positions, strict=True)],
        dtype=torch.float64,
        device=logits.device,
    )
    return torch.searchsorted(running, draws[:, None] * running[:, -1:], right=True).squeeze(-1)


def _truncate(scaled: Tensor, top_ks: Tensor, top_ps: Tensor) -> Tensor:
    """scaled with all but the top-k, and of those all but the top-p, set to -inf."""
    vocab = scaled.shape[-1]
    ordered = scaled.sort(-1, descending=True).values
    counts = torch.where(top_ks > 0, top_ks.clamp(max=vocab), vocab)
    kth = ordered.gather(-1, counts[:, None] - 1)
    ordered = ordered.masked_fill(ordered < kth, float("-inf"))
    probabilities = ordered.softmax(-1)
    before = probabilities.cumsum(-1) - probabilities
    kept = (before < top_ps[:, None]) | (top_ps[:, None] >= 1)
    kept[:, 0] = True
    least = ordered.masked_fill(~kept, float("inf")).amin(-1, keepdim=True)
    return scaled.masked_fill(scaled < torch.maximum(kth, least), float("-inf"))


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits that depends on nothing but its arguments."""
    c0, c1, c2, c3 = position & _MASK, (position >> 32) & _MASK, 0, 0
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return ((c0 << 21) | (c1 >> 11)) / 2.0**53
