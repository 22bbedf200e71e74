"""Chat templates render as transformers renders them, and fail as a client's mistake."""

import copy
from datetime import datetime
from pathlib import Path

import pytest

from octavo.services.tokenizer.template import ChatTemplate, Message
from octavo.shared.errors import InvalidRequest, ModelError

_TEMPLATES = sorted((Path(__file__).parents[2].parent / "shared" / "data" / "chat-templates").glob("*.jinja"))

_PLAIN = "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
_WITH_PARTS = (
    "{% for m in messages %}{% if m.content is string %}{{ m.content }}"
    "{% else %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endif %}{% endfor %}"
)
_ONLY_PARTS = "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}"
_TWO_PARTS = [{"type": "text", "text": "one"}, {"type": "text", "text": "two"}]

_TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather <now> of a city & its surroundings",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "a city, such as Zürich"}},
            "required": ["city"],
        },
    },
}
_CALL = {
    "id": "abcdefghi",
    "type": "function",
    "function": {"name": "weather", "arguments": {"city": "Zürich"}},
}
_QUESTION = {"role": "user", "content": "Hello <b>there</b>, 1 & 2?"}
_CONVERSATIONS: dict[str, list[Message]] = {
    "question": [_QUESTION],
    "system": [{"role": "system", "content": "Be brief."}, _QUESTION],
    "turns": [
        {"role": "system", "content": "Be brief.\n"},
        _QUESTION,
        {"role": "assistant", "content": "<think>\nhm\n</think>\n\nYes, “so”."},
        {"role": "user", "content": "  Why?\n"},
    ],
    "reasoning": [
        _QUESTION,
        {"role": "assistant", "content": "Yes.", "reasoning_content": "let me see"},
        {"role": "user", "content": "Why?"},
    ],
    "tool calls": [
        _QUESTION,
        {"role": "assistant", "content": "", "tool_calls": [_CALL]},
        {"role": "tool", "tool_call_id": "abcdefghi", "name": "weather", "content": "rain"},
    ],
}


def _by_transformers(source: str, messages: list[Message], **options: object) -> str | None:
    """The prompt by transformers; None when the template raises."""
    from transformers.utils.chat_template_utils import render_jinja_template

    try:
        rendered, _ = render_jinja_template(
            [copy.deepcopy(messages)], chat_template=source, bos_token="<s>", eos_token="</s>", **options
        )
    except Exception:  # whatever a template can do wrong
        return None
    return str(rendered[0])


def _by_octavo(template: ChatTemplate, messages: list[Message], **options: object) -> str | None:
    try:
        return template.render(messages, **options)  # type: ignore[arg-type]  # the options of the test below
    except InvalidRequest:
        return None


@pytest.mark.skipif(not _TEMPLATES, reason="needs the chat templates of the shared data folder")
@pytest.mark.parametrize("path", _TEMPLATES, ids=lambda path: path.stem)
def test_a_real_template_renders_as_in_transformers_or_fails_in_both(path: Path) -> None:
    source = path.read_text(encoding="utf-8")
    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>")
    options = [{"tools": tools, "add_generation_prompt": adds} for tools in (None, [_TOOL]) for adds in (0, 1)]
    cases = [(messages, each) for messages in _CONVERSATIONS.values() for each in options]

    rendered = [_by_octavo(template, messages, **each) for messages, each in cases]

    assert rendered == [_by_transformers(source, messages, **each) for messages, each in cases]


def test_parts_are_joined_by_newlines_where_a_template_wants_text() -> None:
    template = ChatTemplate(_PLAIN)

    assert template.render([{"role": "user", "content": _TWO_PARTS}]) == "[user]one\ntwo"


def test_parts_are_kept_where_a_template_takes_them() -> None:
    template = ChatTemplate(_WITH_PARTS)

    assert template.render([{"role": "user", "content": _TWO_PARTS}]) == "onetwo"


def test_text_becomes_a_part_where_a_template_shows_nothing_else() -> None:
    template = ChatTemplate(_ONLY_PARTS)

    assert template.render([{"role": "user", "content": "text"}]) == "text"


def test_a_part_that_is_no_text_is_refused_by_its_type() -> None:
    message = {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "data:,"}}]}

    with pytest.raises(InvalidRequest, match=r"messages\[0\].content\[0\] is of type 'image_url'") as raised:
        ChatTemplate(_PLAIN).render([message])

    assert raised.value.param == "messages"


def test_no_content_is_empty_text() -> None:
    template = ChatTemplate(_PLAIN)

    assert template.render([{"role": "assistant", "content": None}, {"role": "user"}]) == "[assistant][user]"


def test_the_json_of_tool_arguments_becomes_an_object_where_a_template_takes_one() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.tool_calls[0].function.arguments | tojson }}{% endfor %}")
    call = {"type": "function", "function": {"name": "f", "arguments": '{"city": "Zürich"}'}}

    rendered = template.render([{"role": "assistant", "content": None, "tool_calls": [call]}])

    assert rendered == '{"city": "Zürich"}'


def test_the_json_of_tool_arguments_is_kept_where_a_template_adds_it_to_text() -> None:
    template = ChatTemplate(
        "{% for m in messages %}{% if m.tool_calls and m.content is none %}"
        "{{ 'call ' + m.tool_calls[0].function.arguments }}{% endif %}{% endfor %}"
    )
    call = {"type": "function", "function": {"name": "f", "arguments": '{"city": 1}'}}

    rendered = template.render([{"role": "assistant", "content": None, "tool_calls": [call]}])

    assert rendered == 'call {"city": 1}'


def test_tool_arguments_that_are_not_json_are_refused() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": "{"}}

    with pytest.raises(InvalidRequest, match="arguments are not JSON"):
        ChatTemplate(_PLAIN).render([{"role": "assistant", "content": "", "tool_calls": [call]}])


def test_rendering_changes_no_message() -> None:
    call = {"type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages: list[Message] = [{"role": "assistant", "content": None, "tool_calls": [call], "reasoning": "a"}]
    before = copy.deepcopy(messages)

    ChatTemplate(_WITH_PARTS).render(messages)

    assert messages == before


def test_a_model_without_template_points_to_completions() -> None:
    with pytest.raises(InvalidRequest, match="no chat template; use /v1/completions") as raised:
        ChatTemplate(None).render([_QUESTION])

    assert raised.value.param == "messages"


def test_a_broken_template_is_the_models_error() -> None:
    with pytest.raises(ModelError, match="does not compile"):
        ChatTemplate("{% for m in messages %}")


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("{{ raise_exception('roles must alternate') }}", "roles must alternate"),
        ("{{ messages[0].missing.deeper }}", "no attribute 'missing'"),
        ("{{ ''.__class__.__mro__ }}", "unsafe"),
        ("{% set n = namespace(__class__=1) %}", "begins with _"),
        ("{{ messages.append(1) }}", "unsafe"),
        ("{{ 'a' + 1 }}", "cannot render these messages: TypeError at its line 1$"),
        ("a\n{{ 1 // 0 }}", "cannot render these messages: ZeroDivisionError at its line 2$"),
        ("{% macro f() %}\n{{ f() }}{% endmacro %}{{ f() }}", r"RecursionError at its line \d$"),
        ("{% for i in range(10000) %}{{ 'a' * 1000 }}{% endfor %}", "over 8388608 characters"),
        (
            "{% if messages[0].content == 'slow' %}"
            "{% for i in range(99999) %}{{ range(9999) | list | length }}{% endfor %}{% endif %}",
            r"needs over 1\.0 s",
        ),
    ],
)
def test_what_goes_wrong_in_a_template_is_an_invalid_request(source: str, message: str) -> None:
    template = ChatTemplate(source)

    with pytest.raises(InvalidRequest, match=message) as raised:
        template.render([{"role": "user", "content": "slow"}])

    assert raised.value.param == "messages"


def _tool_with(parameter: Message) -> Message:
    properties = {"a": {**parameter, "description": "x"}}
    function = {"name": "f", "description": "d", "parameters": {"type": "object", "properties": properties}}
    return {"type": "function", "function": function}


@pytest.mark.skipif(not _TEMPLATES, reason="needs the chat templates of the shared data folder")
@pytest.mark.parametrize(
    ("name", "parameter", "fault"),
    [
        ("NousResearch-Hermes-3-Llama-3.1-8B-tool_use", {"type": "array", "items": {"type": "string"}}, None),
        (
            "NousResearch-Hermes-3-Llama-3.1-8B-tool_use",
            {"type": ["string", "null"]},
            r"RecursionError at its line \d+; it may without",
        ),
        ("llama-cpp-deepseek-r1", {"type": "string"}, "TypeError at its line 12; it may without the tools"),
    ],
)
def test_a_real_template_that_fails_at_tools_fails_in_transformers_too_and_is_named(
    name: str, parameter: Message, fault: str | None
) -> None:
    [path] = [path for path in _TEMPLATES if path.stem == name]
    source, tools = path.read_text(encoding="utf-8"), [_tool_with(parameter)]
    template = ChatTemplate(source, bos_token="<s>", eos_token="</s>")

    expected = _by_transformers(source, [_QUESTION], tools=tools)

    assert (expected is None) == (fault is not None)
    if fault is None:
        assert template.render([_QUESTION], tools=tools, add_generation_prompt=False) == expected
    else:
        with pytest.raises(InvalidRequest, match=fault):
            template.render([_QUESTION], tools=tools)


def test_a_request_may_set_what_the_template_asks_for() -> None:
    template = ChatTemplate("{% if enable_thinking %}<think>{% endif %}")

    rendered = template.render([_QUESTION], chat_template_kwargs={"enable_thinking": True, "tokenize": True})

    assert rendered == "<think>"


@pytest.mark.parametrize("name", ["messages", "tools", "bos_token", "raise_exception", "namespace", "range"])
def test_a_request_may_not_set_what_the_server_gives(name: str) -> None:
    with pytest.raises(InvalidRequest, match=f"'{name}' cannot be set") as raised:
        ChatTemplate(_PLAIN).render([_QUESTION], chat_template_kwargs={name: "x"})

    assert raised.value.param == "chat_template_kwargs"


def test_reasoning_is_found_under_each_of_its_names() -> None:
    template = ChatTemplate("{% for m in messages %}{{ m.reasoning_content }}{{ m.thinking }} {% endfor %}")

    rendered = template.render([{"role": "assistant", "reasoning": "a"}, {"role": "assistant", "thinking": "b"}])

    assert rendered == "aa bb "


def test_generation_blocks_render_what_is_inside() -> None:
    template = ChatTemplate("a{% generation %}{{ messages[0].role }}{% endgeneration %}z")

    assert template.render([_QUESTION]) == "auserz"


def test_the_time_is_the_servers() -> None:
    assert ChatTemplate("{{ strftime_now('%Y') }}").render([_QUESTION]) == f"{datetime.now():%Y}"
