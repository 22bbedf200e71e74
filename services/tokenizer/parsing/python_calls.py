"""Calls written as a list of Python calls: [name(key=value, ...), ...] (Llama 4, LFM2)."""

import json

from octavo.services.tokenizer.parsing.python_literal import literal
from octavo.services.tokenizer.parsing.reader import Malformed, Reader, Steps
from octavo.services.tokenizer.parsing.rules import Rules


def python_calls(reader: Reader, rules: Rules) -> Steps[None]:
    """All arguments have names. A call begins with the "=" of its first argument, or with its ")"."""
    if (yield from reader.space()) != "[":
        raise Malformed
    reader.take(1)
    while True:
        yield from _call(reader)
        char = yield from reader.space()
        if char == "]":
            reader.take(1)
            reader.accept()
            return
        if char != ",":
            raise Malformed
        reader.take(1)


def _call(reader: Reader) -> Steps[None]:
    yield from reader.space()
    name = yield from reader.name()
    if (yield from reader.space()) != "(":
        raise Malformed
    reader.take(1)
    key = yield from _key(reader)
    reader.begin_call(name)
    reader.arguments("{")
    separator = ""
    while key:
        reader.arguments(f"{separator}{json.dumps(key, ensure_ascii=False)}: ")
        yield from literal(reader, reader.arguments)
        separator = ", "
        if (yield from reader.space()) == ",":
            reader.take(1)
            key = yield from _key(reader)
        else:
            key = ""
    if (yield from reader.space()) != ")":
        raise Malformed
    reader.take(1)
    reader.arguments("}")
    reader.end_call()


def _key(reader: Reader) -> Steps[str]:
    """The name of the next argument and its "="; "" in front of the closing bracket."""
    if (yield from reader.space()) == ")":
        return ""
    key = yield from reader.name()
    if (yield from reader.space()) != "=":
        raise Malformed
    reader.take(1)
    return key
