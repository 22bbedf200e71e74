"""Python literals to JSON, as they arrive. No recursion: however deep they nest, only a list grows."""

import json
import re
from collections.abc import Callable

from octavo.services.tokenizer.parsing.reader import Malformed, Markers, Reader, Steps

_WORDS = {"None": "null", "True": "true", "False": "false", "null": "null", "true": "true", "false": "false"}
NUMBER = re.compile(r"-?(?:0|[1-9][0-9]*)(?:\.[0-9]+)?(?:[eE][+-]?[0-9]+)?")
_SCALAR = re.compile(r"[\w.+-]*")
_MAX_SCALAR = 128  # characters
_OPENINGS = {"[": ("[", "]"), "(": ("[", ")"), "{": ("{", "}")}
_CLOSINGS = {"]": "]", ")": "]", "}": "}"}
_ESCAPES = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v", "a": "\a", "\n": ""}
_ESCAPES |= {character: character for character in "\\'\""}
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)  # one that Python does not know stands for itself
_SIMPLE = re.compile(r"[^0-7xuU](?:\\[^0-7xuU])*")
_NUM_DIGITS = {"x": 2, "u": 4, "U": 8}
_HEX = re.compile(r"[0-9a-fA-F]*")
_OCTAL = re.compile(r"[0-7]*")
_STRING_ENDS = {quote: Markers((quote, "\\")) for quote in ("'", '"', "'''", '"""')}

Write = Callable[[str], None]


def literal(reader: Reader, write: Write) -> Steps[None]:
    """Write the literal that begins here as JSON. Raises Malformed where it is none.

    Tuples become arrays, keys of dicts strings; "()" around one value is read as a tuple too.
    """
    closings: list[str] = []  # of the brackets that are open
    is_first = True  # in its bracket
    while True:
        char = yield from reader.space()
        if closings and char == closings[-1]:
            reader.take(1)
            write(_CLOSINGS[closings.pop()])
        else:
            write("" if is_first else ", ")
            if closings and closings[-1] == "}":
                yield from _scalar(reader, write, is_key=True)
                if (yield from reader.space()) != ":":
                    raise Malformed
                reader.take(1)
                write(": ")
                char = yield from reader.space()
            if char in _OPENINGS:
                reader.take(1)
                opening, closing = _OPENINGS[char]
                write(opening)
                closings.append(closing)
                is_first = True
                continue
            yield from _scalar(reader, write)
        if not closings:
            return
        is_first = False
        char = yield from reader.space()
        if char == ",":
            reader.take(1)
        elif char != closings[-1]:
            raise Malformed


def json_of_literal(text: str) -> str | None:
    """The JSON of a whole literal; None if the text is none."""
    reader, pieces = Reader(), list[str]()
    reader.add(text)
    try:
        next(literal(reader, pieces.append))
    except StopIteration:
        return "".join(pieces) if reader.at == len(text) else None
    except Malformed:
        return None
    return None


def _scalar(reader: Reader, write: Write, *, is_key: bool = False) -> Steps[None]:
    if (char := (yield from reader.peek())) in "'\"":
        yield from _string(reader, char, write)
        return
    text = yield from reader.run(_SCALAR, _MAX_SCALAR)
    if len(text) >= _MAX_SCALAR:
        raise Malformed
    value = _WORDS.get(text) or (text if NUMBER.fullmatch(text) else _number(text))
    write(f'"{value}"' if is_key else value)


def _number(text: str) -> str:
    """A number that Python writes otherwise than JSON: 1_000, 0x1f, .5"""
    for read in (lambda: int(text, 0), lambda: float(text)):
        try:
            return json.dumps(read(), allow_nan=False)
        except (ValueError, OverflowError):
            continue
    raise Malformed


def _string(reader: Reader, quote: str, write: Write) -> Steps[None]:
    reader.take(1)
    if (yield from reader.peek()) == quote:
        reader.take(1)
        if (yield from reader.peek()) != quote:
            write('""')
            return
        reader.take(1)
        quote *= 3
    write('"')
    while (yield from reader.pass_until(_STRING_ENDS[quote], lambda text: write(_escape(text)))) == "\\":
        reader.take(1)
        write(_escape((yield from _escaped(reader))))
    reader.take(len(quote))
    write('"')


def _escaped(reader: Reader) -> Steps[str]:
    """What escapes stand for: one with a number, or all others up to the next character that is none."""
    char = yield from reader.peek()
    if char in "01234567":
        return chr(int((yield from reader.run(_OCTAL, 3)), 8))
    if simple := _SIMPLE.match(reader.text, reader.at):
        reader.take(len(simple[0]))
        return _ESCAPE.sub(lambda found: _ESCAPES.get(found[1], found[0]), "\\" + simple[0])
    reader.take(1)
    digits = yield from reader.run(_HEX, _NUM_DIGITS[char])
    if len(digits) == _NUM_DIGITS[char] and int(digits, 16) <= 0x10FFFF:
        return chr(int(digits, 16))
    return f"\\{char}{digits}"


def _escape(text: str) -> str:
    """As it stands within a JSON string. Halves of surrogate pairs cannot be sent but as escapes."""
    return json.dumps(text, ensure_ascii="\ud800" <= text <= "\udfff")[1:-1]
