"""A model's text as it streams, split into reasoning, content and calls of tools.

What of a text is not a call is content, as the model wrote it: nothing raises. A call that has been
reported stays, with the arguments that it has, even if it then breaks off; what comes after the break
is content again. No text is looked through twice, but for a bounded number of characters, so time is
linear.
"""

from collections.abc import Callable, Mapping, Sequence
from functools import partial

import msgspec

from octavo.services.tokenizer.parsing.events import Content, Event, Reasoning
from octavo.services.tokenizer.parsing.formats import REASONING_FORMATS as REASONING_FORMATS
from octavo.services.tokenizer.parsing.formats import TOOL_FORMATS as TOOL_FORMATS
from octavo.services.tokenizer.parsing.formats import HarmonyFormat, ThinkFormat, ToolFormat
from octavo.services.tokenizer.parsing.harmony import MARKERS as HARMONY_MARKERS
from octavo.services.tokenizer.parsing.harmony import harmony
from octavo.services.tokenizer.parsing.json_calls import named_arguments
from octavo.services.tokenizer.parsing.parameter_types import tool_schemas
from octavo.services.tokenizer.parsing.reader import Malformed, Markers, Reader, Steps
from octavo.services.tokenizer.parsing.rules import Grammar, Rules, Schema
from octavo.shared.errors import ConfigError

_NONE = Markers(())


class OutputParser:
    """Splits one text. The events of all feeds, with neighbours of one kind put together, depend on the
    text alone, and so does which of them have been returned once a part of it is fed.
    """

    def __init__(self, grammars: Sequence[Callable[[Reader], Steps[None]]]) -> None:
        """grammars: each reads what the one before takes for content; none of them ever ends."""
        self._stages = [(reader := Reader(), grammar(reader)) for grammar in grammars]

    @property
    def num_tools(self) -> int:
        """How many calls have begun."""
        return sum(reader.num_tools for reader, _ in self._stages)

    def feed(self, text: str) -> list[Event]:
        """What is certain with this piece of text, and was not before."""
        return self._feed(0, text)

    def finish(self) -> list[Event]:
        """What is left at the end of the text. Not to be fed again."""
        events: list[Event] = []
        for index, (reader, _) in enumerate(self._stages):
            reader.finish()
            events += self._pass_on(index, reader)
        return events

    def _feed(self, index: int, text: str) -> list[Event]:
        """Feed a stage and those behind it."""
        if index == len(self._stages):
            return [Content(text)] if text else []
        reader, steps = self._stages[index]
        reader.add(text)
        next(steps)
        return self._pass_on(index, reader)

    def _pass_on(self, index: int, reader: Reader) -> list[Event]:
        events = reader.take_events()
        if index + 1 == len(self._stages):
            return events
        return [
            event
            for each in events
            for event in (self._feed(index + 1, each.text) if isinstance(each, Content) else (each,))
        ]


def make_parser(
    tool_format: str | None,
    reasoning_format: str | None,
    *,
    tools: Sequence[Mapping[str, object]] = (),
    starts_in_reasoning: bool = False,
    named_tool: str | None = None,
) -> OutputParser:
    """The parser of one text; None for what is not to be looked for.

    tools: OpenAI's definitions; formats without types of their own need their schemas.
    starts_in_reasoning: the prompt ends within reasoning, its opening tag written by the template.
    named_tool: the text is the JSON of this tool's arguments; with the format "json" only.
    Raises ConfigError when there is no such format.
    """
    calls, reasoning = _find(tool_format, reasoning_format)
    if named_tool is not None:
        assert tool_format == "json", f"the arguments of a named tool are json, not {tool_format}"
        calls = ToolFormat(begins="{", is_certain=True, calls=named_arguments(named_tool))
    grammars: list[Callable[[Reader], Steps[None]]] = []
    if isinstance(reasoning, ThinkFormat):
        is_inside = starts_in_reasoning or reasoning.starts_in_reasoning
        grammars.append(partial(_think, format=reasoning, is_inside=is_inside))
    if isinstance(calls, HarmonyFormat) or isinstance(reasoning, HarmonyFormat):
        grammars.append(partial(harmony, has_tools=isinstance(calls, HarmonyFormat)))
    if isinstance(calls, ToolFormat):
        grammars.append(partial(_text_with_calls, format=calls, schemas=tool_schemas(tools)))
    return OutputParser(grammars)


def markers(tool_format: str | None, reasoning_format: str | None) -> frozenset[str]:
    """Texts that the formats need to see, even if they are special tokens. Raises ConfigError likewise."""
    found: set[str] = set()
    for each in _find(tool_format, reasoning_format):
        if isinstance(each, HarmonyFormat):
            found |= HARMONY_MARKERS
        elif isinstance(each, ThinkFormat):
            found |= {each.opening, each.closing}
        elif each is not None:
            found |= {each.wrapper, each.opening, *each.closings, *each.inner}
    return frozenset(found - {""})


def _find(
    tool_format: str | None, reasoning_format: str | None
) -> tuple[ToolFormat | HarmonyFormat | None, ThinkFormat | HarmonyFormat | None]:
    for kind, name, table in (("tool", tool_format, TOOL_FORMATS), ("reasoning", reasoning_format, REASONING_FORMATS)):
        if name is not None and name not in table:
            raise ConfigError(f"there is no {kind} format {name!r}; there are {', '.join(sorted(table))}")
    return TOOL_FORMATS.get(tool_format or ""), REASONING_FORMATS.get(reasoning_format or "")


def _think(reader: Reader, format: ThinkFormat, is_inside: bool) -> Steps[None]:
    """Reasoning at the beginning, then content. Whitespace within the tags and newlines behind them are dropped."""
    reader.kind = Reasoning if is_inside else Content
    yield from reader.space()
    if (yield from reader.literal(Markers((format.opening,)))) or is_inside:
        reader.kind = Reasoning
        reader.accept()
        yield from reader.space()
        reader.accept()
        yield from reader.pass_text(Markers((format.closing,)))
        reader.kind = Content
        reader.accept()
        while (yield from reader.peek()) in "\r\n":
            reader.take(1)
            reader.accept()
    yield from reader.pass_text(_NONE, trims=False)


def _text_with_calls(reader: Reader, format: ToolFormat, schemas: Mapping[str, Schema]) -> Steps[None]:
    """Content with calls in it."""
    openings = tuple(filter(None, (format.wrapper, format.opening)))
    outside, inside = Markers(openings), Markers((*openings, *format.closings))
    opening = Markers((format.opening,)) if format.wrapper else _NONE
    ends = Markers([text for text in inside.texts if text[0] not in '[{"'])
    rules = Rules(is_certain=True, ends=ends, schemas=schemas)
    if format.begins and (yield from reader.space()) in format.begins:
        yield from _calls(reader, format.calls, msgspec.structs.replace(rules, is_certain=format.is_certain))
    is_inside = False
    while True:
        found = yield from reader.pass_text(inside if is_inside else outside)
        if found in format.closings:
            reader.accept()
            is_inside = found != format.closings[-1]
        elif found == format.wrapper and not (yield from _opens(reader, opening)):
            reader.give_back()
        else:
            is_inside |= yield from _calls(reader, format.calls, rules)


def _opens(reader: Reader, opening: Markers) -> Steps[bool]:
    yield from reader.space()
    return bool((yield from reader.literal(opening)))


def _calls(reader: Reader, grammar: Grammar, rules: Rules) -> Steps[bool]:
    """Whether there was a call."""
    before = reader.num_tools
    try:
        yield from grammar(reader, rules)
    except Malformed:
        reader.give_back()
    return reader.num_tools > before
