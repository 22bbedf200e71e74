"""From a checked request to token ids and sampling parameters."""

import json

import pytest
from tests.tokenizer.core_harness import MAX_LEN, MODEL, VOCABULARY, encode

from octavo.services.tokenizer.prompts import Prompter
from octavo.shared.endpoints import read_request
from octavo.shared.errors import InvalidRequest
from octavo.shared.openai import Options

PROMPTER, BARE = Prompter(VOCABULARY), Prompter(None)


def read(endpoint: str, fields: dict[str, object]) -> Options:
    request = read_request(endpoint, json.dumps(fields).encode())
    assert isinstance(request, Options)
    return request


def completion(**fields: object) -> Options:
    return read("completion", {"prompt": "Hi"} | fields)


def chat(content: str = "Hi", **fields: object) -> Options:
    messages = [{"role": "user", "content": content}]
    return read("chat", {"messages": messages} | fields)


def prompts(request: Options, prompter: Prompter = PROMPTER) -> list[list[int]]:
    return [prompt.token_ids for prompt in prompter.prompts(request, MODEL)]


@pytest.mark.parametrize(
    ("prompt", "wanted"),
    [
        ("ab", [encode("ab")]),
        (["ab", "c"], [encode("ab"), encode("c")]),
        ([5, 6], [[5, 6]]),
        ([[5], [6, 7]], [[5], [6, 7]]),
    ],
)
def test_a_prompt_may_be_texts_or_token_ids(prompt: object, wanted: list[list[int]]) -> None:
    assert prompts(completion(prompt=prompt)) == wanted


def test_a_conversation_goes_through_the_models_template() -> None:
    assert prompts(chat("Hello")) == [encode("<user>Hello<assistant>")]


def test_a_model_without_a_tokenizer_takes_ids_and_says_so() -> None:
    assert prompts(completion(prompt=[1, 2]), BARE) == [[1, 2]]
    with pytest.raises(InvalidRequest, match="^prompt: this model has no tokenizer; send token ids$"):
        BARE.prompts(completion(prompt="Hi"), MODEL)
    with pytest.raises(InvalidRequest, match="^messages: this model has no tokenizer"):
        BARE.prompts(chat(), MODEL)


@pytest.mark.parametrize(
    ("request_", "param", "count"),
    [
        (completion(prompt=[1] * MAX_LEN), "prompt", f"{MAX_LEN} tokens"),
        (completion(prompt="x" * MAX_LEN), "prompt", f"{MAX_LEN} tokens"),
        (completion(prompt="x" * 100_000), "prompt", "100000 characters"),
        (chat("x" * 1000), "messages", "tokens"),
        (chat("x" * 100_000), "messages", "characters"),
    ],
)
def test_a_prompt_that_is_too_long_is_refused_with_its_length_and_the_limit(
    request_: Options, param: str, count: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        PROMPTER.prompts(request_, MODEL)
    assert (caught.value.param, caught.value.code) == (param, "context_length_exceeded")
    assert caught.value.message.startswith(f"{param}: it has ")
    assert count in caught.value.message and str(MAX_LEN) in caught.value.message


def test_the_longest_prompt_leaves_room_for_one_token() -> None:
    assert len(prompts(completion(prompt=[1] * (MAX_LEN - 1)))[0]) == MAX_LEN - 1
