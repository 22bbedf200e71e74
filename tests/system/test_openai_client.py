"""The real model on the CPU, asked through OpenAI's own client as users do."""

import functools
from collections.abc import Iterator

import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletionMessageParam
from tests.tools.server import Server

from octavo.services.tokenizer.vocabulary import Vocabulary
from octavo.services.tokenizer.workshop import load_workshop
from octavo.shared.config import Config

MODEL = "SmolLM2-135M-Instruct"
PROMPTS = [
    "What is the capital of Japan?",
    "Write one sentence about the sea.",
    "Translate 'good morning' into Japanese.",
    "Reply with three emoji: \N{GRINNING FACE}",
]


@pytest.fixture(scope="module")
def client(model_server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{model_server.url}/v1", api_key="none", max_retries=0, timeout=400) as client:
        yield client


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    vocabulary = load_workshop(Config()).vocabulary
    assert vocabulary is not None
    return vocabulary


def ask(prompt: str) -> list[ChatCompletionMessageParam]:
    return [{"role": "user", "content": prompt}]


@pytest.mark.parametrize("prompt", PROMPTS)
def test_an_answer_is_the_same_streamed_and_not(client: OpenAI, prompt: str) -> None:
    whole = client.chat.completions.create(model=MODEL, messages=ask(prompt), temperature=0, max_tokens=24)
    pieces, reasons, roles = [], [], []
    with client.chat.completions.create(
        model=MODEL, messages=ask(prompt), temperature=0, max_tokens=24, stream=True
    ) as stream:
        for chunk in stream:
            pieces.append(chunk.choices[0].delta.content or "")
            roles.append(chunk.choices[0].delta.role)
            reasons.append(chunk.choices[0].finish_reason)
    assert whole.choices[0].message.content == "".join(pieces) != ""
    assert [reason for reason in reasons if reason] == [whole.choices[0].finish_reason]
    assert [role for role in roles if role] == ["assistant"]


def test_the_model_knows_its_capitals(client: OpenAI) -> None:
    answer = client.chat.completions.create(model=MODEL, messages=ask(PROMPTS[0]), temperature=0, max_tokens=24)
    assert "Tokyo" in (answer.choices[0].message.content or "")


def test_usage_counts_what_the_tokenizer_counts(client: OpenAI, vocabulary: Vocabulary) -> None:
    text = "Once upon a time there was a fox."
    answer = client.completions.create(model=MODEL, prompt=[text, text], temperature=0, max_tokens=7, n=2)
    assert answer.usage is not None
    num_prompt = 2 * len(vocabulary.encode(text))
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (num_prompt, 4 * 7)
    assert answer.usage.total_tokens == num_prompt + 4 * 7


def test_include_usage_adds_one_last_chunk(client: OpenAI) -> None:
    with client.chat.completions.create(
        model=MODEL, messages=ask("Hi"), max_tokens=5, stream=True, stream_options={"include_usage": True}
    ) as stream:
        chunks = list(stream)
    assert [chunk.usage is not None for chunk in chunks] == [False] * (len(chunks) - 1) + [True]
    assert chunks[-1].choices == []
    assert chunks[-1].usage is not None and 1 <= chunks[-1].usage.completion_tokens <= 5


def test_three_choices_with_a_seed_differ_and_come_again(client: OpenAI) -> None:
    first, second = (
        client.chat.completions.create(model=MODEL, messages=ask("Tell a story."), n=3, seed=11, max_tokens=16)
        for _ in range(2)
    )
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert [choice.message.content for choice in second.choices] == texts


def test_another_seed_gives_another_text(client: OpenAI) -> None:
    one, other = (
        client.completions.create(model=MODEL, prompt="A poem:", seed=seed, max_tokens=16).choices[0].text
        for seed in (1, 2)
    )
    assert one != other


def test_a_stop_string_across_tokens_ends_the_text_before_it(client: OpenAI, vocabulary: Vocabulary) -> None:
    create = functools.partial(
        client.completions.create,
        model=MODEL,
        prompt="The days of the week are Monday, Tuesday,",
        temperature=0,
        max_tokens=24,
    )
    text = create().choices[0].text
    stop = _string_across_tokens(text, vocabulary)
    whole = create(stop=[stop, "no such thing"]).choices[0]
    streamed = [chunk.choices[0] for chunk in create(stop=[stop, "no such thing"], stream=True)]  # type: ignore[attr-defined]  # partial hides the overload
    assert whole.text == "".join(choice.text for choice in streamed) == text[: text.index(stop)]
    assert whole.finish_reason == streamed[-1].finish_reason == "stop"


def _string_across_tokens(text: str, vocabulary: Vocabulary) -> str:
    """The last character of a token in the middle of the text with the first of the next one."""
    ids = vocabulary.encode(text, add_special_tokens=False)
    middle = len(b"".join(vocabulary.pieces[id] for id in ids[: len(ids) // 2]).decode())
    return text[middle - 1 : middle + 1]


def test_max_completion_tokens_goes_before_max_tokens(client: OpenAI) -> None:
    answer = client.chat.completions.create(
        model=MODEL, messages=ask("Tell a long story."), max_completion_tokens=3, max_tokens=9, temperature=0
    )
    assert answer.usage is not None and answer.usage.completion_tokens == 3
    assert answer.choices[0].finish_reason == "length"


def test_all_forms_of_a_prompt_mean_the_same(client: OpenAI, vocabulary: Vocabulary) -> None:
    text = "The sun rises in the"
    ids = vocabulary.encode(text)
    forms: list[str | list[str] | list[int] | list[list[int]]] = [text, [text], ids, [ids]]
    answers = [client.completions.create(model=MODEL, prompt=form, temperature=0, max_tokens=8) for form in forms]
    assert {answer.choices[0].text for answer in answers} == {answers[0].choices[0].text}
    assert answers[0].choices[0].text


def test_several_prompts_are_answered_in_their_order(client: OpenAI) -> None:
    prompts = ["One, two, three,", "The capital of Italy is", "Monday, Tuesday,"]
    together = client.completions.create(model=MODEL, prompt=prompts, temperature=0, max_tokens=1)
    assert [choice.text for choice in together.choices] == [" four", " Rome", " Wednesday"]
    assert [choice.index for choice in together.choices] == [0, 1, 2]


def test_the_model_is_listed(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
