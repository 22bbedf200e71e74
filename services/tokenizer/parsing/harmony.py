"""The messages of gpt-oss (openai-harmony): each has a channel, and may be for a tool.

    <|channel|>analysis<|message|>...<|end|><|start|>assistant<|channel|>final<|message|>...<|return|>
    <|start|>assistant<|channel|>commentary to=functions.NAME <|constrain|>json<|message|>{...}<|call|>

The first "<|start|>assistant" stands in the prompt.
"""

import re

from octavo.services.tokenizer.parsing.events import Content, Reasoning
from octavo.services.tokenizer.parsing.json_calls import arguments
from octavo.services.tokenizer.parsing.reader import MAX_NAME, Malformed, Markers, Reader, Steps
from octavo.services.tokenizer.parsing.rules import Rules

_START, _CHANNEL, _CONSTRAIN, _MESSAGE = "<|start|>", "<|channel|>", "<|constrain|>", "<|message|>"
_STARTS = Markers((_START, _CHANNEL))
_ENDS = Markers(("<|end|>", "<|call|>", "<|return|>", _START, _CHANNEL))
_HEADER = Markers((_CHANNEL, _CONSTRAIN, _MESSAGE))
_RECIPIENT = Markers((" to=",))
_NO_MARKUP = re.compile(r"[^<]*")
_MAX_PARTS = 8  # of a header
_CHANNEL_NAME = re.compile(r"<\|channel\|>\s*(\w+)")
_FUNCTION = re.compile(r"\bto=functions\.([^\s<]+)")

MARKERS = frozenset((*_STARTS.texts, *_ENDS.texts, *_HEADER.texts))


def harmony(reader: Reader, *, has_tools: bool) -> Steps[None]:
    """has_tools: make calls of messages to functions; else their text is content.

    The analysis channel is reasoning, all other text is content. Messages to other recipients than
    functions count by their channel.
    """
    rules = Rules(is_certain=True, ends=_ENDS)
    found = yield from reader.literal(_RECIPIENT)
    while True:
        if found not in (*_STARTS.texts, *_RECIPIENT.texts):
            reader.kind = Content
            found = yield from reader.pass_text(_STARTS, trims=False)
        try:
            header = yield from _header(reader, found)
        except Malformed:
            reader.give_back()
            found = ""
            continue
        channel, function = _CHANNEL_NAME.search(header), _FUNCTION.search(header)
        reader.accept()
        reader.kind = Reasoning if channel and channel[1] == "analysis" else Content
        if function and has_tools:
            reader.kind = Content
            found = yield from _call(reader, rules, function[1])
        else:
            found = yield from reader.pass_text(_ENDS, trims=False)
        if found not in _STARTS.texts:
            reader.accept()


def _header(reader: Reader, begin: str) -> Steps[str]:
    """The header that `begin` opens, up to and with "<|message|>"."""
    header = begin
    for _ in range(_MAX_PARTS):
        header += yield from reader.run(_NO_MARKUP, MAX_NAME)
        found = yield from reader.literal(_HEADER)
        header += found
        if found == _MESSAGE:
            return header
        if not found:
            break
    raise Malformed


def _call(reader: Reader, rules: Rules, name: str) -> Steps[str]:
    """One call, up to the marker behind it. What follows its arguments is content."""
    reader.begin_call(name)
    try:
        yield from arguments(reader, rules)
    except Malformed:
        reader.give_back()
    return (yield from reader.pass_text(_ENDS))
