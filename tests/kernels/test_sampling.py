"""Sampling: its numbers, its distribution, and that both can be made again."""

import math

import torch

from octavo.kernels.sampling import count_tokens, logprobs, max_distance, penalise, sample, uniform

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
