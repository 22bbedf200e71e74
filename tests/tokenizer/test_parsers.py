"""Which parser a request gets: by its tools, by the model's chat template, and by the settings."""

import json
from pathlib import Path

import pytest
from tests.tokenizer.core_harness import make_vocabulary
from tests.tokenizer.test_prompts import chat, completion
from tokenizers import AddedToken

from octavo.services.tokenizer.parsers import Parsers
from octavo.services.tokenizer.parsing.events import Content, Event, Reasoning, ToolArguments, ToolBegin
from octavo.services.tokenizer.vocabulary import Vocabulary
from octavo.shared.errors import ConfigError
from octavo.shared.openai import Options

TEMPLATES = Path(__file__).parents[2].parent / "shared" / "data" / "chat-templates"
TOOLS = [{"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}}]
HERMES_CALL = '<tool_call>{"name": "f", "arguments": {"a": 1}}</tool_call>'
QWEN = "{# <tool_call> <think> #}"


def parsers(template: str = QWEN, **formats: str) -> Parsers:
    return Parsers(with_template(template), **formats)


def with_template(template: str) -> Vocabulary:
    vocabulary = make_vocabulary()
    return Vocabulary(vocabulary._tokenizer, eos_token="<|end|>", chat_template=template)


def parse(parsers: Parsers, options: Options, text: str, prompt: str = "<assistant>") -> list[Event] | None:
    parser = parsers.make(options, prompt)
    return None if parser is None else [*parser.feed(text), *parser.finish()]


def arguments(events: list[Event] | None) -> object:
    return json.loads("".join(event.text for event in events or () if isinstance(event, ToolArguments)))


def test_calls_are_looked_for_where_there_are_tools_and_reasoning_always() -> None:
    events = parse(parsers(), chat(tools=TOOLS), "<think>hm</think>" + HERMES_CALL)
    assert events is not None and events[:2] == [Reasoning("hm"), ToolBegin(0, "f")]
    assert arguments(events) == {"a": 1}
    for options in (chat(), chat(tools=TOOLS, tool_choice="none")):
        assert parse(parsers(), options, HERMES_CALL) == [Content(HERMES_CALL)]
    assert parse(parsers(), completion(), HERMES_CALL) is None


def test_a_call_that_must_come_is_json_whatever_the_model_writes_else() -> None:
    events = parse(parsers(), chat(tools=TOOLS, tool_choice="required"), '[{"name": "f", "parameters": {"a": 2}}]')
    assert events is not None and events[0] == ToolBegin(0, "f")
    assert arguments(events) == {"a": 2}
    named = {"type": "function", "function": {"name": "f"}}
    events = parse(parsers(), chat(tools=TOOLS, tool_choice=named), '{"a": 3}')
    assert events is not None and events[0] == ToolBegin(0, "f")
    assert arguments(events) == {"a": 3}


def test_a_prompt_may_end_within_reasoning_or_behind_it() -> None:
    assert parse(parsers(), chat(), "hm</think>yes", "<assistant><think>\n") == [Reasoning("hm"), Content("yes")]
    empty = "<assistant><think>\n\n</think>\n\n"
    assert parse(parsers(), chat(), "yes", empty) is None, "there is nothing to tell apart"


def test_settings_go_before_what_the_template_shows() -> None:
    assert parse(parsers(tool_format="none"), chat(tools=TOOLS), HERMES_CALL) == [Content(HERMES_CALL)]
    assert parse(parsers(reasoning_format="none"), chat(), "<think>hm</think>") is None
    assert parse(parsers("plain", tool_format="hermes"), chat(tools=TOOLS), HERMES_CALL) != [Content(HERMES_CALL)]
    with pytest.raises(ConfigError, match="there is no tool format 'hermess'; there are .*hermes"):
        parsers(tool_format="hermess")


def test_special_tokens_that_are_markup_are_shown_to_the_parser_alone() -> None:
    tokenizer = make_vocabulary()._tokenizer
    tokenizer.add_special_tokens([AddedToken("[TOOL_CALLS]", special=True)])
    vocabulary = Vocabulary(tokenizer, eos_token="<|end|>", chat_template="[TOOL_CALLS]")
    mistral = Parsers(vocabulary)
    assert mistral.shown_ids(chat(tools=TOOLS)) == {tokenizer.token_to_id("[TOOL_CALLS]")}
    assert mistral.shown_ids(chat()) == mistral.shown_ids(completion()) == frozenset()


@pytest.mark.parametrize(
    ("template", "tools", "reasoning"),
    [
        ("Qwen-Qwen3-0.6B", "hermes", "qwen3"),
        ("Qwen3-Coder", "qwen3_coder", None),
        ("GLM-4.6", "glm45", "qwen3"),
        ("GLM-4.7-Flash", "glm45", "qwen3"),
        ("meta-llama-Llama-3.2-3B-Instruct", "llama3_json", None),
        ("mistralai-Mistral-Nemo-Instruct-2407", "mistral", None),
        ("deepseek-ai-DeepSeek-V3.1", "deepseek_v3", "qwen3"),
        ("openai-gpt-oss-120b", "harmony", "harmony"),
        ("google-gemma-2-2b-it", None, None),
    ],
)
def test_real_templates_show_how_their_models_write(template: str, tools: str | None, reasoning: str | None) -> None:
    path = TEMPLATES / f"{template}.jinja"
    if not path.exists():
        pytest.skip("the templates of real models are not here")
    found = parsers(path.read_text())
    assert (found.tool_format, found.reasoning_format) == (tools, reasoning)
