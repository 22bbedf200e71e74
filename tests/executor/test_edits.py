"""What a request favours or forbids, seen in the tokens of a small model and in distributions worked out here."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from tests.executor.test_sampler import VOCAB, request, tiny_engine
from tests.tools.pipeline import Pipeline

from octavo.services.executor.sampler import Sampler
from octavo.shared.messages import pack
from octavo.shared.sampling import SamplingParams

PROMPT = [3, 1, 4, 1, 5]


@pytest.fixture(scope="module")
def pipeline(tmp_path_factory: pytest.TempPathFactory) -> Pipeline:
    return Pipeline(tiny_engine(tmp_path_factory.mktemp("model"), 40))


def draw(logits: torch.Tensor, num: int, **fields: object) -> Counter[int]:
    """So many first tokens of a request, each with its own seed."""
    sampler, chosen = Sampler(len(logits)), Counter[int]()
    for seed in range(num):
        params = SamplingParams(9, seed=seed, **fields)  # type: ignore[arg-type]  # the test's own fields
        sampler.admit([request(0, PROMPT, params)])
        chosen[int(sampler.choose(logits[None], [0], [params], [len(PROMPT)]))] += 1
    return chosen


def check_distribution(chosen: Counter[int], expected: torch.Tensor) -> None:
    """Chi-square of up to 9 degrees of freedom: beyond 33.8 once in 10,000."""
    num = sum(chosen.values())
    assert all(expected[token] > 0 for token in chosen)
    likely = [token for token in range(len(expected)) if expected[token] * num >= 5]
    squares = [(chosen[token] - num * float(expected[token])) ** 2 / (num * float(expected[token])) for token in likely]
    assert sum(squares) < 33.8


def test_biases_and_allowed_tokens_change_the_distribution_as_they_should() -> None:
    logits = torch.linspace(-1, 1, 10)
    biased = logits.clone()
    biased[2] += 2.0
    check_distribution(draw(logits, 2000, biases={2: 2.0}), biased.double().softmax(-1))
    allowed = torch.full((10,), float("-inf"))
    allowed[[1, 5, 9]] = logits[[1, 5, 9]]
    check_distribution(draw(logits, 2000, allowed_token_ids=pack([1, 5, 9])), allowed.double().softmax(-1))


def test_a_request_that_forbids_everything_gets_a_token_all_the_same() -> None:
    chosen = draw(torch.linspace(-1, 1, 4), 20, allowed_token_ids=pack([1]), min_tokens=5, stop_token_ids=(1,))
    assert sum(chosen.values()) == 20


def test_stop_tokens_come_no_earlier_than_they_may(pipeline: Pipeline) -> None:
    """Every token stops: the first that may come is the last."""
    every = tuple(range(VOCAB - 1))
    for shortest in (0, 1, 7):
        params = SamplingParams(20, seed=3, min_tokens=shortest, stop_token_ids=every)
        [tokens] = pipeline.generate([PROMPT], params)
        assert tokens[:shortest] == [VOCAB - 1] * shortest, "the only token that stops nothing"
        assert len(tokens) == shortest + 1 or tokens[-1] == VOCAB - 1


def test_bad_words_are_never_said(pipeline: Pipeline) -> None:
    [plain] = pipeline.generate([PROMPT], SamplingParams(20, temperature=0.0))
    pair = (pack(plain[4:6]),)
    [without] = pipeline.generate([PROMPT], SamplingParams(20, temperature=0.0, bad_words=pair))
    assert without[:5] == plain[:5] and without[5] != plain[5], "its first token alone is allowed"
    assert plain[4:6] not in [without[place : place + 2] for place in range(19)]
    [without] = pipeline.generate([PROMPT], SamplingParams(20, temperature=0.0, bad_words=(pack(plain[:1]),)))
    assert plain[0] not in without


@pytest.mark.parametrize(("begin", "budget"), [([], 6), ([7], 6)])
def test_reasoning_ends_when_its_budget_is_spent(pipeline: Pipeline, begin: list[int], budget: int) -> None:
    """Two tokens end it; where it has begun with a token of its own, or within it from the start."""
    fields = {"thinking_budget": budget, "thinking_begin": pack(begin), "thinking_end": pack([20, 21])}
    first = {7: 100.0} if begin else {}
    [plain] = pipeline.generate([PROMPT], SamplingParams(12, seed=5, biases=first))
    [bounded] = pipeline.generate([PROMPT], SamplingParams(12, seed=5, biases=first, **fields))
    assert bounded[:budget] == plain[:budget]
    assert bounded[budget : budget + 2] == [20, 21]


def test_an_answer_without_reasoning_has_no_budget(pipeline: Pipeline) -> None:
    [plain] = pipeline.generate([PROMPT], SamplingParams(12, seed=5))
    begin = pack([(plain[0] + 1) % VOCAB])
    fields = {"thinking_budget": 3, "thinking_begin": begin, "thinking_end": pack([20])}
    assert pipeline.generate([PROMPT], SamplingParams(12, seed=5, **fields)) == [plain]
    ended = {"thinking_budget": 6, "thinking_end": pack(plain[2:4])}
    assert pipeline.generate([PROMPT], SamplingParams(12, seed=5, **ended)) == [plain], "it has ended by itself"


def test_preemption_changes_nothing_of_it(tmp_path: Path) -> None:
    prompts = [[slot + 1] * 20 for slot in range(4)]
    calm, pressed = Pipeline(tiny_engine(tmp_path, 40)), Pipeline(tiny_engine(tmp_path, 8))
    [plain] = calm.generate(prompts[:1], SamplingParams(60, temperature=0.0))
    params = SamplingParams(
        60, seed=3, biases={7: 1.0}, min_tokens=55, stop_token_ids=tuple(range(40)), bad_words=(pack(plain[:2]),)
    )
    expected = calm.generate(prompts, params)
    pressed.generate([[9]] * 100, SamplingParams(1))  # from now on it expects short completions
    assert pressed.generate(prompts, params) == expected
    assert calm.stats.num_preemptions == 0 and pressed.stats.num_preemptions > 0
