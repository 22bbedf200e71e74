"""From a checked request to token ids and sampling parameters."""

import json

import msgspec
import pytest
from tests.tokenizer.core_harness import CALL, END, MAX_LEN, MODEL, VOCABULARY, encode

from octavo.services.tokenizer.prompts import COMPLETION_MAX_TOKENS, Prompter
from octavo.shared.errors import InvalidRequest
from octavo.shared.messages import CallId
from octavo.shared.openai import CallRequest, read_request
from octavo.shared.sampling import MAX_SEED, SamplingParams

PROMPTER = Prompter(VOCABULARY, frozenset([END]))
BARE = Prompter(None, frozenset([END]))


def completion(**fields: object) -> CallRequest:
    return read_request("completion", json.dumps({"prompt": "Hi"} | fields).encode())


def chat(content: str = "Hi", **fields: object) -> CallRequest:
    messages = [{"role": "user", "content": content}]
    return read_request("chat", json.dumps({"messages": messages} | fields).encode())


def params(request: CallRequest, copy: int = 0, num_prompt: int = 10, call: CallId = CALL) -> SamplingParams:
    return PROMPTER.params(request, call, copy, num_prompt, MODEL)


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
    assert PROMPTER.prompts(completion(prompt=prompt), MODEL) == wanted


def test_a_conversation_goes_through_the_models_template() -> None:
    assert PROMPTER.prompts(chat("Hello"), MODEL) == [encode("<user>Hello<assistant>")]


def test_a_model_without_a_tokenizer_takes_ids_and_says_so() -> None:
    assert BARE.prompts(completion(prompt=[1, 2]), MODEL) == [[1, 2]]
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
    request_: CallRequest, param: str, count: str
) -> None:
    with pytest.raises(InvalidRequest) as caught:
        PROMPTER.prompts(request_, MODEL)
    assert (caught.value.param, caught.value.code) == (param, "context_length_exceeded")
    assert caught.value.message.startswith(f"{param}: it has ")
    assert count in caught.value.message and str(MAX_LEN) in caught.value.message


def test_the_longest_prompt_leaves_room_for_one_token() -> None:
    prompts = PROMPTER.prompts(completion(prompt=[1] * (MAX_LEN - 1)), MODEL)
    assert params(completion(), num_prompt=len(prompts[0])).max_tokens == 1


def test_the_length_of_a_completion_is_what_was_asked_for_or_what_there_is_room_for() -> None:
    assert params(completion()).max_tokens == COMPLETION_MAX_TOKENS
    assert params(completion(max_tokens=7)).max_tokens == 7
    assert params(completion(max_tokens=10_000)).max_tokens == MAX_LEN - 10
    assert params(chat()).max_tokens == MAX_LEN - 10
    assert params(chat(max_tokens=7)).max_tokens == 7
    assert params(chat(max_tokens=7, max_completion_tokens=5)).max_tokens == 5


def test_a_seed_gives_each_choice_its_own_luck_and_the_same_each_time() -> None:
    assert [params(completion(seed=9), copy).seed for copy in range(3)] == [9, 10, 11]
    assert 0 <= params(completion(seed=-5)).seed <= MAX_SEED
    assert 0 <= params(completion(seed=MAX_SEED), 1).seed <= MAX_SEED


def test_without_a_seed_luck_is_the_calls_own_wherever_it_is_prepared() -> None:
    other = CallId(bytes(16))
    assert params(completion()) == params(completion())
    assert params(completion()).seed != params(completion(), call=other).seed
    assert params(completion(), 1).seed != params(completion(), 0).seed


def test_options_that_are_not_given_have_openais_defaults() -> None:
    plain = params(completion())
    assert (plain.temperature, plain.top_p, plain.top_k, plain.min_p) == (1.0, 1.0, 0, 0.0)
    assert params(completion(top_k=-1)).top_k == 0
    assert params(completion(temperature=0)).is_greedy


def test_end_of_sequence_tokens_stop_unless_they_are_ignored() -> None:
    assert params(completion()).stop_token_ids == (END,)
    assert params(completion(ignore_eos=True)).stop_token_ids == ()


def test_parameters_pass_their_own_bounds() -> None:
    given = params(completion(temperature=2, top_p=0.5, top_k=3, min_p=0.1, seed=MAX_SEED))
    assert msgspec.convert(msgspec.to_builtins(given), SamplingParams) == given
