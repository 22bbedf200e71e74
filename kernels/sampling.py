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

from octavo.kernels.masks import apply_masks
from octavo.kernels.native import find_loop

_MASK = 0xFFFFFFFF
_FARTHEST, _FARTHEST_IN_FLOAT32 = 700.0, 80.0  # temperatures from the likeliest token: no draw finds such a weight
_BLOCK = 1024  # tokens; as draw_loop.py has it
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
    masks: Tensor | None = None,
) -> Tensor:
    """One token a row.

    Args:
        logits: [rows, vocab], any float dtype.
        temperatures: [rows] float64; 0 for the likeliest token, the first one among equals.
        top_ks: [rows] int, 0 for all.
        top_ps: [rows] float, 1 for all.
        max_distances: [rows] float32, as `max_distance` gives them; inf for all.
        seeds: of each row.
        positions: of each row's new token.
        masks: of the tokens that are allowed, as masks.py has them; at least one in each row.
    """
    loop = find_loop("draw", logits.dtype, logits.device)
    if loop is None or logits.stride(-1) != 1:
        return reference(logits, temperatures, top_ks, top_ps, max_distances, seeds, positions, masks)
    rows, vocab = logits.shape
    is_random = temperatures > 0
    limits = torch.minimum(max_distances, (_FARTHEST_IN_FLOAT32 * temperatures).float())
    _narrow(limits, logits, masks, temperatures, top_ks, top_ps)
    rates = torch.where(is_random, 1.0 / temperatures, 0.0)
    draws = _draws(seeds, positions)
    sums = torch.empty(rows, -(-vocab // _BLOCK), dtype=torch.float64)
    out = torch.empty(rows, dtype=torch.int64)
    loop.run(
        2 * logits.nbytes, rows, vocab, logits.stride(0), logits.data_ptr(),
        0 if masks is None else masks.data_ptr(), 0 if masks is None else masks.stride(0),
        rates.data_ptr(), limits.data_ptr(), draws.data_ptr(), sums.data_ptr(), out.data_ptr(),
    )  # fmt: skip
    return out


def reference(
    logits: Tensor,
    temperatures: Tensor,
    top_ks: Tensor,
    top_ps: Tensor,
    max_distances: Tensor,
    seeds: Sequence[int],
    positions: Sequence[int],
    masks: Tensor | None = None,
) -> Tensor:
    """As `sample`, in torch, on any device, in float64."""
    logits = _allowed(logits, masks)
    is_random = temperatures > 0
    divisors = torch.where(is_random, temperatures, 1.0)
    limits = torch.minimum(max_distances, (_FARTHEST * divisors).float())
    _narrow(limits, logits, None, temperatures, top_ks, top_ps)
    distances = _distances(logits)
    weights = _weights(distances, divisors[:, None], limits[:, None])
    # Summed in float64: in float32 a vocabulary of 100k loses the tail.
    running = weights.cumsum(-1)
    draws = _draws(seeds, positions).to(logits.device)
    drawn = torch.searchsorted(running, draws[:, None] * running[:, -1:], right=True).squeeze(-1)
    return torch.where(is_random, drawn, logits.argmax(-1))


def _allowed(logits: Tensor, masks: Tensor | None) -> Tensor:
    """In float32; changed where there are masks."""
    if masks is None:
        return logits.float()
    logits = logits.to(torch.float32, copy=True)
    apply_masks(logits, masks)
    return logits


def _distances(logits: Tensor) -> Tensor:
    return logits.amax(-1, keepdim=True) - logits


def _weights(distances: Tensor, temperature: Tensor, limit: Tensor) -> Tensor:
    """In float64; beyond the limit there is none."""
    # exp of -inf takes many times as long as that of a number.
    weights = distances.double().div_(-temperature).clamp_(min=-_FARTHEST).exp_()
    return weights.masked_fill_(distances > limit, 0.0)


def _draws(seeds: Sequence[int], positions: Sequence[int]) -> Tensor:
    numbers = [uniform(seed, position) for seed, position in zip(seeds, positions, strict=True)]
    return torch.tensor(numbers, dtype=torch.float64)


def max_distance(temperature: float, min_p: float) -> float:
    """The distance at which a token is min_p times as likely as the likeliest."""
    return temperature * math.log(1 / min_p) if min_p > 0 else math.inf


def _narrow(
    limits: Tensor, logits: Tensor, masks: Tensor | None, temperatures: Tensor, top_ks: Tensor, top_ps: Tensor
) -> None:
    """Lower the limits, [rows] float32, in place, of those rows that draw and have top-k or top-p."""
    for row in torch.nonzero((temperatures > 0) & ((top_ks > 0) | (top_ps < 1))).flatten().tolist():
        one = slice(row, row + 1)
        distances = _distances(_allowed(logits[one], None if masks is None else masks[one]))[0]
        limits[row] = _limit(distances, temperatures[row], limits[row], int(top_ks[row]), float(top_ps[row].float()))


def _limit(distances: Tensor, temperature: Tensor, limit: Tensor, top_k: int, top_p: float) -> Tensor:
    """The distance of the last token that top-k and then top-p keep, of one row; a scalar.

    Of top-p only the tokens near the likeliest are sorted, if they are known to hold all that are kept.
    """
    kth = limit
    if 0 < top_k < len(distances):
        kth = torch.minimum(limit, distances.topk(top_k, largest=False).values[-1])
    if top_p >= 1:
        return kth
    kept = distances if top_k == 0 else distances[distances <= kth]
    total = _weights(kept, temperature, limit).sum()
    for reach in _REACHES:
        ordered = kept[kept <= reach * temperature].sort().values
        running = _weights(ordered, temperature, limit).cumsum(-1)
        if running[-1] >= total * (top_p * (1 + 1e-9)):  # whatever the order of summing
            break
    # A token is kept if those before it have less than top_p together; the first one always.
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
