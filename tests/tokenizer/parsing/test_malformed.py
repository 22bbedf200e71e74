"""What models write wrong, and what somebody may make them write: nothing raises, nothing takes long."""

import time

import pytest
from tests.tokenizer.parsing.streams import TOOLS, read

from octavo.services.tokenizer.parsing.parser import TOOL_FORMATS, make_parser

# Format, text, its content, names and text of arguments of its calls.
BROKEN = {
    "no JSON behind the marker": ("hermes", "<tool_call>\nnone\n</tool_call>", "<tool_call>\nnone\n</tool_call>", []),
    "an object without a name": ("hermes", '<tool_call>{"arguments": {}}</tool_call>', None, []),
    "a name that is no string": ("hermes", '<tool_call>{"name": 5}</tool_call>', None, []),
    "a name that cannot be sent": ("hermes", '<tool_call>{"name": "\\ud800"}</tool_call>', None, []),
    "an endless name": ("hermes", '<tool_call>{"name": "' + "x" * 300, None, []),
    "the end before the name": ("hermes", 'a\n<tool_call>{"name": "get', None, []),
    "the end within arguments": ("hermes", '<tool_call>{"name": "f", "arguments": {"a": "b', "", [("f", '{"a": "b')]),
    "the end after the name": ("hermes", '<tool_call>{"name": "f"', "", [("f", "")]),
    "no closing tag": ("hermes", '<tool_call>{"name": "f", "arguments": {}}', "", [("f", "{}")]),
    "a bracket left out": (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"a": 1}</tool_call>done',
        "done",
        [("f", '{"a": 1}')],
    ),
    "two brackets left out": (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"a": 1</tool_call>done',
        "done",
        [("f", '{"a": 1')],
    ),
    "a bracket too many": ("hermes", '<tool_call>{"name": "f"}}</tool_call>', "}", [("f", "{}")]),
    "a marker twice": ("hermes", '<tool_call><tool_call>{"name": "f"}</tool_call>', "<tool_call>", [("f", "{}")]),
    "a stray closing tag": ("hermes", "a</tool_call>", None, []),
    "a call that breaks off, then one": (
        "hermes",
        '<tool_call>{"name": "f", oops}</tool_call>\n<tool_call>{"name": "g"}</tool_call>',
        "oops}",
        [("f", ""), ("g", "{}")],
    ),
    "arguments that are no object": (
        "hermes",
        '<tool_call>{"name": "f", "arguments": [1]}</tool_call>',
        "",
        [("f", "[1]")],
    ),
    "an empty list": ("mistral", "[TOOL_CALLS][]", None, []),
    "a list that breaks off": ("json", '[{"name": "f", "parameters": {}}, 5]', ", 5]", [("f", "{}")]),
    "no arguments": ("mistral", "[TOOL_CALLS]f[ARGS]sorry", "sorry", [("f", "{}")]),
    "just a word": ("mistral", "[TOOL_CALLS]hello world", None, []),
    "no function": ("qwen3_coder", "<tool_call>\n<foo>", None, []),
    "a function that breaks off": (
        "qwen3_coder",
        "<tool_call>\n<function=f>\n<parameter=a>\nb",
        "",
        [("f", '{"a": "b')],
    ),
    "no end of the function": (
        "qwen3_coder",
        "<tool_call>\n<function=f>\n<parameter=a>\nb\n</parameter>\n</tool_call>\nc",
        "\nc",
        [("f", '{"a": "b"}')],
    ),
    "no name": ("glm45", "<tool_call><arg_key>a</arg_key></tool_call>", None, []),
    "a name that breaks off": ("glm45", "<tool_call>f", None, []),
    "json instead": ("glm45", '<tool_call>{"name": "f"}</tool_call>', None, []),
    "a key without a value": (
        "glm45",
        "<tool_call>f\n<arg_key>a</arg_key><arg_value>b</arg_value><arg_key>c</arg_key>\n</tool_call>\nd",
        "\nd",
        [("f", '{"a": "b"}')],
    ),
    "a value that breaks off": (
        "glm45",
        "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Par",
        "",
        [("get_weather", '{"city": "Par')],
    ),
    "arguments without names": ("pythonic", "[f(1), g()]", None, []),
    "a variable": ("pythonic", "[f(a=b)]", ")]", [("f", '{"a": ')]),
    "no separator": ("deepseek_v3", "<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>f{}", None, []),
    "no message": ("gpt_oss", "<|channel|>final", None, []),
    "no channel": ("gpt_oss", "Hello", None, []),
}


@pytest.mark.parametrize(("format", "text", "content", "calls"), BROKEN.values(), ids=BROKEN)
def test_what_is_no_call_is_content_and_what_has_begun_stays(
    format: str, text: str, content: str | None, calls: list[tuple[str, str]]
) -> None:
    result = read(text, lambda: make_parser(format, None, tools=TOOLS))
    assert (result.content, result.calls) == (text if content is None else content, calls)


SIZE = 200_000  # characters

# Format, what a text begins with, what it repeats.
ENDLESS = [
    ("hermes", "", "word "),
    ("hermes", "", " "),
    ("hermes", "", "<"),
    ("hermes", "", "<tool_call>\n"),
    ("hermes", "<tool_call>{", '"arguments": [],'),
    ("hermes", '<tool_call>{"arguments": ', "["),
    ("hermes", '<tool_call>{"name": "f", "arguments": [', "</tool_cal"),
    ("hermes", '<tool_call>{"name": "f", "arguments": "', '\\"'),
    ("llama3_json", "", '{"name": "f", "parameters": {}};'),
    ("mistral", "[TOOL_CALLS]", "a"),
    ("qwen3_coder", "<function=f><parameter=a>", "\n<"),
    ("qwen3_coder", "<function=get_weather><parameter=hours>", "["),
    ("qwen3_coder", "", "<function=f><parameter=a>"),
    ("glm45", "<tool_call>f<arg_key>a</arg_key><arg_value>", "\n<"),
    ("glm45", "<tool_call>f", "<arg_key>a</arg_key><arg_value>"),
    ("pythonic", "[f(a=", "["),
    ("pythonic", "[f(a=", "{1:"),
    ("pythonic", "[f(a=[", "1,"),
    ("pythonic", "[f(a='", "\\"),
    ("deepseek_v3", "", "<｜tool▁calls▁begin｜>"),
    ("gpt_oss", "", "<|channel|>final"),
    ("json", "[", '{"name":"f","parameters":{}},'),
]


@pytest.mark.parametrize(("format", "beginning", "repeated"), ENDLESS)
def test_time_is_linear_in_the_text(format: str, beginning: str, repeated: str) -> None:
    """To look through what is held back again with each piece would take minutes."""
    text = (beginning + repeated * SIZE)[:SIZE]
    parser = make_parser(format, None, tools=TOOLS)
    start = time.process_time()
    num_events = sum(len(parser.feed(text[i : i + 4])) for i in range(0, SIZE, 4)) + len(parser.finish())
    assert num_events
    make_parser(format, None, tools=TOOLS).feed(text)
    assert time.process_time() - start < 10


def test_values_that_nest_too_deep_for_a_reader_are_text() -> None:
    value = "[" * 100_000
    text = f"<function=get_weather><parameter=hours>{value}</parameter></function>"
    parser = make_parser("qwen3_coder", None, tools=TOOLS)
    events = [*parser.feed(text), *parser.finish()]
    assert "".join(getattr(event, "text", "") for event in events) == f'{{"hours": "{value}"}}'


def test_schemas_that_refer_to_themselves_do_no_harm() -> None:
    schema = {
        "properties": {"a": {"$ref": "#/$defs/A"}, "b": 5},
        "$defs": {"A": {"anyOf": [{"$ref": "#/$defs/A"}] * 9}},
    }
    tools = [{"type": "function", "function": {"name": "f", "parameters": schema}}, {"type": "function"}, {}]
    text = "<function=f><parameter=a>1</parameter><parameter=b>2</parameter></function>"
    assert read(text, lambda: make_parser("qwen3_coder", None, tools=tools)).decoded() == [("f", {"a": "1", "b": "2"})]


@pytest.mark.parametrize("format", TOOL_FORMATS)
def test_an_empty_text_has_no_events(format: str) -> None:
    parser = make_parser(format, "qwen3")
    assert parser.feed("") == parser.finish() == []
