"""Sampling: its numbers, its distribution, and that both can be made again."""

import math

import pytest
import torch

from octavo.kernels.sampling import count_tokens, logprobs, max_distance, penalise, reference, sample, uniform

DRAWS = 20_000


def test_uniform_is_philox_4x32_10() -> None:
    assert uniform(0, 0) == ((0x6627E8D5 << 21) | (0xE169C58D >> 11)) / 2**53
    assert uniform(5, 7) != uniform(7, 5)


def test_a_draw_depends_on_seed_and_position_alone() -> None:
    logits = torch.randn(3, 50)
    together = _sample(logits, [1, 2, 3], [4, 5, 6])
    assert _sample(logits[1:2], [2], [5]).tolist() == together[1:2].tolist()


def test_the_distribution_is_the_truncated_softmax() -> None:
    logits = torch.tensor([2.0, 1.5, 1.0, 0.5, 0.0, -0.5, -1.0, -4.0])
    for temperature, top_k, top_p, min_p in [
        (1, 0, 1, 0),
        (0.7, 3, 1, 0),
        (1.3, 0, 0.8, 0),
        (1, 5, 0.9, 0.2),
    ]:
        expected = _plain_distribution(logits.tolist(), temperature, top_k, top_p, min_p)
        tokens = _sample(logits.expand(DRAWS, -1), [11] * DRAWS, range(DRAWS), temperature, top_k, top_p, min_p)
        counts = torch.bincount(tokens, minlength=8).tolist()
        assert all(count == 0 for count, p in zip(counts, expected, strict=True) if p == 0)
        squares = [(c - DRAWS * p) ** 2 / (DRAWS * p) for c, p in zip(counts, expected, strict=True) if p > 0]
        assert sum(squares) < 29.9, "chi-square of 7 degrees of freedom exceeds this once in 10,000"


def test_equally_likely_tokens_at_an_edge_are_all_kept() -> None:
    logits = torch.tensor([3.0, 1.0, 2.0, 1.0, 1.0, 0.0])
    for changes in ({"top_k": 3}, {"top_p": 0.85}, {"top_k": 4, "top_p": 0.999}, {"min_p": 0.1}):
        tokens = _sample(logits.expand(2000, -1), [5] * 2000, range(2000), **changes)
        assert sorted(set(tokens.tolist())) == [0, 1, 2, 3, 4], changes
    assert set(_sample(logits.expand(500, -1), [5] * 500, range(500), min_p=1.0).tolist()) == {0}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("vocab", [1, 31, 33, 1024, 1025, 5000])
def test_the_loop_draws_what_the_formula_draws(vocab: int, dtype: torch.dtype) -> None:
    """Beside other rows, behind masks, with each kind of limit, and the likeliest token where the temperature is 0."""
    generator, rows = torch.Generator().manual_seed(vocab), 48
    whole = (3 * torch.randn(rows, vocab + 7, generator=generator)).to(dtype)
    logits = whole[:, :vocab]  # whose rows are not one behind the other
    logits[torch.rand(rows, vocab, generator=generator) < 0.1] = -torch.inf
    masks = torch.randint(-(2**31), 2**31, (rows, -(-vocab // 32)), dtype=torch.int32, generator=generator)
    masks[torch.rand(masks.shape, generator=generator) < 0.5] = 0
    for row in range(rows):
        token = int(torch.randint(vocab, (1,), generator=generator))
        masks[row, token // 32] |= 1 << token % 32 if token % 32 < 31 else -(1 << 31)
        logits[row, token] = 1.0
    numbers = torch.arange(rows)
    temperatures = (numbers % 4).double() / 2
    top_ks = torch.where(numbers % 3 == 0, 5, 0)
    top_ps = torch.where(numbers % 5 == 0, 0.7, 1.0)
    distances = torch.where(numbers % 7 == 0, 2.0, torch.inf)
    given = (temperatures, top_ks, top_ps, distances, list(range(rows)), [9] * rows)
    for some in (None, masks):
        assert sample(logits, *given, some).tolist() == reference(logits, *given, some).tolist()


def test_penalties_follow_their_formula() -> None:
    prompt, output, vocab = [3, 3, 7, 1], [7, 7, 2, 7], 9
    logits = [0.5 * token - 1.5 for token in range(vocab)]
    expected = []
    for token, logit in enumerate(logits):
        if token in prompt + output:
            logit = logit / 1.5 if logit > 0 else logit * 1.5
        expected.append(logit - 0.25 * output.count(token) - (0.75 if token in output else 0.0))
    counts = count_tokens(torch.tensor(prompt + output), len(prompt), vocab)
    penalised = penalise(
        torch.tensor([logits]), counts[None], torch.tensor([1.5]), torch.tensor([0.25]), torch.tensor([0.75])
    )
    assert torch.allclose(penalised, torch.tensor([expected]), atol=1e-6)


def test_repetition_penalty_is_that_of_transformers() -> None:
    from transformers import RepetitionPenaltyLogitsProcessor

    logits, known = torch.randn(1, 200), torch.randint(0, 200, (1, 80))
    theirs = RepetitionPenaltyLogitsProcessor(penalty=1.7)(known, logits.clone())
    counts = count_tokens(known[0], 50, 200)
    none = torch.zeros(1)
    assert torch.allclose(penalise(logits, counts[None], torch.tensor([1.7]), none, none), theirs)


def test_logprobs_are_those_of_the_softmax_and_the_lower_id_comes_first() -> None:
    logits = torch.tensor([[1.0, 3.0, 2.0, 3.0, -float("inf")]])
    total = math.log(sum(math.exp(each) for each in (1, 3, 2, 3)))
    chosen, top, ids = logprobs(logits, torch.tensor([2]), 3)
    assert ids.tolist() == [[1, 3, 2]]
    assert torch.allclose(chosen, torch.tensor([2 - total]), atol=1e-6)
    assert torch.allclose(top, torch.tensor([[3 - total, 3 - total, 2 - total]]), atol=1e-6)


def _sample(logits, seeds, positions, temperature=1.0, top_k=0, top_p=1.0, min_p=0.0):  # type: ignore[no-untyped-def]  # a shorthand
    rows = len(logits)
    return sample(
        logits, torch.full((rows,), float(temperature), dtype=torch.float64), torch.full((rows,), top_k),
        torch.full((rows,), float(top_p)), torch.full((rows,), max_distance(temperature, min_p)), seeds, positions,
    )  # fmt: skip


def _plain_distribution(logits: list[float], temperature: float, top_k: int, top_p: float, min_p: float) -> list[float]:
    """The formulas in Python floats: min-p, then top-k, then top-p of what is left."""
    weights = (torch.tensor(logits).double() / temperature).softmax(0).tolist()
    kept = [i for i, w in enumerate(weights) if w >= min_p * max(weights)]
    kept = sorted(kept, key=lambda i: -weights[i])[: top_k or None]
    total, running, chosen = sum(weights[i] for i in kept), 0.0, []
    for i in kept:
        if running < top_p * total or top_p >= 1:
            chosen.append(i)
        running += weights[i]
    whole = sum(weights[i] for i in chosen)
    return [w / whole if i in chosen else 0.0 for i, w in enumerate(weights)]
