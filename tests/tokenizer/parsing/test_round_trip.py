"""Calls of any names and arguments, written as each format writes them, are read again."""

import json
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tokenizer.parsing.streams import feed, outcome

from octavo.services.tokenizer.parsing.parser import make_parser

CHARACTERS = st.characters(exclude_categories=("Cs",))
TEXTS = st.one_of(
    st.text(CHARACTERS, max_size=12),
    st.sampled_from(
        ["</tool_call>", "<tool_call>", '"}', "\\", "```", "<|end|>", "[TOOL_CALLS]", "'", "]", "\n", "😀"]
    ),
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(-(10**20), 10**20), st.floats(allow_nan=False, allow_infinity=False), TEXTS
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(TEXTS, inner, max_size=3)),
    max_leaves=8,
)
NAMES = st.from_regex(r"[a-zA-Z_][a-zA-Z0-9_]{0,20}", fullmatch=True)
CALLS = st.lists(st.tuples(NAMES, st.dictionaries(NAMES, VALUES, max_size=4)), min_size=1, max_size=3)
Calls = list[tuple[str, dict[str, object]]]


def as_json(value: object, ascii: bool = False) -> str:
    return json.dumps(value, ensure_ascii=ascii)


def hermes(calls: Calls) -> str:
    return "\n".join(
        f'<tool_call>\n{{"name": "{name}", "arguments": {as_json(values)}}}\n</tool_call>' for name, values in calls
    )


def llama3_json(calls: Calls) -> str:
    return "; ".join(f'{{"name": "{name}", "parameters": {as_json(values)}}}' for name, values in calls)


def mistral(calls: Calls) -> str:
    items = [{"name": name, "arguments": values, "id": "abcdefghi"} for name, values in calls]
    return "[TOOL_CALLS]" + json.dumps(items)


def mistral_names(calls: Calls) -> str:
    return "".join(f"[TOOL_CALLS]{name}[ARGS]{as_json(values)}" for name, values in calls)


def deepseek_v3(calls: Calls) -> str:
    begin, sep, end = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
    items = [f"{begin}function{sep}{name}\n```json\n{as_json(values)}\n```{end}" for name, values in calls]
    return "<｜tool▁calls▁begin｜>" + "\n".join(items) + "<｜tool▁calls▁end｜>"


def deepseek_v31(calls: Calls) -> str:
    begin, sep, end = "<｜tool▁call▁begin｜>", "<｜tool▁sep｜>", "<｜tool▁call▁end｜>"
    items = [f"{begin}{name}{sep}{as_json(values)}{end}" for name, values in calls]
    return "<｜tool▁calls▁begin｜>" + "".join(items) + "<｜tool▁calls▁end｜>"


def harmony(calls: Calls) -> str:
    head = "<|start|>assistant<|channel|>commentary to=functions."
    return "".join(f"{head}{name} <|constrain|>json<|message|>{as_json(values)}<|call|>" for name, values in calls)


def plain_json(calls: Calls) -> str:
    return json.dumps([{"name": name, "parameters": values} for name, values in calls], indent=1)


def pythonic(calls: Calls) -> str:
    items = [f"{name}({', '.join(f'{key}={value!r}' for key, value in values.items())})" for name, values in calls]
    return f"[{', '.join(items)}]"


RENDERERS: dict[str, tuple[str, Callable[[Calls], str]]] = {
    "hermes": ("hermes", hermes),
    "llama3_json": ("llama3_json", llama3_json),
    "mistral": ("mistral", mistral),
    "mistral, names": ("mistral", mistral_names),
    "deepseek_v3": ("deepseek_v3", deepseek_v3),
    "deepseek_v31": ("deepseek_v31", deepseek_v31),
    "harmony": ("gpt_oss", harmony),
    "json": ("json", plain_json),
    "pythonic": ("pythonic", pythonic),
}


@pytest.mark.parametrize(("format", "render"), RENDERERS.values(), ids=RENDERERS)
@settings(max_examples=30, deadline=None)
@given(calls=CALLS, size=st.integers(1, 40))
def test_calls_come_back_as_they_were_written(
    format: str, render: Callable[[Calls], str], calls: Calls, size: int
) -> None:
    text = render(calls)
    result = outcome(feed(make_parser(format, None), (text[i : i + size] for i in range(0, len(text), size))))
    assert result.content == ""
    assert result.decoded() == calls


TYPES = {str: "string", bool: "boolean", int: "integer", float: "number", dict: "object", list: "array"}
# XML has no escapes: text with a tag in it cannot be told from the tag.
XML_VALUES = VALUES.filter(lambda value: value is not None and not (isinstance(value, str) and "<" in value))


def as_text(value: object) -> str:
    return as_json(value) if isinstance(value, dict | list) else str(value)


def qwen3_coder(name: str, values: dict[str, str]) -> str:
    parameters = (f"<parameter={key}>\n{value}\n</parameter>\n" for key, value in values.items())
    return f"<tool_call>\n<function={name}>\n{''.join(parameters)}</function>\n</tool_call>"


def glm45(name: str, values: dict[str, str]) -> str:
    parameters = (f"<arg_key>{key}</arg_key>\n<arg_value>{value}</arg_value>\n" for key, value in values.items())
    return f"<tool_call>{name}\n{''.join(parameters)}</tool_call>"


@pytest.mark.parametrize(("format", "render"), [("qwen3_coder", qwen3_coder), ("glm45", glm45)])
@settings(max_examples=60, deadline=None)
@given(
    calls=st.lists(st.tuples(NAMES, st.dictionaries(NAMES, XML_VALUES, max_size=4)), min_size=1, max_size=3),
    size=st.integers(1, 40),
)
def test_xml_parameters_come_back_with_their_declared_types(
    format: str, render: Callable[[str, dict[str, str]], str], calls: Calls, size: int
) -> None:
    tools = [
        {"name": name, "parameters": {"properties": {key: {"type": TYPES[type(v)]} for key, v in values.items()}}}
        for name, values in {name: values for name, values in calls}.items()
    ]
    last = {name: set(values) for name, values in calls}
    calls = [(name, values) for index, (name, values) in enumerate(calls) if name not in dict(calls[index + 1 :])]
    assert all(last[name] == set(values) for name, values in calls)
    text = "\n".join(render(name, {key: as_text(each) for key, each in values.items()}) for name, values in calls)
    parser = make_parser(format, None, tools=[{"type": "function", "function": tool} for tool in tools])
    result = outcome(feed(parser, (text[i : i + size] for i in range(0, len(text), size))))
    assert result.content == ""
    assert result.decoded() == calls
