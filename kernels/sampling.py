"""From logits to tokens: penalties, temperature, min-p, top-k, top-p, then one draw by inverse transform.

logits   [rows, vocab] float
returns  [rows] int64 token ids

Each token has a distance: how far its logit, penalties applied, is below the highest one, in float32. All limits
are limits of distance, so of equally likely tokens at the edge of top-k or top-p all are kept.

A draw needs one uniform number, Philox4x32-10 keyed by the request's seed with the position as counter: the
same seed and position give the same number on every device and in every batch. The token is the first one, by
id, at which the running sum of the kept probabilities exceeds the number times their total.

The order, the penalties and the logprobs (of the logits as the model gave them) are vLLM's.
source   Keskar et al. 2019 (repetition penalty); Holtzman et al. 2019 (top-p); Nguyen et al. 2024 (min-p);
         Salmon et al. 2011 (Philox)
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

_MASK = 0xFFFFFFFF
_FARTHEST = 700.0  # temperatures from the likeliest token
_REACHES = (8.0, 16.0, math.inf)  # temperatures
IN_PROMPT, GENERATED = 1, 2  # what a token's count grows by


def sample(
    logits: Tensor,
    temperatures: Tensor,
    top_ks: Tensor,
    top_ps: Tensor,
    max_distances: Tensor,
    seeds: Sequence[int],
    positions: Sequence[int],
) -> Tensor:
    """One token a row.

    Args:
        logits: [rows, vocab], any float dtype.
        temperatures: [rows] float64, > 0.
        top_ks: [rows] int, 0 for all.
        top_ps: [rows] float, 1 for all.
        max_distances: [rows] float32, as `max_distance` gives them; inf for all.
        seeds: of each row.
        positions: of each row's new token.
    """
    logits = logits.float()
    distances = logits.amax(-1, keepdim=True) - logits
    # No draw finds a weight of exp(-700), and exp of -inf takes many times as long as that of a number.
    weights = distances.double().div_(-temperatures[:, None]).clamp_(min=-_FARTHEST).exp_()
    limits = torch.minimum(max_distances, (_FARTHEST * temperatures).float())
    weights.masked_fill_(distances > limits[:, None], 0.0)
    for row in torch.nonzero((top_ks > 0) | (top_ps < 1)).flatten().tolist():
        limit = _limit(distances[row], weights[row], temperatures[row], int(top_ks[row]), float(top_ps[row].float()))
        weights[row].masked_fill_(distances[row] > limit, 0.0)
    # Summed in float64: in float32 a vocabulary of 100k loses the tail.
    running = weights.cumsum(-1)
    draws = torch.tensor(
        [uniform(seed, position) for seed, position in zip(seeds, positions, strict=True)],
        dtype=torch.float64,
        device=logits.device,
    )
    return torch.searchsorted(running, draws[:, None] * running[:, -1:], right=True).squeeze(-1)


def max_distance(temperature: float, min_p: float) -> float:
    """The distance at which a token is min_p times as likely as the likeliest."""
    return temperature * math.log(1 / min_p) if min_p > 0 else math.inf


def _limit(distances: Tensor, weights: Tensor, temperature: Tensor, top_k: int, top_p: float) -> Tensor:
    """The distance of the last token that top-k and then top-p keep, of one row; a scalar.

    Only the tokens near the likeliest are sorted, if they are known to hold all that are kept.
    """
    enough = weights.sum() * (top_p * (1 + 1e-9))  # whatever the order of summing
    for reach in _REACHES:
        near = torch.nonzero(distances <= reach * temperature).flatten()
        if len(near) >= top_k if top_k > 0 else bool(weights[near].sum() >= enough):
            break
    ordered, order = distances[near].sort()
    kth = ordered[min(top_k, len(near)) - 1] if top_k > 0 else ordered[-1]
    if top_p >= 1:
        return kth
    running = weights[near[order]].masked_fill_(ordered > kth, 0.0).cumsum(-1)
    # A token is kept if those before it have less than top_p together; the first one always.
    total = running[-1] if top_k > 0 else weights.sum()
    num_kept = 1 + int(torch.count_nonzero(running[:-1] < top_p * total))
    return torch.minimum(kth, ordered[num_kept - 1])


def penalise(logits: Tensor, counts: Tensor, repetitions: Tensor, frequencies: Tensor, presences: Tensor) -> Tensor:
    """The logits, lowered for tokens that have occurred, [rows, vocab] float32.

    Args:
        logits: [rows, vocab], any float dtype.
        counts: [rows, vocab] int32, as `count_tokens` gives them.
        repetitions: [rows] float32, > 0: divides positive logits and multiplies others, of tokens in the prompt or
            the completion; 1 for none.
        frequencies: [rows] float32, taken off for each time that the completion has the token.
        presences: [rows] float32, taken off if the completion has the token.
    """
    logits, generated = logits.float(), counts // GENERATED
    factors = repetitions[:, None]
    repeated = torch.where(logits > 0, logits / factors, logits * factors)
    logits = torch.where(counts > 0, repeated, logits)
    return logits - frequencies[:, None] * generated - presences[:, None] * (generated > 0)


def count_tokens(token_ids: Tensor, num_prompt: int, vocab: int) -> Tensor:
    """What `penalise` must know of a request: [vocab] int32, GENERATED for each time that a token was generated, and
    IN_PROMPT if it is in the prompt.

    Args:
        token_ids: [tokens] int64, the prompt, then the completion so far.
        num_prompt: tokens of the prompt.
        vocab: width of the logits.
    """
    counts = GENERATED * torch.bincount(token_ids[num_prompt:], minlength=vocab)
    counts[token_ids[:num_prompt]] += IN_PROMPT  # an index that occurs twice counts once
    return counts.int()


def logprobs(logits: Tensor, tokens: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor]:
    """Of each row: log of the softmax of its token, [rows] float32; and of the likeliest tokens with their ids, the
    lower id first among equals, [rows, num_top] float32 and int64.
    """
    every = logits.float().log_softmax(-1)
    top = every.sort(dim=-1, descending=True, stable=True)
    return every.gather(-1, tokens[:, None]).squeeze(-1), top.values[:, :num_top], top.indices[:, :num_top]


def uniform(seed: int, position: int) -> float:
    """A number in [0, 1) with 53 random bits that depends on nothing but its arguments."""
    c0, c1, c2, c3 = position & _MASK, (position >> 32) & _MASK, 0, 0
    k0, k1 = seed & _MASK, (seed >> 32) & _MASK
    for _ in range(10):
        p0, p1 = 0xD2511F53 * c0, 0xCD9E8D57 * c2
        c0, c1, c2, c3 = (p1 >> 32) ^ c1 ^ k0, p1 & _MASK, (p0 >> 32) ^ c3 ^ k1, p0 & _MASK
        k0, k1 = (k0 + 0x9E3779B9) & _MASK, (k1 + 0xBB67AE85) & _MASK
    return ((c0 << 21) | (c1 >> 11)) / 2.0**53
