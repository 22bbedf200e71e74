"""Answers of /v1/responses, checked with the types of OpenAI's own client."""

import json
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from openai.types.responses import Response, ResponseStreamEvent
from pydantic import TypeAdapter
from tests.tokenizer.core_harness import CALL, VOCABULARY, encode
from tests.tokenizer.dialect_streams import (
    CALLED,
    TEXTS,
    THOUGHT,
    Event,
    merged,
    message,
    read,
    streamed,
    streamed_by_two,
    whole,
)

from octavo.services.tokenizer.answers.common import Delta, Finished, Opening, Usage
from octavo.services.tokenizer.answers.responses import ResponsesAnswer
from octavo.services.tokenizer.logprobs import Spelling, TokenLogprobs
from octavo.shared.endpoints import read_request
from octavo.shared.responses import InputItem, ResponsesRequest

EVENTS: TypeAdapter[ResponseStreamEvent] = TypeAdapter(ResponseStreamEvent)
TOOLS = [{"type": "function", "name": "f", "parameters": {"type": "object"}, "strict": True, "description": "d"}]
FORMAT = {"type": "json_schema", "name": "n", "schema": {"type": "object"}, "strict": True}
FIELDS: dict[str, Any] = {"input": "Hi", "tools": TOOLS, "max_output_tokens": 200}
A, B = encode("a") + encode("b")


def check(events: list[Event]) -> Response:
    """All that holds of every stream: shapes, numbers, order, and that the parts make up the whole."""
    for event in events:
        EVENTS.validate_python(event, strict=True)
    assert [event["sequence_number"] for event in events] == list(range(len(events)))
    assert [event["type"] for event in events[:2]] == ["response.created", "response.in_progress"]
    text, items = "", []
    for event in events[2:-1]:
        kind = event["type"]
        if kind == "response.output_item.added":
            assert event["output_index"] == len(items) and event["item"]["status"] == "in_progress"
            text = ""
        elif kind.endswith(".delta"):
            assert event["output_index"] == len(items)
            text += event["delta"]
        elif kind.endswith(("_text.done", "arguments.done")):
            assert event.get("text", event.get("arguments")) == text
        elif kind == "response.content_part.done":
            assert event["part"]["text"] == text
        elif kind == "response.output_item.done":
            items.append(event["item"])
    last = events[-1]
    assert last["type"] == f"response.{last['response']['status']}"
    assert last["response"]["output"] == items
    assert events[0]["response"] | {"status": 0, "output": 0} == last["response"] | {
        "status": 0, "output": 0, "usage": None, "incomplete_details": None,
    }  # fmt: skip
    return Response.model_validate(last["response"], strict=True)


def test_a_stream_tells_of_each_item_in_order() -> None:
    events = read(streamed(message("responses", **FIELDS), THOUGHT + "Yes." + CALLED))
    response = check(events)
    assert [event["type"].removeprefix("response.") for event in merged(events, ".delta", "delta")] == [
        "created", "in_progress",
        "output_item.added", "content_part.added", "reasoning_text.delta", "reasoning_text.done",
        "content_part.done", "output_item.done",
        "output_item.added", "content_part.added", "output_text.delta", "output_text.done",
        "content_part.done", "output_item.done",
        "output_item.added", "function_call_arguments.delta", "function_call_arguments.done", "output_item.done",
        "completed",
    ]  # fmt: skip
    reasoning, said, called = response.output
    assert reasoning.type == "reasoning" and reasoning.content is not None
    assert reasoning.content[0].text == "h\N{GRINNING FACE}m"
    assert said.type == "message" and response.output_text == "Yes."
    assert called.type == "function_call"
    assert (called.name, called.arguments) == ("f", '{"a": "é", "b": [1]}')
    assert len({item.id for item in response.output}) == 3
    assert response.usage is not None and response.usage.output_tokens_details.reasoning_tokens > 0


@settings(deadline=None, max_examples=150)
@given(text=TEXTS, cut=st.integers(0, 200), num_at_once=st.integers(1, 8))
def test_a_stream_that_changes_tokenizers_anywhere_reads_as_if_it_had_not(
    text: str, cut: int, num_at_once: int
) -> None:
    generate = message("responses", **FIELDS)
    undisturbed, both = read(streamed(generate, text)), read(streamed_by_two(generate, text, cut, num_at_once))
    for response in (check(undisturbed), check(both)):
        assert response.usage is not None
    for events in (undisturbed, both):  # depends on how tokens come together
        events[-1]["response"]["usage"]["output_tokens_details"] = None
    assert merged(both, ".delta", "delta") == merged(undisturbed, ".delta", "delta")


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        *((text, "stop") for text in ("Yes.", THOUGHT + "Yes.", THOUGHT + "Yes." + CALLED + CALLED, "", THOUGHT)),
        *((text, "length") for text in ("Yes.", THOUGHT, CALLED[:-30])),
    ],
)
def test_a_body_says_what_a_stream_ends_with(text: str, reason: str) -> None:
    last = read(streamed(message("responses", **FIELDS), text, 3, reason))[-1]["response"]
    body = whole(message("responses", **FIELDS | {"stream": False}), text, reason)
    assert body == last
    response = Response.model_validate(body, strict=True)
    assert response.status == ("completed" if reason == "stop" else "incomplete")
    assert response.output[-1].status == response.status
    if reason == "length":
        assert response.incomplete_details is not None
        assert response.incomplete_details.reason == "max_output_tokens"


def test_a_response_repeats_what_was_asked() -> None:
    asked: dict[str, Any] = {
        "instructions": "Be brief.", "metadata": {"a": "b"}, "temperature": 0.5, "top_p": 0.9, "user": "u",
        "reasoning": {"effort": "low", "summary": "auto"}, "text": {"format": FORMAT}, "truncation": "auto",
        "parallel_tool_calls": False, "tool_choice": {"type": "function", "name": "f"}, "store": False,
        "max_output_tokens": 99, "top_logprobs": 2, "tools": TOOLS,
    }  # fmt: skip
    request = read_request("responses", json.dumps({"input": "Hi"} | asked).encode())
    assert isinstance(request, ResponsesRequest)
    answer = ResponsesAnswer(CALL, 1_700_000_000, "model", request, Spelling(VOCABULARY, as_ids=False))
    finished = Finished(0, Opening([A]), '{"a": 1}', "", (), "stop", None, [A], None)
    response = Response.model_validate_json(answer.body([finished], Usage(1, 1, 2)), strict=True).to_dict()
    assert {name: response[name] for name in asked} == asked
    assert (response["id"], response["object"], response["created_at"]) == (f"resp_{CALL.hex()}", "response", 1.7e9)


def answer(**fields: Any) -> ResponsesAnswer:
    return ResponsesAnswer(CALL, 1, "m", ResponsesRequest(input="Hi", **fields), Spelling(VOCABULARY, as_ids=False))


def test_logprobs_come_with_the_text() -> None:
    tokens = [TokenLogprobs(A, -0.5, [(A, -0.5), (B, -1.5)])]
    streaming = answer()
    streaming.open(0, Opening([A]))
    [*_, told] = streaming.chunk(Delta(0, "a", logprobs=tokens)).decode().split("data: ")
    event = EVENTS.validate_json(told)
    assert event.type == "response.output_text.delta"
    assert [(each.token, each.logprob) for each in event.logprobs] == [("a", -0.5)]
    assert [(top.token, top.logprob) for top in event.logprobs[0].top_logprobs or ()] == [("a", -0.5), ("b", -1.5)]

    finished = Finished(0, Opening([A]), "a", "", (), "stop", None, [A], tokens)
    [item] = Response.model_validate_json(answer().body([finished], Usage(1, 1, 2)), strict=True).output
    assert item.type == "message" and item.content[0].type == "output_text"
    assert item.content[0].logprobs is not None
    assert [(each.token, each.bytes) for each in item.content[0].logprobs] == [("a", [97])]


def test_an_output_can_be_the_next_input() -> None:
    body = whole(message("responses", **FIELDS | {"stream": False}), THOUGHT + "Yes." + CALLED)
    items = msgspec.convert(body["output"], list[InputItem])
    [said] = ResponsesRequest(input=items).to_chat().messages
    assert (said.role, said.content, said.reasoning_content) == ("assistant", "Yes.", "h\N{GRINNING FACE}m")
    assert said.tool_calls is not None and said.tool_calls[0].function.name == "f"
