"""Calls written as JSON. Their arguments are passed on as the model wrote them, slice by slice.

The scan of a value knows strings and brackets only. JSON that is wrong elsewhere is passed on too: it
is the model's, and its client can tell.
"""

import re
from collections.abc import Callable

import msgspec

from octavo.services.tokenizer.parsing.reader import MAX_NAME, Malformed, Markers, Reader, Steps
from octavo.services.tokenizer.parsing.rules import Grammar, Rules

_ARGUMENTS = ("arguments", "parameters")
_KEYS = ("name", *_ARGUMENTS, "type", "id", "index")  # before a call has begun any other says that it is none

_IN_STRING = re.compile(r'["\\]')
_STRING = re.compile(r'"(?:[^"\\\x00-\x1f]|\\.)*"')
_STRING_BEGINNING = re.compile(r'(?:"(?:[^"\\\x00-\x1f]|\\.)*\\?)?')
_SCALAR = re.compile(r"[\w.+-]*")
_MAX_SCALAR = 128  # characters of a number or a word


def json_calls(reader: Reader, rules: Rules) -> Steps[None]:
    """A list of calls, or calls one after another with nothing, whitespace or ";" between them."""
    in_list = (yield from reader.space()) == "["
    if in_list:
        reader.take(1)
    char = "{"
    while char == "{":
        yield from _call(reader, rules)
        char = yield from reader.space()
        if char == ("," if in_list else ";"):
            reader.take(1)
            if (char := (yield from reader.space())) != "{":
                raise Malformed
    if in_list and char == "]":
        reader.take(1)
        reader.accept()


def named_arguments(name: str) -> Grammar:
    """The text is the arguments of a tool that is known."""

    def grammar(reader: Reader, rules: Rules) -> Steps[None]:
        reader.begin_call(name)
        yield from arguments(reader, rules)

    return grammar


def arguments(reader: Reader, rules: Rules) -> Steps[None]:
    """The arguments of a call that has begun: an object, or nothing, which is an empty one."""
    if (yield from reader.space()) == "{":
        yield from _value(reader, rules.ends, reader.arguments)
    else:
        reader.arguments("{}")
    reader.end_call()


def _call(reader: Reader, rules: Rules) -> Steps[None]:
    """{"name": ..., "arguments": {...}}, in any order. It begins when it is certain that it is a call."""
    if (yield from reader.space()) != "{":
        raise Malformed
    reader.take(1)
    name, early, has_arguments = "", "", False
    while (yield from reader.space()) != "}":
        key = yield from _string(reader)
        if key not in _KEYS and not reader.in_call:
            raise Malformed
        if (yield from reader.space()) != ":":
            raise Malformed
        reader.take(1)
        char = yield from reader.space()
        if key == "name" and not name:
            if not (name := (yield from _string(reader))):
                raise Malformed
            if rules.is_certain or has_arguments:
                reader.begin_call(name)
                reader.arguments(early)
        elif key in _ARGUMENTS and not has_arguments:
            has_arguments = True
            if char != "{" and not rules.is_certain:
                raise Malformed
            if name and not reader.in_call:
                reader.begin_call(name)
            early = yield from _call_arguments(reader, rules.ends)
        else:
            yield from _value(reader, rules.ends, _drop)
        char = yield from reader.space()
        if char == ",":
            reader.take(1)
        elif char != "}":
            raise Malformed
    reader.take(1)
    if not reader.in_call:
        raise Malformed
    if not has_arguments:
        reader.arguments("{}")
    reader.end_call()


def _call_arguments(reader: Reader, ends: Markers) -> Steps[str]:
    """Pass the value on as arguments; or return it, where the call has not begun.

    Some models write null, or the object once more as a string.
    """
    is_object = (yield from reader.peek()) == "{"
    if is_object and reader.in_call:
        yield from _value(reader, ends, reader.arguments)
        return ""
    pieces: list[str] = []
    yield from _value(reader, ends, pieces.append)
    value = "".join(pieces)
    if not is_object:
        value = _as_object(value)
    if not reader.in_call:
        return value
    reader.arguments(value)
    return ""


def _as_object(value: str) -> str:
    if value == "null":
        return "{}"
    try:
        text = msgspec.json.decode(value, type=str)
    except msgspec.DecodeError:
        return value
    return text if text.lstrip().startswith("{") else value


def _string(reader: Reader) -> Steps[str]:
    """A short string."""
    while (found := _STRING.match(reader.text, reader.at, reader.at + MAX_NAME)) is None:
        beginning = reader.text[reader.at : reader.at + MAX_NAME]
        if len(beginning) == MAX_NAME or not _STRING_BEGINNING.fullmatch(beginning):
            raise Malformed
        yield
    reader.take(len(found[0]))
    try:
        return msgspec.json.decode(found[0], type=str)
    except msgspec.DecodeError as error:
        raise Malformed from error


def _value(reader: Reader, ends: Markers, write: Callable[[str], None]) -> Steps[None]:
    """Write a JSON value as it stands. Raises Malformed where it is none, or at an end within it."""
    if (yield from reader.peek()) not in '{["':
        scalar = yield from reader.run(_SCALAR, _MAX_SCALAR)
        if not 0 < len(scalar) < _MAX_SCALAR:
            raise Malformed
        write(scalar)
        return
    outside = re.compile(f'["{{}}\\[\\]{re.escape(ends.firsts)}]')
    depth, in_string, found = 0, False, ""
    while True:
        text, at = reader.text, reader.at
        while at < len(text):
            special = (_IN_STRING if in_string else outside).search(text, at)
            if special is None:
                at = len(text)
                break
            at, char = special.start(), special[0]
            if char == "\\":
                if at + 2 > len(text):
                    break
                at += 1
            elif char == '"':
                in_string = not in_string
            elif char in "{[":
                depth += 1
            elif char in "}]":
                depth -= 1
            elif (end := ends.at(text, at)) != "":
                found = end or ""
                break
            at += 1
            if depth == 0 and not in_string:
                _write(reader, at, write)
                return
        _write(reader, at, write)
        if found:
            raise Malformed
        yield


def _write(reader: Reader, end: int, write: Callable[[str], None]) -> None:
    write(reader.text[reader.at : end])
    reader.take(end - reader.at)


def _drop(text: str) -> None:
    """What nobody needs."""
