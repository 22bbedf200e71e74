"""Reads texts with a parser in pieces, and puts together what a client would."""

import json
from collections.abc import Callable, Iterable

import msgspec

from octavo.services.tokenizer.parsing.events import Content, Event, Reasoning, ToolArguments, ToolBegin
from octavo.services.tokenizer.parsing.parser import OutputParser

TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "get_weather",
            "description": "The weather of a place",
            "parameters": {
                "type": "object",
                "properties": {
                    "city": {"type": "string"},
                    "days": {"type": "integer"},
                    "step": {"type": "number"},
                    "metric": {"type": "boolean"},
                    "place": {"type": "object"},
                    "hours": {"type": "array", "items": {"type": "integer"}},
                    "nothing": {"type": "null"},
                    "unit": {"anyOf": [{"type": "string"}, {"type": "null"}]},
                    "limit": {"type": ["integer", "null"]},
                    "where": {"$ref": "#/$defs/Where"},
                },
                "$defs": {"Where": {"type": "object", "properties": {"lat": {"type": "number"}}}},
            },
        },
    },
    {"type": "function", "function": {"name": "get_time", "parameters": {"type": "object", "properties": {}}}},
]


class Outcome(msgspec.Struct, kw_only=True):
    """What a text turned out to be. calls: name and text of the arguments."""

    reasoning: str = ""
    content: str = ""
    calls: list[tuple[str, str]] = []

    def decoded(self) -> list[tuple[str, object]]:
        return [(name, json.loads(arguments)) for name, arguments in self.calls]


def merge(events: Iterable[Event]) -> list[Event]:
    """Neighbours of one kind put together."""
    merged: list[Event] = []
    for event in events:
        last = merged[-1] if merged else None
        if isinstance(event, ToolArguments) and isinstance(last, ToolArguments) and event.index == last.index:
            merged[-1] = ToolArguments(last.index, last.text + event.text)
        elif isinstance(event, Reasoning | Content) and type(last) is type(event):
            merged[-1] = type(event)(last.text + event.text)
        else:
            merged.append(event)
    return merged


def feed(parser: OutputParser, pieces: Iterable[str]) -> list[Event]:
    """The merged events of the pieces and of the end."""
    events = [event for piece in pieces for event in parser.feed(piece)]
    return merge(events + parser.finish())


def outcome(events: Iterable[Event]) -> Outcome:
    result = Outcome()
    for event in events:
        match event:
            case Reasoning(text):
                result.reasoning += text
            case Content(text):
                result.content += text
            case ToolBegin(index, name):
                assert index == len(result.calls)
                result.calls.append((name, ""))
            case ToolArguments(index, text):
                assert text and index == len(result.calls) - 1
                result.calls[index] = (result.calls[index][0], result.calls[index][1] + text)
    return result


def read(text: str, make: Callable[[], OutputParser]) -> Outcome:
    """The outcome of a text, which is the same in one piece, character by character, and cut in two anywhere."""
    events = feed(make(), [text])
    assert feed(make(), text) == events
    for cut in range(1, len(text)):
        assert feed(make(), [text[:cut], text[cut:]]) == events, f"cut at {cut}"
    return outcome(events)


def seen_after_each_character(text: str, make: Callable[[], OutputParser]) -> list[list[Event]]:
    """All that has been emitted after each character, merged."""
    parser, events, seen = make(), list[Event](), list[list[Event]]()
    for character in text:
        events += parser.feed(character)
        seen.append(merge(events))
    return seen


def check_prefixes(text: str, make: Callable[[], OutputParser]) -> None:
    """What has been emitted is what a parser emits that is fed the text so far in one piece."""
    for length, seen in enumerate(seen_after_each_character(text, make), start=1):
        assert merge(make().feed(text[:length])) == seen, f"after {text[:length]!r}"
