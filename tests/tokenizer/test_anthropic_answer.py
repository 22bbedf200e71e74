"""Answers of /v1/messages, checked with the types of Anthropic's own client."""

import json
from typing import Any

import pytest
from anthropic.types import Message, RawMessageStreamEvent
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import TypeAdapter
from tests.tokenizer.core_harness import CALL, encode
from tests.tokenizer.dialect_streams import (
    CALLED,
    TEXTS,
    THOUGHT,
    Event,
    merged,
    message,
    pipeline,
    read,
    streamed,
    streamed_by_two,
    whole,
)

from octavo.shared.messages import unpack

EVENTS: TypeAdapter[RawMessageStreamEvent] = TypeAdapter(RawMessageStreamEvent)
TOOLS = [{"name": "f", "description": "d", "input_schema": {"type": "object"}}]
FIELDS: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "tools": TOOLS, "max_tokens": 200}


def build(events: list[Event]) -> dict[str, Any]:
    """The message that a client puts together; every event is of the right shape and in its place."""
    answer: dict[str, Any] = {}
    texts: list[str] = []
    assert [event["type"] for event in events[:2]] == ["message_start", "ping"]
    for event in events[:1] + events[2:]:
        EVENTS.validate_python(event, strict=True)
        match event["type"]:
            case "message_start":
                answer = event["message"]
            case "content_block_start":
                assert event["index"] == len(answer["content"]) == len(texts)
                answer["content"].append(event["content_block"])
                texts.append("")
            case "content_block_delta":
                delta = event["delta"]
                assert event["index"] == len(answer["content"]) - 1
                if delta["type"] == "signature_delta":
                    answer["content"][-1]["signature"] = delta["signature"]
                else:
                    texts[-1] += delta.get("text") or delta.get("thinking") or delta.get("partial_json")
            case "content_block_stop":
                block = answer["content"][event["index"]]
                block.update(
                    {"input": json.loads(texts[-1] or "{}")} if block["type"] == "tool_use"
                    else {block["type"]: texts[-1]}
                )  # fmt: skip
            case "message_delta":
                answer.update(event["delta"])
                answer["usage"].update(event["usage"])
    assert [event["type"] for event in events[-2:]] == ["message_delta", "message_stop"]
    starts = [event["index"] for event in events if event["type"] == "content_block_start"]
    assert starts == [event["index"] for event in events if event["type"] == "content_block_stop"]
    return answer


@pytest.mark.parametrize("text", ["Yes.", THOUGHT + "Yes.", THOUGHT + "Yes." + CALLED + CALLED, "", THOUGHT])
def test_a_stream_builds_the_body(text: str) -> None:
    body = whole(message("messages", **FIELDS | {"stream": False}), text)
    assert build(read(streamed(message("messages", **FIELDS), text))) == body
    answer = Message.model_validate(body, strict=True)
    assert (answer.id, answer.role, answer.type, answer.model) == (f"msg_{CALL.hex()}", "assistant", "message", "model")
    assert answer.stop_reason == ("tool_use" if CALLED in text else "end_turn")


def test_thinking_text_and_uses_of_tools_are_blocks() -> None:
    answer = Message.model_validate(
        whole(message("messages", **FIELDS | {"stream": False}), THOUGHT + "Yes." + CALLED), strict=True
    )
    thinking, said, used = answer.content
    assert thinking.type == "thinking" and thinking.thinking == "h\N{GRINNING FACE}m" and thinking.signature
    assert said.type == "text" and said.text == "Yes."
    assert used.type == "tool_use" and (used.name, used.input) == ("f", {"a": "é", "b": [1]})


@settings(deadline=None, max_examples=150)
@given(text=TEXTS, cut=st.integers(0, 200), num_at_once=st.integers(1, 8))
def test_a_stream_that_changes_tokenizers_anywhere_reads_as_if_it_had_not(
    text: str, cut: int, num_at_once: int
) -> None:
    generate = message("messages", **FIELDS)
    undisturbed, both = read(streamed(generate, text)), read(streamed_by_two(generate, text, cut, num_at_once))
    assert merged(both, "_delta", "delta") == merged(undisturbed, "_delta", "delta")
    assert build(both) == build(undisturbed)


def test_an_answer_says_why_it_ended() -> None:
    stopped = whole(message("messages", **FIELDS | {"stream": False, "stop_sequences": ["END"]}), "one END two")
    assert (stopped["stop_reason"], stopped["stop_sequence"]) == ("stop_sequence", "END")
    assert stopped["content"] == [{"type": "text", "text": "one "}]
    cut = whole(message("messages", **FIELDS | {"stream": False}), "one", "length")
    assert (cut["stop_reason"], cut["stop_sequence"]) == ("max_tokens", None)
    broken = whole(message("messages", **FIELDS | {"stream": False}), CALLED[:-30], "length")
    assert broken["content"][0]["input"] == {} and broken["stop_reason"] == "max_tokens"


def test_count_tokens_equals_what_the_usage_says() -> None:
    fields = {"system": "Be brief.", "messages": [{"role": "user", "content": [{"type": "text", "text": "Hé"}]}]}
    usage = whole(message("messages", **FIELDS | fields | {"stream": False}), "Yes.")["usage"]
    lines = pipeline()
    assert lines.send(message("count_tokens", **FIELDS | fields)) == []
    [(body, *_)] = lines.chunks
    assert json.loads(body) == {"input_tokens": usage["input_tokens"]}
    assert lines.is_finished


def test_an_answer_that_is_begun_is_gone_on_with() -> None:
    turns = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "ab"}]
    lines = pipeline()
    [request] = lines.send(message("messages", **FIELDS | {"messages": turns, "tools": None}))
    assert unpack(request.prompt_ids).tolist() == encode("<user>Hi<assistant>ab")
