"""Whatever the text and however it is cut: the same events, none early, none late, no text lost."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.tokenizer.parsing.streams import TOOLS, check_prefixes, feed, outcome

from octavo.services.tokenizer.parsing.events import Content, Reasoning
from octavo.services.tokenizer.parsing.parser import REASONING_FORMATS, TOOL_FORMATS, make_parser, markers

NAMES = st.sampled_from([None, *TOOL_FORMATS])
THOUGHTS = st.sampled_from([None, *REASONING_FORMATS])

# Pieces of markup of all formats, whole and broken.
FRAGMENTS = [
    *sorted({marker for name in TOOL_FORMATS for marker in markers(name, None)}),
    *sorted({marker for name in REASONING_FORMATS for marker in markers(None, name)}),
    *('{"name": "f"', '"arguments": ', '"parameters": {', '{"a": 1}', '{"name": "f", "arguments": {', '"type": "x", '),
    *(
        "{",
        "}",
        "[",
        "]",
        "(",
        ")",
        ",",
        ":",
        ";",
        "=",
        '"',
        "'",
        '"""',
        "\\",
        "\\u00",
        "\\x4",
        "\\7",
        "```json",
        "```",
    ),
    *("get_weather", "get_weather>", "city>", "days>", "hours>", "<parameter=", "</parameter>", "</function>", ">"),
    *(
        "f(",
        "a=",
        "[f(a=",
        "True",
        "None",
        "-1.5e3",
        "0x1f",
        " to=functions.f",
        "function",
        "assistant",
        "final",
        "json",
    ),
    *("\n", " ", "\n\n", "x", "é", "😀", "｜", "null", "<", "<|", "<to", "true"),
]
MARKUP = st.lists(st.sampled_from(FRAGMENTS), max_size=24).map("".join)
# Lone halves of surrogate pairs cannot come out of a detokenizer.
ANY_TEXT = st.text(st.characters(exclude_categories=("Cs",)), max_size=40)
TEXT = st.lists(st.one_of(MARKUP, ANY_TEXT), max_size=3).map("".join)


@settings(max_examples=150, deadline=None)
@given(TEXT, NAMES, THOUGHTS, st.booleans())
def test_what_is_out_depends_on_the_text_so_far_alone(
    text: str, tool_format: str | None, reasoning_format: str | None, starts: bool
) -> None:
    check_prefixes(text, lambda: make_parser(tool_format, reasoning_format, tools=TOOLS, starts_in_reasoning=starts))


@settings(max_examples=150, deadline=None)
@given(st.lists(TEXT, max_size=8), NAMES, THOUGHTS)
def test_the_events_do_not_depend_on_the_pieces(
    pieces: list[str], tool_format: str | None, reasoning_format: str | None
) -> None:
    whole = feed(make_parser(tool_format, reasoning_format, tools=TOOLS), ["".join(pieces)])
    assert feed(make_parser(tool_format, reasoning_format, tools=TOOLS), pieces) == whole


@settings(max_examples=100, deadline=None)
@given(TEXT)
def test_without_formats_all_text_is_content_at_once(text: str) -> None:
    assert make_parser(None, None).feed(text) == ([Content(text)] if text else [])


@pytest.mark.parametrize("tool_format", TOOL_FORMATS)
@settings(max_examples=40, deadline=None)
@given(text=TEXT)
def test_no_text_is_lost_where_there_is_no_call(tool_format: str, text: str) -> None:
    parser = make_parser(tool_format, None, tools=TOOLS)
    events = feed(parser, [text])
    assert parser.num_tools == len(outcome(events).calls)
    if parser.num_tools or tool_format in ("openai", "gpt_oss", "harmony"):  # their messages have headers
        return
    assert outcome(events).content == text


@settings(max_examples=100, deadline=None)
@given(TEXT)
def test_no_text_is_lost_between_reasoning_and_content(text: str) -> None:
    events = feed(make_parser(None, "qwen3"), ["<think>", text])
    thoughts, closing, rest = text.partition("</think>")
    assert "".join(each.text for each in events if isinstance(each, Reasoning)).strip() == thoughts.strip()
    assert "".join(each.text for each in events if isinstance(each, Content)) == rest.lstrip("\r\n")
