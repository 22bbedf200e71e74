"""The loop that draws tokens: see loops.py for what a loop is, and sampling.py for what is computed.

A row is read three times: for its greatest logit, for the weight of each block of its tokens, and the block in which
the draw falls for the token. Words of a mask that allow none of their 32 tokens are passed over.
"""

# mypy: ignore-errors
# numba infers the types here: annotations would say nothing, and its decorators have none.

import numpy as np
from numba import njit

from octavo.kernels.intrinsics import advance, at, doubles, exp, ints, load, singles, take, words

SUMS = {"reassoc", "contract", "nsz"}  # a sum may be taken in any order; NaN and inf stay what they are
BLOCK = 1024  # tokens
WORD = 32  # tokens of a mask's word

_INF = np.float32(np.inf)
_ALL = np.uint32(0xFFFFFFFF)


def draw(raw):
    """Items are rows. Words: rows, vocab, row stride of logits, logits, masks (0 for none), their row stride, rates,
    limits, draws, sums [rows, blocks], out.

    masks are int32, bit t % 32 of word t // 32 for token t; rates, draws and sums are float64, limits float32, out
    int64. A rate is 1 / temperature, or 0 for the likeliest token. A limit is finite.
    """
    job = words(raw)
    rows, vocab = job[1], job[2]
    row = take(job)
    while row < rows:
        logits = advance(at(job[4], raw), row * job[3])
        mask = advance(ints(job[5]), row * job[6])
        rate = np.float32(doubles(job[7])[row])
        limit = singles(job[8])[row]
        sums = advance(doubles(job[10]), row * ((vocab + BLOCK - 1) // BLOCK))
        has_mask = job[5] != 0
        peak = _peak(logits, mask, has_mask, vocab)
        if rate == np.float32(0):
            words(job[11])[row] = _first(logits, mask, has_mask, vocab, peak)
        else:
            words(job[11])[row] = _draw(logits, mask, has_mask, vocab, peak, rate, limit, doubles(job[9])[row], sums)
        row = take(job)


@njit(error_model="numpy", forceinline=True)
def _bits(mask, has_mask, word):
    return np.uint32(mask[word]) if has_mask else _ALL


@njit(error_model="numpy", forceinline=True)
def _allowed(bits, i):
    return ((bits >> np.uint32(i)) & np.uint32(1)) != 0


@njit(fastmath=SUMS, error_model="numpy", forceinline=True)
def _peak_of_word(logits, bits, count):
    peak = -_INF
    if bits == _ALL:
        for i in range(count):
            peak = max(peak, load(logits[i]))
    else:
        for i in range(count):
            x = load(logits[i])
            peak = max(peak, x if _allowed(bits, i) else -_INF)
    return peak


@njit(error_model="numpy", forceinline=True)
def _peak(logits, mask, has_mask, vocab):
    peak = -_INF
    whole = vocab // WORD
    for word in range(whole):
        bits = _bits(mask, has_mask, word)
        if bits != 0:
            peak = max(peak, _peak_of_word(advance(logits, word * WORD), bits, WORD))
    if whole * WORD < vocab:
        bits = _bits(mask, has_mask, whole)
        peak = max(peak, _peak_of_word(advance(logits, whole * WORD), bits, vocab - whole * WORD))
    return peak


@njit(error_model="numpy", forceinline=True)
def _first(logits, mask, has_mask, vocab, peak):
    """The first allowed token whose logit is the greatest."""
    for token in range(vocab):
        if load(logits[token]) == peak and _allowed(_bits(mask, has_mask, token // WORD), token % WORD):
            return token
    return 0


@njit(fastmath={"contract"}, error_model="numpy", forceinline=True)
def _weight(logits, bits, i, peak, rate, limit):
    distance = peak - load(logits[i])
    weight = exp(-distance * rate)
    return weight if _allowed(bits, i) & (distance <= limit) else np.float32(0)


@njit(fastmath=SUMS, error_model="numpy", forceinline=True)
def _weight_of_word(logits, bits, count, peak, rate, limit):
    total = np.float32(0)
    if bits == _ALL:
        for i in range(count):
            total += _weight(logits, _ALL, i, peak, rate, limit)
    else:
        for i in range(count):
            total += _weight(logits, bits, i, peak, rate, limit)
    return total


@njit(error_model="numpy", forceinline=True)
def _weigh(logits, mask, has_mask, vocab, peak, rate, limit, sums):
    """The weight of each block; returns that of all."""
    total = 0.0
    for block in range((vocab + BLOCK - 1) // BLOCK):
        weight = 0.0
        for word in range(block * (BLOCK // WORD), (block + 1) * (BLOCK // WORD)):
            token = word * WORD
            bits = _bits(mask, has_mask, word) if token < vocab else np.uint32(0)
            if bits != 0:
                if token + WORD <= vocab:
                    weight += _weight_of_word(advance(logits, token), bits, WORD, peak, rate, limit)
                else:
                    weight += _weight_of_word(advance(logits, token), bits, vocab - token, peak, rate, limit)
        sums[block] = weight
        total += weight
    return total


@njit(error_model="numpy", forceinline=True)
def _draw(logits, mask, has_mask, vocab, peak, rate, limit, number, sums):
    left = number * _weigh(logits, mask, has_mask, vocab, peak, rate, limit, sums)
    block, last = 0, (vocab + BLOCK - 1) // BLOCK - 1
    while last > 0 and sums[last] == 0.0:
        last -= 1
    while block < last and left >= sums[block]:
        left -= sums[block]
        block += 1
    chosen = 0
    for token in range(block * BLOCK, min(vocab, (block + 1) * BLOCK)):
        bits = _bits(mask, has_mask, token // WORD)
        place = advance(logits, token - token % WORD)
        weight = _weight(place, bits, token % WORD, peak, rate, limit)
        if weight > np.float32(0):
            chosen = token
            left -= weight
            if left < 0.0:
                break
    return chosen
