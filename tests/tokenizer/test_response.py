"""The bytes of answers, checked with the types of OpenAI's own client."""

import json
from typing import Literal

import pytest
from openai.types import Completion
from openai.types.chat import ChatCompletion, ChatCompletionChunk

from octavo.services.tokenizer.response import Finished, Response, Usage

ODD = 'quote " backslash \\ newline \n null \x00 line \u2028 emoji \N{GRINNING FACE}'


def make(kind: Literal["chat", "completion"]) -> Response:
    return Response(kind, "id-1", 1_700_000_000, 'model "x"')


def event(chunk: bytes) -> str:
    assert chunk.startswith(b"data: ") and chunk.endswith(b"\n\n") and chunk.count(b"\n") == 2
    return chunk[6:].decode()


@pytest.mark.parametrize("text", ["Hi", ODD])
def test_a_chat_chunk_is_one_event_of_openais_shape(text: str) -> None:
    chunk = ChatCompletionChunk.model_validate_json(event(make("chat").chunk(2, text, None, None)), strict=True)
    assert (chunk.id, chunk.model, chunk.object) == ("id-1", 'model "x"', "chat.completion.chunk")
    [choice] = chunk.choices
    assert (choice.index, choice.delta.content, choice.delta.role, choice.finish_reason) == (
        2,
        text,
        None,
        None,
    )


@pytest.mark.parametrize("text", ["Hi", ODD])
def test_a_completion_chunk_is_one_event_of_openais_shape(text: str) -> None:
    fields = json.loads(event(make("completion").chunk(1, text, "length", [7, 8])))
    assert fields["object"] == "text_completion"
    wanted = {"index": 1, "text": text, "logprobs": None, "finish_reason": "length", "token_ids": [7, 8]}
    assert fields["choices"] == [wanted]


def test_the_last_chunk_of_a_chat_has_a_reason_and_an_empty_delta() -> None:
    fields = json.loads(event(make("chat").chunk(0, "", "stop", None)))
    wanted = {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "stop"}
    assert fields["choices"] == [wanted]


def test_the_first_chunk_says_who_speaks() -> None:
    chunk = ChatCompletionChunk.model_validate_json(event(make("chat").first_chunk(0, [1, 2])))
    assert chunk.choices[0].delta.role == "assistant"
    assert chunk.choices[0].model_dump()["prompt_token_ids"] == [1, 2]
    assert make("completion").first_chunk(0, None) == b""


def test_usage_comes_with_no_choice() -> None:
    chunk = ChatCompletionChunk.model_validate_json(event(make("chat").usage_chunk(Usage(3, 4, 7))))
    assert chunk.choices == []
    assert chunk.usage is not None
    assert (chunk.usage.prompt_tokens, chunk.usage.completion_tokens, chunk.usage.total_tokens) == (3, 4, 7)


def test_whole_bodies_are_of_openais_shape() -> None:
    choices, usage = [Finished(0, ODD, "stop"), Finished(1, "", "length")], Usage(1, 2, 3)
    chat = ChatCompletion.model_validate_json(make("chat").body(choices, usage, None), strict=True)
    assert [choice.message.content for choice in chat.choices] == [ODD, ""]
    assert [choice.message.role for choice in chat.choices] == ["assistant", "assistant"]
    plain = json.loads(make("completion").body(choices, usage, None))
    assert [choice.text for choice in Completion.model_validate(plain).choices] == [ODD, ""]
    assert [choice["finish_reason"] for choice in plain["choices"]] == ["stop", "length"]
