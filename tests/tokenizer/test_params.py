"""From the options of a request to sampling parameters."""

import msgspec
import pytest
from tests.tokenizer.core_harness import CALL, END, MAX_LEN, MODEL, VOCABULARY, encode
from tests.tokenizer.test_prompts import chat, completion

from octavo.services.tokenizer.params import COMPLETION_MAX_TOKENS, Defaults, ParamsMaker
from octavo.shared.errors import InvalidRequest
from octavo.shared.messages import CallId, pack, unpack
from octavo.shared.openai import Options
from octavo.shared.sampling import MAX_SEED, SamplingParams

MAKER = ParamsMaker(VOCABULARY, [END], Defaults())


def params(request: Options, copy: int = 0, num_prompt: int = 10, call: CallId = CALL) -> SamplingParams:
    return MAKER.make(request, call, copy, num_prompt, MODEL)


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


def test_what_is_favoured_or_forbidden_is_passed_on() -> None:
    given = params(completion(logit_bias={"3": -100, "5": 1.5}, allowed_token_ids=[9, 3, 9], min_tokens=4))
    assert given.biases == {3: -100.0, 5: 1.5}
    assert unpack(given.allowed_token_ids).tolist() == [3, 9]
    assert given.min_tokens == 4
    assert not params(completion()).has_edits and given.has_edits


def test_bad_words_are_their_tokens_with_a_space_in_front_and_without() -> None:
    assert set(params(completion(bad_words=["ab"])).bad_words) == {pack(encode("ab")), pack(encode(" ab"))}


@pytest.mark.parametrize("fields", [{"logit_bias": {str(MODEL.vocab_size): 1}}, {"allowed_token_ids": [10**6]}])
def test_a_token_outside_of_the_vocabulary_is_refused_with_the_limit(fields: dict[str, object]) -> None:
    with pytest.raises(InvalidRequest, match=f"is outside the vocabulary; ids are 0 to {MODEL.vocab_size - 1}"):
        params(completion(**fields))


def test_the_models_defaults_hold_where_a_request_says_nothing() -> None:
    maker = ParamsMaker(VOCABULARY, [END], Defaults(0.6, 0.9, 20, None, 1.1, 30))
    mine = maker.make(chat(), CALL, 0, 10, MODEL)
    assert (mine.temperature, mine.top_p, mine.top_k, mine.repetition_penalty) == (0.6, 0.9, 20, 1.1)
    assert mine.max_tokens == 30
    assert maker.make(chat(temperature=0, top_k=-1, max_tokens=5), CALL, 0, 10, MODEL).temperature == 0.0
    assert maker.make(chat(top_k=-1), CALL, 0, 10, MODEL).top_k == 0


def test_logprobs_are_asked_for_where_they_are_needed() -> None:
    assert params(completion()).logprobs is None
    assert params(completion(logprobs=0)).logprobs == 0
    assert params(chat(logprobs=True, top_logprobs=3)).logprobs == 3
    assert params(completion(best_of=3)).logprobs == 0
    assert params(completion(echo=True, logprobs=2)).prompt_logprobs == 2
    assert params(chat(prompt_logprobs=1)).prompt_logprobs == 1
