"""What the bodies of OpenAI's endpoints are made of: messages, tools, and the forms that an answer may be held to."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

from octavo.shared.errors import InvalidRequest

MAX_TOOLS = 256


class ContentPart(msgspec.Struct, frozen=True):
    """One part of a message. Of all types only text is supported; a refusal is text that an assistant has said."""

    type: str
    text: str | None = None
    refusal: str | None = None


class FunctionCall(msgspec.Struct, frozen=True):
    name: str
    arguments: str = "{}"
    """JSON, as the model wrote it."""


class ToolCall(msgspec.Struct, frozen=True, omit_defaults=True):
    function: FunctionCall
    id: str | None = None
    type: Literal["function"] | None = "function"


class ChatMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: str | list[ContentPart] | None = None
    name: str | None = None
    tool_calls: list[ToolCall] | None = None
    tool_call_id: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class FunctionSpec(msgspec.Struct, frozen=True, omit_defaults=True):
    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    """JSON schema of the arguments' object; none: any object."""
    strict: bool | None = None


class Tool(msgspec.Struct, frozen=True):
    function: FunctionSpec
    type: Literal["function"] = "function"


class FunctionName(msgspec.Struct, frozen=True):
    name: str


class NamedTool(msgspec.Struct, frozen=True):
    """The one tool that must be called."""

    function: FunctionName
    type: Literal["function"] = "function"


ToolChoice = Literal["none", "auto", "required"] | NamedTool
Tools = Annotated[list[Tool], Meta(max_length=MAX_TOOLS)]


class JsonSchema(msgspec.Struct, frozen=True):
    schema: dict[str, Any] | bool | None = None
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(msgspec.Struct, frozen=True):
    type: Literal["text", "json_object", "json_schema", "structural_tag"]
    json_schema: JsonSchema | None = None
    format: dict[str, Any] | None = None
    """Of a structural tag, as xgrammar reads it."""
    structures: list[dict[str, Any]] | None = None
    triggers: list[str] | None = None

    def check(self, param: str = "response_format") -> None:
        if self.type == "json_schema" and (self.json_schema is None or self.json_schema.schema is None):
            raise InvalidRequest(f"{param}.json_schema.schema: this field is required for json_schema", param)
        if self.type == "structural_tag" and self.format is None and self.structures is None:
            raise InvalidRequest(f"{param}.format: this field is required for structural_tag", param)


class StructuredOutputs(msgspec.Struct, frozen=True):
    """vLLM's own field: exactly one of the forms. What else it may hold is ignored."""

    json: dict[str, Any] | bool | str | None = None
    regex: str | None = None
    choice: Annotated[list[str], Meta(min_length=1)] | None = None
    grammar: str | None = None
    json_object: bool | None = None
    structural_tag: dict[str, Any] | str | None = None
    disable_any_whitespace: bool | None = None

    def check(self) -> None:
        forms = (self.json, self.regex, self.choice, self.grammar, self.json_object or None, self.structural_tag)
        if sum(form is not None for form in forms) != 1:
            raise InvalidRequest(
                "structured_outputs: exactly one of json, regex, choice, grammar, json_object and structural_tag "
                "is needed",
                "structured_outputs",
            )


def check_messages(messages: list[ChatMessage]) -> None:
    """Raises InvalidRequest for parts of messages that are no text, and where another dialect's say nothing at all."""
    if not messages:
        raise InvalidRequest("messages: nothing is said in them", "messages")
    for place, message in enumerate(messages):
        for part in message.content if isinstance(message.content, list) else ():
            if part.type not in ("text", "refusal", "input_text", "output_text") or (part.text or part.refusal) is None:
                raise InvalidRequest(
                    f"messages[{place}].content: parts of type {part.type[:40]!r} are not supported; only text is",
                    "messages",
                )


def check_tools(tools: list[Tool] | None, choice: ToolChoice | None) -> None:
    """Raises InvalidRequest where tools and choice contradict each other."""
    names = [tool.function.name for tool in tools or ()]
    if isinstance(choice, NamedTool) and choice.function.name not in names:
        raise InvalidRequest(f"tool_choice: {choice.function.name[:128]!r} is none of the tools", "tool_choice")
    if choice == "required" and not names:
        raise InvalidRequest("tool_choice: required, but there are no tools", "tool_choice")
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InvalidRequest(f"tools: two of them are named {twice!r}", "tools")
