"""Which parser a request's completions go through: by what the request asks for and how its model writes."""

from collections.abc import Sequence

import msgspec

from octavo.services.tokenizer.leads import HarmonyLead, Lead, Marker, ThinkLead
from octavo.services.tokenizer.parsing.formats import REASONING_FORMATS, ThinkFormat
from octavo.services.tokenizer.parsing.parser import OutputParser, make_parser, markers
from octavo.services.tokenizer.vocabulary import Vocabulary
from octavo.shared.openai import ChatRequest, Options
from octavo.shared.openai_parts import NamedTool

AUTO = "auto"
_NO_IDS: frozenset[int] = frozenset()

# What a chat template writes tells how its model does; the first that is found counts.
_TOOLS_BY_MARKUP: tuple[tuple[str, str], ...] = (
    ("<|channel|>", "harmony"),
    ("<｜tool▁calls▁begin｜>", "deepseek_v3"),
    ("<function=", "qwen3_coder"),
    ("[TOOL_CALLS]", "mistral"),
    ("<|tool_call_start|>", "lfm2"),
    ("<arg_key>", "glm45"),
    ("<tool_call>", "hermes"),
    ("<|python_tag|>", "llama3_json"),
    ('"parameters": dictionary of argument name', "llama3_json"),
    ("<|python_start|>", "pythonic"),
)
_REASONING_BY_MARKUP: tuple[tuple[str, str], ...] = (
    ("<|channel|>", "harmony"),
    ("<think>", "qwen3"),
    ("[THINK]", "mistral"),
)
_THINKS = ("<think>", "[THINK]")  # at the end of a prompt: the model goes on within its reasoning
_THOUGHT = ("</think>", "[/THINK]")  # it has nothing to think about


class Parsers:
    """Of one model. Makes a parser for each completion."""

    def __init__(self, vocabulary: Vocabulary | None, tool_format: str = AUTO, reasoning_format: str = AUTO) -> None:
        """Formats: names of `parsing.formats`, "auto" for what the chat template shows, "none".

        Raises ConfigError when there is no such format.
        """
        template = "" if vocabulary is None else vocabulary.chat_template or ""
        self.tool_format = _format(tool_format, template, _TOOLS_BY_MARKUP)
        self.reasoning_format = _format(reasoning_format, template, _REASONING_BY_MARKUP)
        self._is_harmony = "harmony" in (self.tool_format, self.reasoning_format)
        special = {} if vocabulary is None else {vocabulary.pieces[id].decode(errors="replace"): id
                                                 for id in vocabulary.special_ids}  # fmt: skip
        self._special = special
        self._shown = self._ids(markers(self.tool_format, self.reasoning_format))
        self._shown_thinking = self._ids(markers(None, self.reasoning_format))

    def make(self, options: Options, prompt: str) -> OutputParser | None:
        """For one completion behind a rendered prompt; None where all text is content."""
        if not isinstance(options, ChatRequest):
            return None
        tools, named = self._format_of(options), None
        if isinstance(options.tool_choice, NamedTool) and tools == "json":
            named = options.tool_choice.function.name
        end = prompt.rstrip()
        reasoning = None if end.endswith(_THOUGHT) else self.reasoning_format
        if tools is None and reasoning is None:
            return None
        definitions = [msgspec.to_builtins(tool) for tool in options.tools or ()]
        return make_parser(
            tools, reasoning, tools=definitions, starts_in_reasoning=end.endswith(_THINKS), named_tool=named
        )

    def shown_ids(self, options: Options) -> frozenset[int]:
        """Special tokens that are markup to the parser, so that they must be text."""
        if not isinstance(options, ChatRequest):
            return _NO_IDS
        return self._shown if self._format_of(options) else self._shown_thinking

    def lead(self, prompt: str) -> Lead | None:
        """What the completion behind a rendered prompt may say before the part that a grammar is for, if anything."""
        if self._is_harmony:
            if not prompt.rstrip().endswith("<|start|>assistant"):
                return None
            names = ("start", "channel", "constrain", "message", "end")
            return HarmonyLead(*(self._marker(f"<|{name}|>") for name in names))
        tags = self.thinking_tags(prompt)
        return None if tags is None else ThinkLead(*map(self._marker, tags))

    def thinking_tags(self, prompt: str) -> tuple[str, str] | None:
        """How reasoning begins and ends in the completion behind a rendered prompt; "" for a beginning in the prompt.
        None where it has no tags, or there is none."""
        found = REASONING_FORMATS.get(self.reasoning_format or "")
        end = prompt.rstrip()
        if not isinstance(found, ThinkFormat) or not prompt or end.endswith(_THOUGHT):
            return None
        is_inside = end.endswith(_THINKS) or found.starts_in_reasoning
        return "" if is_inside else found.opening, found.closing

    def _format_of(self, options: ChatRequest) -> str | None:
        """Of the calls that the request lets the model write."""
        if not options.tools or options.tool_choice == "none":
            return None
        if options.tool_choice in (None, "auto"):
            return self.tool_format
        return self.tool_format if self._is_harmony else "json"  # the grammar sees to it

    def _marker(self, text: str) -> Marker:
        return self._special.get(text, text)

    def _ids(self, texts: Sequence[str] | frozenset[str]) -> frozenset[int]:
        return frozenset(self._special[text] for text in texts if text in self._special)


def _format(name: str, template: str, by_markup: Sequence[tuple[str, str]]) -> str | None:
    if name == "none":
        return None
    if name != AUTO:
        return name
    return next((format for markup, format in by_markup if markup in template), None)
