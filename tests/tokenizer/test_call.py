"""Choices turn tokens into text once, whoever sent their beginning; calls turn that into bytes."""

import json

import msgspec
from tests.tokenizer.core_harness import END, VOCABULARY, chat, completion, encode

from octavo.services.tokenizer.answers.table import make_answer
from octavo.services.tokenizer.call import Call
from octavo.services.tokenizer.choice import Choice
from octavo.services.tokenizer.logprobs import Spelling
from octavo.shared.endpoints import read_request
from octavo.shared.messages import CallId, Enqueue, Generate, pack, request_id
from octavo.shared.openai import Options
from octavo.shared.sampling import SamplingParams


def options_of(message: Generate) -> Options:
    options = read_request(message.endpoint, message.body)
    assert isinstance(options, Options)
    return options


def make_choice(message: Generate, index: int = 0, max_tokens: int = 50) -> Choice:
    params = SamplingParams(max_tokens, stop_token_ids=(END,))
    request = Enqueue(request_id(CallId(message.id), index), pack([1, 2]), params)
    return Choice(index, request, [1, 2], VOCABULARY, options_of(message))


def make_call(message: Generate, num_choices: int = 1) -> Call:
    options = options_of(message)
    answer = make_answer(message, options, Spelling(VOCABULARY, False))
    return Call(message, options, 0, [make_choice(message, index) for index in range(num_choices)], answer)


def test_the_token_that_stops_a_completion_is_no_text_but_counts() -> None:
    choice = make_choice(completion(skip_special_tokens=False))
    assert choice.feed([*encode("yes"), END], "stop") == "yes"
    assert choice.output_ids.tolist() == [*encode("yes"), END]


def test_special_tokens_are_text_where_the_client_wants_them() -> None:
    assert make_choice(completion()).feed([*encode("a"), END, *encode("b")], None) == "ab"
    assert make_choice(completion(skip_special_tokens=False)).feed([END, *encode("b")], None) == "<|end|>b"


def test_a_character_that_is_never_completed_ends_as_a_replacement() -> None:
    choice = make_choice(completion())
    assert choice.feed(encode("a\N{GRINNING FACE}")[:-1], "length") == "a\N{REPLACEMENT CHARACTER}"


def test_a_choice_without_a_vocabulary_has_tokens_and_no_text() -> None:
    message = completion()
    params = SamplingParams(5)
    request = Enqueue(request_id(CallId(message.id), 0), pack([1]), params)
    choice = Choice(0, request, [1], None, options_of(message))
    assert choice.feed([5, 6], "length") == ""
    assert (choice.output_ids.tolist(), choice.finish_reason) == ([5, 6], "length")


def test_tokens_behind_a_stop_string_do_not_count() -> None:
    choice = make_choice(completion(stop=["c"]))
    assert choice.feed(encode("abcdef"), "length") == "ab"
    assert (choice.output_ids.tolist(), choice.finish_reason) == (encode("abc"), "stop")


def test_a_resumed_choice_keeps_its_tokens_to_itself() -> None:
    call = make_call(completion())
    [choice] = call.choices
    assert call.resume(choice, encode("one "), 4) is None
    emitted = call.show(choice, choice.feed(encode("two"), None))
    assert emitted is not None and emitted[2:] == (pack(encode("two")), 7, 0)
    assert b'"text":"two"' in emitted[0]
    assert choice.output_ids.tolist() == encode("one two")


def test_a_resumed_choice_says_what_the_client_lacks_of_its_tokens() -> None:
    call = make_call(completion())
    emitted = call.resume(call.choices[0], encode("one two"), 4)
    assert emitted is not None and b'"text":"two"' in emitted[0]


def test_a_choice_that_had_ended_has_ended_when_it_is_resumed() -> None:
    by_token, by_length, by_string = (make_choice(completion(stop=["c"]), max_tokens=3) for _ in range(3))
    by_token.resume([*encode("b"), END])
    by_length.resume(encode("xyz"))
    by_string.resume(encode("xc"))
    assert [each.finish_reason for each in (by_token, by_length, by_string)] == ["stop", "length", "stop"]


def test_the_role_is_said_with_the_first_text_and_the_prompt_if_it_was_asked_for() -> None:
    call = make_call(chat(return_token_ids=True))
    choice = call.choices[0]
    first, second = (call.show(choice, choice.feed(encode(text), None)) for text in ("a", "b"))
    assert first is not None and second is not None
    assert b'"role":"assistant"' in first[0] and b'"prompt_token_ids":[1,2]' in first[0]
    assert b"role" not in second[0] and b"prompt_token_ids" not in second[0]
    assert first[1:] == (0, pack(encode("a")), 1, 0)
    assert second[1:] == (0, pack(encode("b")), 2, 0)


def test_nothing_is_said_while_there_is_no_token() -> None:
    call = make_call(chat())
    choice = call.choices[0]
    assert call.show(choice, choice.feed([], None)) is None


def test_a_token_without_text_is_told_when_it_comes() -> None:
    """Its ids count, and a client that measures time between chunks sees when they came."""
    call = make_call(completion(return_token_ids=True))
    choice, ids = call.choices[0], encode("𐍈")
    assert len(ids) > 1
    told = [call.show(choice, choice.feed([id], None)) for id in ids]
    bodies = [json.loads(each[0].rpartition(b"data: ")[2]) for each in told if each is not None]
    assert len(bodies) == len(ids)
    assert [body["choices"][0]["text"] for body in bodies] == [""] * (len(ids) - 1) + ["𐍈"]
    assert [body["choices"][0]["token_ids"] for body in bodies] == [[id] for id in ids]


def test_an_answer_without_text_still_says_role_and_end() -> None:
    call = make_call(chat())
    choice = call.choices[0]
    emitted = call.show(choice, choice.feed([END], "stop"))
    assert emitted is not None
    assert b'"role":"assistant"' in emitted[0]
    assert b'"finish_reason":"stop"' in emitted[0]
    assert emitted[0].endswith(b"data: [DONE]\n\n")


def test_a_whole_body_has_all_choices_and_their_usage() -> None:
    call = make_call(completion(stream=False, n=2, return_token_ids=True), num_choices=2)
    shown = [call.show(choice, choice.feed([*encode("ok"), END], "stop")) for choice in call.choices]
    assert shown[0] is None and shown[1] is not None
    body = msgspec.json.decode(shown[1][0])
    assert [choice["text"] for choice in body["choices"]] == ["ok", "ok"]
    assert body["choices"][1]["token_ids"] == [*encode("ok"), END]
    assert body["choices"][1]["prompt_token_ids"] == [1, 2]
    assert body["usage"] == {"prompt_tokens": 2, "completion_tokens": 6, "total_tokens": 8}
