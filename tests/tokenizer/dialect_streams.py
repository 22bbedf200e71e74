"""Streams of the dialects: a model's text, told by one tokenizer or by two, and its events read as clients do."""

import json
from collections.abc import Sequence
from typing import Any

import msgspec
from hypothesis import strategies as st
from tests.tokenizer.core_harness import CALL, END, VOCABULARY, Pipeline, encode, output_ids

from octavo.services.tokenizer.parsers import Parsers
from octavo.shared.messages import Generate, Progress, Text, request_id

FIRST = request_id(CALL, 0)
THOUGHT = "<think>h\N{GRINNING FACE}m</think>"
CALLED = '<tool_call>{"name": "f", "arguments": {"a": "é", "b": [1]}}</tool_call>'
PARTS = st.lists(st.sampled_from(["ab é", "\N{GRINNING FACE}", "<t", " ", CALLED]), max_size=4)
TEXTS = st.builds(lambda thought, parts: thought + "".join(parts), st.sampled_from(["", THOUGHT]), PARTS).filter(
    lambda text: len(encode(text)) < 180  # the context has room for it
)
Event = dict[str, Any]


def message(endpoint: str, **fields: object) -> Generate:
    return Generate(CALL, endpoint, json.dumps({"stream": True} | fields).encode(), 1_700_000_000, "model")


def pipeline() -> Pipeline:
    """A model that writes its reasoning and its calls like Qwen."""
    return Pipeline(parsers=Parsers(VOCABULARY, "hermes", "qwen3"))


def speak(lines: Pipeline, text: str, num_at_once: int = 1, start: int = 0, reason: str = "stop") -> None:
    """The model says this, some tokens at once, from one of its tokens on."""
    ids = [*encode(text), END] if reason == "stop" else encode(text)
    for place in range(start, len(ids), num_at_once):
        portion = ids[place : place + num_at_once]
        lines.tokens(FIRST, place, portion, reason if place + len(portion) == len(ids) else None)


def whole(generate: Generate, text: str, reason: str = "stop") -> dict[str, Any]:
    """The body of a call that does not stream."""
    lines = pipeline()
    lines.send(generate)
    speak(lines, text, 3, reason=reason)
    [(body, *_)] = lines.chunks
    answer = json.loads(body)
    assert isinstance(answer, dict)
    return answer


def streamed(generate: Generate, text: str, num_at_once: int = 1, reason: str = "stop") -> list[Text]:
    lines = pipeline()
    lines.send(generate)
    speak(lines, text, num_at_once, reason=reason)
    return lines.texts


def streamed_by_two(generate: Generate, text: str, cut: int, num_at_once: int) -> list[Text]:
    """The first tokenizer dies behind one of its chunks, and another goes on with the gateway's journal."""
    before = streamed(generate, text)[:cut]
    if not before:
        return streamed(generate, text, num_at_once)
    sent = Progress(b"".join(each.token_ids[0] for each in before), before[-1].num_chars[0], sum(before[-1].num_events))
    second = pipeline()
    requests = second.send(msgspec.structs.replace(generate, progress={0: sent}, attempt=2))
    if requests:
        speak(second, text, num_at_once, start=len(output_ids(requests[0])))
    return before + second.texts


def read(texts: Sequence[Text]) -> list[Event]:
    """The events, each of which says twice what it is."""
    told = b"".join(chunk for text in texts for chunk in text.chunks).decode()
    assert told.endswith("\n\n")
    events = []
    for block in told.split("\n\n")[:-1]:
        name, data = block.split("\n")
        event = json.loads(data.removeprefix("data: "))
        assert name == f"event: {event['type']}"
        events.append(event)
    return events


def merged(events: Sequence[Event], is_delta: str, text: str) -> list[Event]:
    """The events with neighbouring deltas put together, as if all had come at once. text: the deltas' field."""
    found: list[Event] = []
    for event in events:
        event = {name: value for name, value in event.items() if name != "sequence_number"}
        if found and is_delta in event["type"] and found[-1]["type"] == event["type"]:
            found[-1] = _joined(found[-1], event, text)
        else:
            found.append(event)
    return found


def _joined(first: Event, second: Event, field: str) -> Event:
    one, other = first[field], second[field]
    if isinstance(one, str):
        return first | {field: one + other}
    if one["type"] != other["type"]:
        return first
    return first | {field: {key: one[key] if key == "type" else one[key] + other[key] for key in one}}
