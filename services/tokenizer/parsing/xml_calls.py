"""Calls whose parameters are XML-like elements without any escaping (Qwen3-Coder, GLM-4.5)."""

import re
from collections.abc import Callable
from typing import TypeAlias

from octavo.services.tokenizer.parsing.parameter_types import parameter_types, quote, to_json
from octavo.services.tokenizer.parsing.reader import MAX_NAME, Malformed, Markers, Reader, Steps
from octavo.services.tokenizer.parsing.rules import Rules, Schema

_PARAMETER, _PARAMETER_END, _FUNCTION_END = "<parameter=", "</parameter>", "</function>"
_NEXT = Markers((_PARAMETER, _FUNCTION_END))
_VALUE_ENDS = Markers((_PARAMETER_END, _PARAMETER, _FUNCTION_END))  # models forget the first
_TAG_END = Markers((">",))
_ARG_KEY, _ARG_KEY_END, _ARG_VALUE, _ARG_VALUE_END = "<arg_key>", "</arg_key>", "<arg_value>", "</arg_value>"
ARG_TAGS = (_ARG_KEY, _ARG_KEY_END, _ARG_VALUE, _ARG_VALUE_END)
_NEXT_ARG = Markers((_ARG_KEY, "</tool_call>"))
_ARG_VALUE_ENDS = Markers((_ARG_VALUE_END,))
_KEY = re.compile(r"[^<>\n]*")
_ReadValue: TypeAlias = Callable[[Reader, Callable[[str], None]], Steps[None]]


def xml_call(reader: Reader, rules: Rules) -> Steps[None]:
    """NAME><parameter=KEY>value</parameter>...</function>, after "<function=".

    Where something else stands between parameters, the call ends with those that it has.
    """
    name = yield from reader.name()
    yield from _close_tag(reader)
    yield from _call(reader, rules, name, _key, _value)


def arg_call(reader: Reader, rules: Rules) -> Steps[None]:
    """NAME<arg_key>KEY</arg_key><arg_value>value</arg_value>..., between "<tool_call>" and its end.

    It begins when a parameter or that end follows its name. Broken off it ends as the other does.
    """
    yield from reader.space()
    name = yield from reader.name()
    if not (yield from _next_arg(reader)):
        raise Malformed
    yield from _call(reader, rules, name, _arg_key, _arg_value)


def _call(
    reader: Reader,
    rules: Rules,
    name: str,
    next_key: Callable[[Reader], Steps[str | None]],
    value: _ReadValue,
) -> Steps[None]:
    """What follows a call's name. next_key: reads up to a parameter's value; None where the parameters end."""
    reader.begin_call(name)
    reader.arguments("{")
    schema, separator = rules.schemas.get(name, {}), ""
    try:
        while (key := (yield from next_key(reader))) is not None:
            reader.arguments(f"{separator}{quote(key)}: ")
            yield from _parameter(reader, schema, key, value)
            separator = ", "
    except Malformed:
        pass
    reader.arguments("}")
    reader.end_call()


def _key(reader: Reader) -> Steps[str | None]:
    if (yield from _next(reader)) != _PARAMETER:
        return None
    key = yield from reader.run(_KEY, MAX_NAME)
    yield from _close_tag(reader)
    return key


def _arg_key(reader: Reader) -> Steps[str | None]:
    if (yield from _next_arg(reader)) != _ARG_KEY:
        return None
    yield from _arg_tag(reader, _ARG_KEY)
    key = (yield from reader.run(_KEY, MAX_NAME)).strip()
    yield from _arg_tag(reader, _ARG_KEY_END)
    yield from reader.space()
    yield from _arg_tag(reader, _ARG_VALUE)
    return key


def _next_arg(reader: Reader) -> Steps[str]:
    yield from reader.space()
    return (yield from reader.ahead(_NEXT_ARG))


def _arg_tag(reader: Reader, tag: str) -> Steps[None]:
    if not (yield from reader.literal(Markers((tag,)))):
        raise Malformed


def _arg_value(reader: Reader, write: Callable[[str], None]) -> Steps[None]:
    """Write a value, as it stands between its tags."""
    yield from reader.pass_until(_ARG_VALUE_ENDS, write)
    reader.take(len(_ARG_VALUE_END))


def _close_tag(reader: Reader) -> Steps[None]:
    if not (yield from reader.literal(_TAG_END)):
        raise Malformed


def _next(reader: Reader) -> Steps[str]:
    yield from reader.space()
    return (yield from reader.literal(_NEXT))


def _parameter(reader: Reader, schema: Schema, key: str, value: _ReadValue) -> Steps[None]:
    """Text is passed on as it comes; what becomes another type, when it is whole."""
    types = parameter_types(schema, key)
    if types <= {"string"}:
        reader.arguments('"')
        yield from value(reader, lambda text: reader.arguments(quote(text)[1:-1]))
        reader.arguments('"')
    else:
        pieces: list[str] = []
        yield from value(reader, pieces.append)
        reader.arguments(to_json("".join(pieces), types))


def _value(reader: Reader, write: Callable[[str], None]) -> Steps[None]:
    """Write a value. One newline after the tag and one before the next belong to the markup."""
    if (yield from reader.peek()) == "\n":
        reader.take(1)
    newline = ""

    def write_lines(text: str) -> None:
        nonlocal newline
        if text:
            write(newline + text.removesuffix("\n"))
            newline = "\n" if text.endswith("\n") else ""

    if (yield from reader.pass_until(_VALUE_ENDS, write_lines)) == _PARAMETER_END:
        reader.take(len(_PARAMETER_END))
