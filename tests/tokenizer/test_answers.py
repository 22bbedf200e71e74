"""The bytes of answers, checked with the types of OpenAI's own client."""

import json
from typing import Any

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk
from tests.tokenizer.core_harness import VOCABULARY, encode
from tests.tokenizer.test_prompts import chat, completion

from octavo.services.tokenizer.answers.chat import ChatAnswer
from octavo.services.tokenizer.answers.common import Delta, Finished, Opening, ToolCall, Usage
from octavo.services.tokenizer.answers.completion import CompletionAnswer
from octavo.services.tokenizer.logprobs import Spelling, TokenLogprobs
from octavo.services.tokenizer.parsing.events import Content, Reasoning, ToolArguments, ToolBegin
from octavo.shared.openai import ChatRequest

ODD = 'quote " backslash \\ newline \n null \x00 line \u2028 emoji \N{GRINNING FACE}'
A, B, C = encode("a") + encode("b") + encode("c")
SPELLING = Spelling(VOCABULARY, as_ids=False)


def make_chat(**fields: object) -> ChatAnswer:
    options = chat(**fields)
    assert isinstance(options, ChatRequest)
    return ChatAnswer("id-1", 1_700_000_000, 'model "x"', options, SPELLING)


def make_plain(**fields: object) -> CompletionAnswer:
    return CompletionAnswer("id-1", 1_700_000_000, "model", completion(**fields), SPELLING)


def whole(index: int, text: str = "", reason: str = "stop", **fields: Any) -> Finished:
    known = {"opening": Opening([A]), "reasoning": "", "tools": (), "stop_reason": None, "token_ids": (), **fields}
    return Finished(index, text=text, finish_reason=reason, **{"logprobs": None, **known})


def events(data: bytes) -> list[str]:
    assert data.endswith(b"\n\n") and data.count(b"\n") == 2 * data.count(b"data: ")
    return [each.removeprefix("data: ") for each in data.decode().split("\n\n")[:-1]]


def chunks(data: bytes) -> list[ChatCompletionChunk]:
    return [ChatCompletionChunk.model_validate_json(each, strict=True) for each in events(data)]


@pytest.mark.parametrize("text", ["Hi", ODD])
def test_a_chat_chunk_is_one_event_of_openais_shape(text: str) -> None:
    [chunk] = chunks(make_chat().chunk(Delta(2, text)))
    assert (chunk.id, chunk.model, chunk.object) == ("id-1", 'model "x"', "chat.completion.chunk")
    [choice] = chunk.choices
    assert (choice.index, choice.delta.content, choice.delta.role, choice.finish_reason) == (2, text, None, None)


@pytest.mark.parametrize("text", ["Hi", ODD])
def test_a_completion_chunk_is_one_event_of_openais_shape(text: str) -> None:
    answer = make_plain(return_token_ids=True)
    [event] = events(answer.chunk(Delta(1, text, finish_reason="length", token_ids=[7, 8])))
    fields = json.loads(event)
    assert fields["object"] == "text_completion"
    wanted = {"index": 1, "text": text, "logprobs": None, "finish_reason": "length", "token_ids": [7, 8]}
    assert fields["choices"] == [wanted]


def test_the_last_chunk_of_a_chat_has_a_reason_and_an_empty_delta() -> None:
    [event] = events(make_chat().chunk(Delta(0, "", finish_reason="stop", stop_reason="END")))
    wanted = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop", "stop_reason": "END"}
    assert json.loads(event)["choices"] == [wanted]


def test_the_first_chunk_says_who_speaks() -> None:
    [chunk] = chunks(make_chat(return_token_ids=True).open(0, Opening([1, 2])))
    assert chunk.choices[0].delta.role == "assistant"
    assert chunk.choices[0].model_dump()["prompt_token_ids"] == [1, 2]
    assert make_plain().open(0, Opening([1, 2])) == b""


def test_usage_comes_with_no_choice_and_only_if_it_is_wanted() -> None:
    usage = Usage(3, 4, 7)
    told, done = events(make_chat(stream=True, stream_options={"include_usage": True}).end(usage))
    chunk = ChatCompletionChunk.model_validate_json(told)
    assert (chunk.choices, done) == ([], "[DONE]")
    assert chunk.usage is not None
    assert (chunk.usage.prompt_tokens, chunk.usage.completion_tokens, chunk.usage.total_tokens) == (3, 4, 7)
    assert make_chat().end(usage) == make_plain().end(usage) == b"data: [DONE]\n\n"


def test_whole_bodies_are_of_openais_shape() -> None:
    choices, usage = [whole(0, ODD), whole(1, reason="length")], Usage(1, 2, 3)
    answer = ChatCompletion.model_validate_json(make_chat().body(choices, usage), strict=True)
    assert [choice.message.content for choice in answer.choices] == [ODD, ""]
    assert [choice.message.role for choice in answer.choices] == ["assistant", "assistant"]
    plain = json.loads(make_plain().body(choices, usage))
    assert [choice.text for choice in Completion.model_validate(plain).choices] == [ODD, ""]
    assert [choice["finish_reason"] for choice in plain["choices"]] == ["stop", "length"]


def test_reasoning_and_tools_are_told_in_the_words_of_the_clients() -> None:
    parts = [Reasoning("hm"), Content("yes"), ToolBegin(0, "f"), ToolArguments(0, '{"a":'), ToolArguments(0, " 1}")]
    told = chunks(make_chat().chunk(Delta(0, "raw", parts, "tool_calls")))
    assert [chunk.choices[0].finish_reason for chunk in told] == [None] * 4 + ["tool_calls"]
    assert told[0].choices[0].delta.model_dump()["reasoning"] == "hm"
    assert told[0].choices[0].delta.model_dump()["reasoning_content"] == "hm"
    assert told[1].choices[0].delta.content == "yes"
    calls = [each for chunk in told for each in chunk.choices[0].delta.tool_calls or ()]
    assert [call.function.arguments for call in calls if call.function] == ["", '{"a":', " 1}"]
    body = make_chat().body([whole(0, "", "tool_calls", tools=[ToolCall("f", '{"a": 1}')])], Usage(1, 2, 3))
    [message] = [choice.message for choice in ChatCompletion.model_validate_json(body, strict=True).choices]
    assert message.content is None and message.tool_calls is not None
    assert message.tool_calls[0].id == calls[0].id, "streamed or not, a call has the same name"
    assert message.tool_calls[0].model_dump()["function"] == {"name": "f", "arguments": '{"a": 1}'}


def test_logprobs_of_a_chat_name_tokens_and_their_bytes() -> None:
    tokens = [TokenLogprobs(A, -0.5, [(A, -0.5), (B, -1.5)])]
    body = make_chat(logprobs=True, top_logprobs=2).body([whole(0, "a", logprobs=tokens)], Usage(1, 1, 2))
    logprobs = ChatCompletion.model_validate_json(body, strict=True).choices[0].logprobs
    assert logprobs is not None and logprobs.content is not None
    [told] = logprobs.content
    assert (told.token, told.logprob, told.bytes) == ("a", -0.5, [97])
    assert [(top.token, top.logprob) for top in told.top_logprobs] == [("a", -0.5), ("b", -1.5)]


def test_an_echoed_prompt_has_logprobs_and_offsets_before_those_of_the_completion() -> None:
    opening = Opening([A, B], "ab", [TokenLogprobs(B, -2.0, [(C, -0.1)], 7)])
    choice = whole(0, "c", opening=opening, logprobs=[TokenLogprobs(C, -0.25, [(C, -0.25)])])
    body = json.loads(make_plain(echo=True, logprobs=1).body([choice], Usage(2, 1, 3)))
    [told] = body["choices"]
    assert told["text"] == "abc"
    assert told["logprobs"]["tokens"] == ["a", "b", "c"]
    assert told["logprobs"]["text_offset"] == [0, 1, 2]
    assert told["logprobs"]["token_logprobs"] == [None, -2.0, -0.25]
    assert told["logprobs"]["top_logprobs"] == [None, {"b": -2.0, "c": -0.1}, {"c": -0.25}]


def test_offsets_go_on_from_chunk_to_chunk() -> None:
    answer = make_plain(stream=True, echo=True, logprobs=0)
    [first] = events(answer.open(0, Opening([A, B], "ab", [TokenLogprobs(B, -2.0, [], 7)])))
    [second] = events(answer.chunk(Delta(0, "c", logprobs=[TokenLogprobs(C, -1.0, [])])))
    logprobs = [json.loads(event)["choices"][0]["logprobs"] for event in (first, second)]
    assert [each["text_offset"] for each in logprobs] == [[0, 1], [2]]


def test_prompt_logprobs_are_vllms() -> None:
    opening = Opening([A, B], "", [TokenLogprobs(B, -2.0, [(C, -0.1)], 7)])
    body = json.loads(make_chat(prompt_logprobs=1).body([whole(0, opening=opening)], Usage(2, 1, 3)))
    wanted = {
        str(C): {"logprob": -0.1, "rank": 1, "decoded_token": "c"},
        str(B): {"logprob": -2.0, "rank": 7, "decoded_token": "b"},
    }
    assert body["prompt_logprobs"] == [None, wanted]
