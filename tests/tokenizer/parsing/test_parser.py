"""Texts as models write them, after the chat templates that taught them to."""

import pytest
from tests.tokenizer.parsing.streams import TOOLS, check_prefixes, merge, read

from octavo.services.tokenizer.parsing.events import Content, ToolArguments, ToolBegin
from octavo.services.tokenizer.parsing.parser import make_parser, markers
from octavo.shared.errors import ConfigError

WEATHER = ("get_weather", {"city": "Paris", "days": 2})
TIME = ("get_time", {})

# Format, text, its content, its calls.
TEXTS = {
    "hermes, one call": (
        "hermes",
        '<tool_call>\n{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}\n</tool_call>',
        "",
        [WEATHER],
    ),
    "hermes, content and two calls": (
        "hermes",
        "Let me look.\n\n<tool_call>\n"
        '{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}}\n</tool_call>\n'
        '<tool_call>\n{"arguments": {}, "name": "get_time"}\n</tool_call>\n',
        "Let me look.",
        [WEATHER, TIME],
    ),
    "hermes, content between and after": (
        "hermes",
        'One <tool_call>{"name": "get_time"}</tool_call>\ntwo\n<tool_call>{"name":"get_time","arguments":null}'
        "</tool_call> three\n",
        "One\ntwo three\n",
        [TIME, TIME],
    ),
    "hermes, a marker within a string": (
        "hermes",
        '<tool_call>{"name": "f", "arguments": {"a": "x</tool_call>\\"}\\\\", "b": "<tool_call>"}}</tool_call>',
        "",
        [("f", {"a": 'x</tool_call>"}\\', "b": "<tool_call>"})],
    ),
    "hermes, an object written as a string": (
        "hermes",
        '<tool_call>{"name": "f", "arguments": "{\\"a\\": \\"\\u00e9\\"}"}</tool_call>',
        "",
        [("f", {"a": "é"})],
    ),
    "llama3_json": (
        "llama3_json",
        '{"name": "get_weather", "parameters": {"city": "Paris", "days": 2}}',
        "",
        [WEATHER],
    ),
    "llama3_json, announced, two calls": (
        "llama3_json",
        '<|python_tag|>{"name": "get_weather", "parameters": {"city": "Paris", "days": 2}}; '
        '{"type": "function", "name": "get_time", "parameters": {}}',
        "",
        [WEATHER, TIME],
    ),
    "llama3_json, an answer in JSON": ("llama3_json", '{"name": "Bob", "age": 3}', '{"name": "Bob", "age": 3}', []),
    "llama3_json, another in JSON": ("llama3_json", '{"name": "Bob"}', '{"name": "Bob"}', []),
    "llama3_json, a built-in tool": (
        "llama3_json",
        '<|python_tag|>brave_search.call(query="x")',
        '<|python_tag|>brave_search.call(query="x")',
        [],
    ),
    "mistral, a list": (
        "mistral",
        '[TOOL_CALLS][{"name": "get_weather", "arguments": {"city": "Paris", "days": 2}, "id": "abcdefghi"}, '
        '{"name": "get_time", "arguments": {}, "id": "abcdefghj"}]',
        "",
        [WEATHER, TIME],
    ),
    "mistral, names": (
        "mistral",
        'Sure.[TOOL_CALLS]get_weather[ARGS]{"city": "Paris", "days": 2}[TOOL_CALLS]get_time[ARGS]{}',
        "Sure.",
        [WEATHER, TIME],
    ),
    "mistral, names and ids": (
        "mistral",
        '[TOOL_CALLS]get_weather[CALL_ID]abcdefghi[ARGS]{"city": "Paris", "days": 2}',
        "",
        [WEATHER],
    ),
    "mistral, names without a marker": (
        "mistral",
        '[TOOL_CALLS]get_weather{"city": "Paris", "days": 2}[TOOL_CALLS]get_time{}',
        "",
        [WEATHER, TIME],
    ),
    "qwen3_coder": (
        "qwen3_coder",
        "I look.\n\n<tool_call>\n<function=get_weather>\n<parameter=city>\nParis\n</parameter>\n"
        "<parameter=days>\n2\n</parameter>\n</function>\n</tool_call>\n"
        "<tool_call>\n<function=get_time>\n</function>\n</tool_call>",
        "I look.",
        [WEATHER, TIME],
    ),
    "qwen3_coder, every type": (
        "qwen3_coder",
        '<tool_call>\n<function=get_weather>\n<parameter=city>\n\n "a"\n\tb\\\n\n</parameter>\n'
        "<parameter=step>\n-0.5e3\n</parameter>\n<parameter=metric>\nTrue\n</parameter>\n"
        '<parameter=place>\n{"a": [1, "x"]}\n</parameter>\n<parameter=hours>\n[1, 2]\n</parameter>\n'
        "<parameter=nothing>\nNone\n</parameter>\n<parameter=unit>\nnull\n</parameter>\n"
        "<parameter=limit>\n5\n</parameter>\n<parameter=where>\n{'lat': 1.5}\n</parameter>\n"
        "<parameter=other>\n7\n</parameter>\n</function>\n</tool_call>",
        "",
        [
            (
                "get_weather",
                {
                    "city": '\n "a"\n\tb\\\n',
                    "step": -500.0,
                    "metric": True,
                    "place": {"a": [1, "x"]},
                    "hours": [1, 2],
                    "nothing": None,
                    "unit": None,
                    "limit": 5,
                    "where": {"lat": 1.5},
                    "other": "7",
                },
            )
        ],
    ),
    "qwen3_coder, values of a wrong type": (
        "qwen3_coder",
        "<tool_call>\n<function=get_weather>\n<parameter=days>\ntwo\n</parameter>\n<parameter=metric>\n1\n</parameter>\n"
        "<parameter=hours>\n[1, 2\n</parameter>\n</function>\n</tool_call>",
        "",
        [("get_weather", {"days": "two", "metric": "1", "hours": "[1, 2"})],
    ),
    "qwen3_coder, tags left out": (
        "qwen3_coder",
        "<function=get_weather>\n<parameter=city>\nParis\n<parameter=days>\n2\n</function>\n</tool_call>",
        "",
        [WEATHER],
    ),
    "glm45": (
        "glm45",
        "I look.\n<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>Paris</arg_value>\n"
        "<arg_key>days</arg_key>\n<arg_value>2</arg_value>\n</tool_call>\n<tool_call>get_time\n</tool_call>",
        "I look.",
        [WEATHER, TIME],
    ),
    "glm45, on one line": (
        "glm47",
        "<tool_call>get_weather<arg_key>city</arg_key><arg_value>Paris</arg_value><arg_key>days</arg_key>"
        "<arg_value>2</arg_value></tool_call><tool_call>get_time</tool_call>",
        "",
        [WEATHER, TIME],
    ),
    "glm45, values as they stand": (
        "glm45",
        "<tool_call>get_weather\n<arg_key>city</arg_key>\n<arg_value>\n a </tool_call> <arg_key>\n</arg_value>"
        "<arg_key>hours</arg_key><arg_value>[1, 2]</arg_value><arg_key>x</arg_key><arg_value>7</arg_value>so",
        "so",
        [("get_weather", {"city": "\n a </tool_call> <arg_key>\n", "hours": [1, 2], "x": "7"})],
    ),
    "pythonic": (
        "pythonic",
        "[get_weather(city='Paris', days=2), get_time()]",
        "",
        [WEATHER, TIME],
    ),
    "pythonic, every literal": (
        "pythonic",
        """[f(a="it's", b='say \\"\\x41\\u00e9\\n\\d\\101"', c=[1, -2.5, (3,), []], d={'k': {}, 1: None}, e=True, """
        '''f=1_000, g=0x10, h="""a"b""", i='', j=null,)]''',
        "",
        [
            (
                "f",
                {
                    "a": "it's",
                    "b": 'say "Aé\n\\dA"',
                    "c": [1, -2.5, [3], []],
                    "d": {"k": {}, "1": None},
                    "e": True,
                    "f": 1000,
                    "g": 16,
                    "h": 'a"b',
                    "i": "",
                    "j": None,
                },
            )
        ],
    ),
    "pythonic, a link": ("pythonic", "[see](https://octavo.dev) and f(x)", "[see](https://octavo.dev) and f(x)", []),
    "lfm2": (
        "lfm2",
        '<|tool_call_start|>[get_weather(city="Paris", days=2)]<|tool_call_end|>I look.',
        "I look.",
        [WEATHER],
    ),
    "deepseek_v3": (
        "deepseek_v3",
        "I look.<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>function<｜tool▁sep｜>get_weather\n```json\n"
        '{"city": "Paris", "days": 2}\n```<｜tool▁call▁end｜>\n'
        "<｜tool▁call▁begin｜>function<｜tool▁sep｜>get_time\n```json\n{}\n```<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "I look.",
        [WEATHER, TIME],
    ),
    "deepseek_v31": (
        "deepseek_v31",
        '<｜tool▁calls▁begin｜><｜tool▁call▁begin｜>get_weather<｜tool▁sep｜>{"city": "Paris", "days": 2}'
        "<｜tool▁call▁end｜><｜tool▁call▁begin｜>get_time<｜tool▁sep｜>{}<｜tool▁call▁end｜><｜tool▁calls▁end｜>",
        "",
        [WEATHER, TIME],
    ),
    "gpt_oss": (
        "gpt_oss",
        "<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary "
        'to=functions.get_weather <|constrain|>json<|message|>{"city": "Paris", "days": 2}<|call|>',
        "I look.",
        [WEATHER],
    ),
    "gpt_oss, the recipient first": (
        "gpt_oss",
        ' to=functions.get_weather<|channel|>commentary json<|message|>{"city": "Paris", "days": 2}<|call|>'
        "<|start|>assistant to=functions.get_time<|channel|>commentary json<|message|>{}",
        "",
        [WEATHER, TIME],
    ),
    "json": (
        "json",
        '[{"name": "get_weather", "parameters": {"city": "Paris", "days": 2}}, {"name":"get_time","arguments":{}}]\n',
        "",
        [WEATHER, TIME],
    ),
    "no format": (None, '<tool_call>\n{"name": "f"}', '<tool_call>\n{"name": "f"}', []),
}

THINKING = {
    # Format, does the prompt end with the tag, the text before the answer, its reasoning
    "deepseek_r1": ("deepseek_r1", False, "Let me think.\nSo.\n</think>\n\n", "Let me think.\nSo."),
    "deepseek_r1, with the tag": ("deepseek_r1", False, "<think>\nSo.</think>\n\n", "So."),
    "deepseek_r1, nothing": ("deepseek_r1", False, "</think>", ""),
    "qwen3": ("qwen3", False, "<think>\nSo <b>.\n</think>\n\n", "So <b>."),
    "qwen3, no thoughts": ("qwen3", False, "<think>\n\n</think>\n\n", ""),
    "qwen3, none": ("qwen3", False, "", ""),
    "qwen3, the tag in the prompt": ("qwen3", True, "So.\n</think>\n\n", "So."),
    "qwen3, calls in thoughts": ("qwen3", True, '<tool_call>{"name": "x"}</think>', '<tool_call>{"name": "x"}'),
    "mistral": ("mistral", False, "[THINK]So.[/THINK]", "So."),
    "gpt_oss": (
        "gpt_oss",
        False,
        "<|channel|>analysis<|message|>So.\n<|end|><|start|>assistant<|channel|>final<|message|>",
        "So.\n",
    ),
}


@pytest.mark.parametrize(("format", "text", "content", "calls"), TEXTS.values(), ids=TEXTS)
def test_calls_are_found_wherever_the_text_is_cut(
    format: str | None, text: str, content: str, calls: list[tuple[str, object]]
) -> None:
    result = read(text, lambda: make_parser(format, None, tools=TOOLS))
    assert (result.reasoning, result.content) == ("", content)
    assert result.decoded() == calls


@pytest.mark.parametrize(("format", "text", "content", "calls"), TEXTS.values(), ids=TEXTS)
def test_what_is_out_depends_on_the_text_so_far_alone(
    format: str | None, text: str, content: str, calls: list[tuple[str, object]]
) -> None:
    check_prefixes(text, lambda: make_parser(format, None, tools=TOOLS))


@pytest.mark.parametrize(("reasoning", "starts", "thoughts", "expected"), THINKING.values(), ids=THINKING)
@pytest.mark.parametrize("key", ["hermes, content and two calls", "qwen3_coder", "mistral, names", "lfm2", "json"])
def test_reasoning_stands_before_calls_of_every_format(
    key: str, reasoning: str, starts: bool, thoughts: str, expected: str
) -> None:
    format, text, content, calls = TEXTS[key]
    result = read(thoughts + text, lambda: make_parser(format, reasoning, tools=TOOLS, starts_in_reasoning=starts))
    assert (result.reasoning, result.content) == (expected, content)
    assert result.decoded() == calls


def test_harmony_gives_reasoning_content_and_calls() -> None:
    text = (
        "<|channel|>analysis<|message|>I need it.<|end|>"
        "<|start|>assistant<|channel|>commentary to=functions.get_weather <|constrain|>json<|message|>"
        '{"city": "<|end|>"}<|call|><|start|>assistant<|channel|>final<|message|>Done.<|return|>'
    )
    result = read(text, lambda: make_parser("openai", "openai_gptoss"))
    assert (result.reasoning, result.content) == ("I need it.", "Done.")
    assert result.decoded() == [("get_weather", {"city": "<|end|>"})]
    without_tools = read(text, lambda: make_parser(None, "openai_gptoss"))
    assert (without_tools.reasoning, without_tools.calls) == ("I need it.", [])


def test_the_text_of_a_named_tool_is_its_arguments() -> None:
    result = read(' {"name": "x", "a": "}"}\n', lambda: make_parser("json", None, named_tool="get_time"))
    assert (result.content, result.decoded()) == ("", [("get_time", {"name": "x", "a": "}"})])


def test_a_name_is_told_when_it_is_complete_and_arguments_as_they_come() -> None:
    parser = make_parser("hermes", None)
    assert parser.feed('<tool_call>\n{"name": "get_weather') == []
    assert parser.feed('"') == [ToolBegin(0, "get_weather")]
    assert parser.num_tools == 1
    assert parser.feed(', "arguments": {"ci') == [ToolArguments(0, '{"ci')]
    assert parser.feed('ty": "Par') == [ToolArguments(0, 'ty": "Par')]
    assert parser.feed('is"}') == [ToolArguments(0, 'is"}')]
    assert parser.feed("}\n</tool_call>\n") == []
    assert parser.finish() == []


def test_content_is_held_back_only_while_it_may_begin_a_call() -> None:
    parser = make_parser("hermes", None)
    assert parser.feed("a <tool") == [Content("a")]
    assert parser.feed("s> b") == [Content(" <tools> b")]
    assert parser.feed("<tool_call>") == []
    assert parser.feed("\nfoo") == [Content("<tool_call>\nfoo")]
    assert parser.feed('<tool_call>{"city') == []
    assert parser.feed('"') == [Content('<tool_call>{"city"')]


def test_strings_of_xml_and_python_arguments_stream() -> None:
    xml = make_parser("qwen3_coder", None, tools=TOOLS)
    xml.feed("<tool_call>\n<function=get_weather>\n<parameter=city>\n")
    assert xml.feed('Pa"r') == [ToolArguments(0, 'Pa\\"r')]
    python = make_parser("pythonic", None)
    assert merge(python.feed("[get_weather(city='Pa\"r")) == [
        ToolBegin(0, "get_weather"),
        ToolArguments(0, '{"city": "Pa\\"r'),
    ]


def test_markers_name_the_special_tokens_of_both_formats() -> None:
    assert {"<tool_call>", "</tool_call>", "<think>", "</think>"} <= markers("hermes", "qwen3")
    assert {"[TOOL_CALLS]", "[ARGS]", "[CALL_ID]"} <= markers("mistral", None)
    assert {"<|channel|>", "<|message|>", "<|start|>", "<|end|>", "<|call|>"} <= markers(None, "gpt_oss")
    assert "<｜tool▁sep｜>" in markers("deepseek_v3", None)
    assert markers(None, None) == markers("json", None) == frozenset()


def test_an_unknown_format_is_named_with_those_that_there_are() -> None:
    with pytest.raises(ConfigError, match="no tool format 'herms'; there are .*hermes"):
        make_parser("herms", None)
    with pytest.raises(ConfigError, match="no reasoning format 'r2'; there are .*qwen3"):
        markers(None, "r2")
