"""The formats in which models write reasoning and calls, one short description each."""

from collections.abc import Mapping

import msgspec

from octavo.services.tokenizer.parsing.json_calls import arguments, json_calls
from octavo.services.tokenizer.parsing.python_calls import python_calls
from octavo.services.tokenizer.parsing.reader import Malformed, Markers, Reader, Steps
from octavo.services.tokenizer.parsing.rules import Grammar, Rules
from octavo.services.tokenizer.parsing.xml_calls import ARG_TAGS, arg_call, xml_call


class ToolFormat(msgspec.Struct, frozen=True, kw_only=True):
    """Calls between markers in a text. Whitespace beside them is no content."""

    calls: Grammar  # of what stands behind the opening
    opening: str = ""
    wrapper: str = ""  # may stand before the opening
    closings: tuple[str, ...] = ()  # stand behind calls; the last one ends their block
    inner: tuple[str, ...] = ()  # markers within a call that may be special tokens
    begins: str = ""  # the characters with which a text begins that is calls from its start, without an opening
    is_certain: bool = False  # such a text is calls for sure, since the request asked for them


class ThinkFormat(msgspec.Struct, frozen=True):
    """Reasoning between two tags at the beginning of a text."""

    opening: str = "<think>"
    closing: str = "</think>"
    starts_in_reasoning: bool = False  # the template writes the opening


class HarmonyFormat(msgspec.Struct, frozen=True):
    """The messages of gpt-oss: reasoning and calls both."""


_MISTRAL_INNER = Markers(("[ARGS]", "[CALL_ID]"))
_DEEPSEEK_INNER = Markers(("<｜tool▁sep｜>",))
_FENCE, _FENCE_END = Markers(("```json",)), Markers(("```",))


def _mistral_calls(reader: Reader, rules: Rules) -> Steps[None]:
    """[{"name": ...}, ...] or NAME[ARGS]{...} or NAME[CALL_ID]ID[ARGS]{...} or NAME{...}"""
    if (yield from reader.space()) in "[{":
        yield from json_calls(reader, rules)
        return
    name = yield from reader.name()
    if (yield from reader.space()) != "{":
        found = yield from reader.literal(_MISTRAL_INNER)
        if not found:
            raise Malformed
        reader.begin_call(name)
        if found == "[CALL_ID]":
            yield from reader.name()
            yield from reader.literal(_MISTRAL_INNER)
    else:
        reader.begin_call(name)
    yield from arguments(reader, rules)


def _deepseek_call(reader: Reader, rules: Rules) -> Steps[None]:
    """V3: function<sep>NAME and the arguments in a fenced block. V3.1: NAME<sep>{...}"""
    name = yield from reader.name()
    if not (yield from reader.literal(_DEEPSEEK_INNER)):
        raise Malformed
    is_fenced = name == "function" and (yield from reader.space()) != "{"
    if is_fenced:
        name = yield from reader.name()
    reader.begin_call(name)
    if is_fenced:
        yield from reader.space()
        yield from reader.literal(_FENCE)
    yield from arguments(reader, rules)
    if is_fenced:
        yield from reader.space()
        if (yield from reader.literal(_FENCE_END)):
            reader.accept()


HERMES = ToolFormat(opening="<tool_call>", closings=("</tool_call>",), calls=json_calls)
LLAMA3_JSON = ToolFormat(opening="<|python_tag|>", begins="{", calls=json_calls)
MISTRAL = ToolFormat(opening="[TOOL_CALLS]", inner=_MISTRAL_INNER.texts, calls=_mistral_calls)
QWEN3_CODER = ToolFormat(wrapper="<tool_call>", opening="<function=", closings=("</tool_call>",), calls=xml_call)
GLM45 = ToolFormat(opening="<tool_call>", closings=("</tool_call>",), inner=ARG_TAGS, calls=arg_call)
PYTHONIC = ToolFormat(opening="<|python_start|>", closings=("<|python_end|>",), begins="[", calls=python_calls)
LFM2 = ToolFormat(opening="<|tool_call_start|>", closings=("<|tool_call_end|>",), begins="[", calls=python_calls)
DEEPSEEK = ToolFormat(
    wrapper="<｜tool▁calls▁begin｜>",
    opening="<｜tool▁call▁begin｜>",
    closings=("<｜tool▁call▁end｜>", "<｜tool▁calls▁end｜>"),
    inner=_DEEPSEEK_INNER.texts,
    calls=_deepseek_call,
)
JSON = ToolFormat(begins="[{", is_certain=True, calls=json_calls)
HARMONY = HarmonyFormat()

TOOL_FORMATS: Mapping[str, ToolFormat | HarmonyFormat] = {
    "hermes": HERMES,
    "llama3_json": LLAMA3_JSON,
    "llama4_json": LLAMA3_JSON,
    "mistral": MISTRAL,
    "qwen3_coder": QWEN3_CODER,
    "qwen3_xml": QWEN3_CODER,
    "glm45": GLM45,
    "glm47": GLM45,
    "pythonic": PYTHONIC,
    "llama4_pythonic": PYTHONIC,
    "lfm2": LFM2,
    "deepseek_v3": DEEPSEEK,
    "deepseek_v31": DEEPSEEK,
    "openai": HARMONY,
    "gpt_oss": HARMONY,
    "harmony": HARMONY,
    "json": JSON,
}

THINK = ThinkFormat()
REASONING_FORMATS: Mapping[str, ThinkFormat | HarmonyFormat] = {
    "deepseek_r1": ThinkFormat(starts_in_reasoning=True),
    "deepseek_v3": THINK,
    "deepseek_v31": THINK,
    "qwen3": THINK,
    "glm45": THINK,
    "mistral": ThinkFormat("[THINK]", "[/THINK]"),
    "openai_gptoss": HARMONY,
    "gpt_oss": HARMONY,
    "harmony": HARMONY,
}
