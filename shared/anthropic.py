"""Request bodies of Anthropic's Messages API, with vLLM's additions, and the chats that they stand for."""

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from octavo.shared.conversation import Conversation
from octavo.shared.errors import InvalidRequest
from octavo.shared.fields import MAX_STOPS, StopString, Tokens
from octavo.shared.openai import ChatRequest, Effort, Sampling
from octavo.shared.openai_parts import (
    MAX_TOOLS,
    FunctionName,
    FunctionSpec,
    JsonSchema,
    NamedTool,
    ResponseFormat,
    Tool,
    ToolChoice,
)


class Block(msgspec.Struct, frozen=True):
    """A part of a message: text, thinking, a use of a tool or its result, as `type` says."""

    type: str
    text: str | None = None
    thinking: Annotated[str | None, Meta(description="what the assistant thought")] = None
    id: str | None = None
    name: str | None = None
    input: Annotated[dict[str, Any] | None, Meta(description="the arguments of a call")] = None
    tool_use_id: str | None = None
    content: "str | list[Block] | None" = None

    def check(self, place: str, types: tuple[str, ...]) -> None:
        """Raises InvalidRequest for other types than these, and where something is missing."""
        field_name = place.partition("[")[0]
        if self.type not in types:
            known = ", ".join(types)
            raise InvalidRequest(f"{place}.type: {self.type[:40]!r} is not supported here; only {known}", field_name)
        given = {"text": self.text, "thinking": self.thinking, "id": self.id, "name": self.name, "input": self.input}
        for field in _REQUIRED[self.type]:
            if (given | {"tool_use_id": self.tool_use_id})[field] is None:
                raise InvalidRequest(f"{place}.{field}: this field is required", field_name)
        if self.type == "tool_result" and isinstance(self.content, list):
            for number, block in enumerate(self.content):
                block.check(f"{place}.content[{number}]", ("text",))

    def tell(self, conversation: Conversation) -> None:
        """Add what an assistant has said to a chat."""
        match self.type:
            case "text":
                conversation.answer(self.text or "")
            case "thinking":
                conversation.think(self.thinking or "")
            case "tool_use":
                arguments = msgspec.json.encode(self.input or {}).decode()
                conversation.call(self.id or "", self.name or "", arguments)


_REQUIRED: dict[str, tuple[str, ...]] = {
    "text": ("text",),
    "thinking": ("thinking",),
    "redacted_thinking": (),
    "tool_use": ("id", "name", "input"),
    "tool_result": ("tool_use_id",),
}
_OF_ROLE: dict[str, tuple[str, ...]] = {
    "system": ("text",),
    "user": ("text", "tool_result"),
    "assistant": ("text", "thinking", "redacted_thinking", "tool_use"),
}


class Turn(msgspec.Struct, frozen=True):
    role: Literal["user", "assistant", "system"]
    content: str | list[Block]

    @property
    def blocks(self) -> list[Block]:
        return [Block("text", self.content)] if isinstance(self.content, str) else self.content

    def tell(self, conversation: Conversation) -> None:
        """Add it to a chat: results of tools are messages of their own there."""
        if self.role == "assistant":
            for block in self.blocks:
                block.tell(conversation)
            return
        texts: list[str] = []
        for block in self.blocks:
            if block.type != "tool_result":
                texts.append(block.text or "")
                continue
            if texts:
                conversation.tell(self.role, texts)
                texts = []
            conversation.result(block.tool_use_id or "", "\n".join(_texts(block.content)))
        if texts:
            conversation.tell(self.role, texts)


class AnthropicTool(msgspec.Struct, frozen=True):
    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")]
    type: str | None = None
    description: str | None = None
    input_schema: dict[str, Any] | None = None


class AnthropicToolChoice(msgspec.Struct, frozen=True):
    type: Literal["auto", "any", "tool", "none"]
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class Thinking(msgspec.Struct, frozen=True):
    type: Literal["enabled", "disabled", "adaptive"]
    budget_tokens: Tokens | None = None


class OutputFormat(msgspec.Struct, frozen=True):
    type: Literal["json_schema"]
    schema: dict[str, Any] | bool


class OutputConfig(msgspec.Struct, frozen=True):
    effort: Effort | None = None
    format: OutputFormat | None = None


class UserData(msgspec.Struct, frozen=True):
    user_id: str | None = None


class PromptRequest(Sampling, frozen=True, kw_only=True):
    """What makes the prompt."""

    chat_names: ClassVar[dict[str, str]] = {
        "stop": "stop_sequences",
        "response_format": "output_config.format",
    }
    """What a chat's fields are called here."""

    messages: Annotated[list[Turn], Meta(min_length=1, max_length=2048)]
    system: str | list[Block] | None = None
    tools: Annotated[list[AnthropicTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: AnthropicToolChoice | None = None
    thinking: Thinking | None = None
    output_config: OutputConfig | None = None
    chat_template_kwargs: dict[str, Any] | None = None

    def check(self) -> None:
        """What no single field's bounds can say. Raises InvalidRequest."""
        for place, turn in enumerate(self.messages):
            for number, block in enumerate(turn.blocks):
                block.check(f"messages[{place}].content[{number}]", _OF_ROLE[turn.role])
        for number, block in enumerate(self.system if isinstance(self.system, list) else ()):
            block.check(f"system[{number}]", ("text",))
        for number, tool in enumerate(self.tools or ()):
            if tool.type not in (None, "custom"):
                what = f"{str(tool.type)[:40]!r} is not supported; only custom is"
                raise InvalidRequest(f"tools[{number}].type: {what}", "tools")
        choice = self.tool_choice
        if choice is not None and choice.type == "tool" and choice.name is None:
            raise InvalidRequest("tool_choice.name: this field is required", "tool_choice")
        self.to_chat().check()

    def to_chat(self) -> ChatRequest:
        """The chat whose answer is the message."""
        conversation = Conversation()
        system = _texts(self.system)
        if any(system):
            conversation.tell("system", system)
        for turn in self.messages:
            turn.tell(conversation)
        choice, config = self.tool_choice, self.output_config or OutputConfig()
        return ChatRequest(
            **{field: getattr(self, field) for field in Sampling.__struct_fields__},
            messages=conversation.messages(),
            tools=[_tool(each) for each in self.tools] if self.tools else None,
            tool_choice=_choice(choice),
            parallel_tool_calls=not choice.disable_parallel_tool_use if choice else None,
            reasoning_effort=config.effort,
            thinking_token_budget=self.thinking.budget_tokens if self.thinking else None,
            response_format=_response_format(config.format),
            chat_template_kwargs=_settings(self.thinking) | (self.chat_template_kwargs or {}),
            continue_final_message=_is_begun(self.messages[-1]),
        )


class CountTokensRequest(PromptRequest, frozen=True, kw_only=True):
    """The body of POST /v1/messages/count_tokens."""


class MessagesRequest(PromptRequest, frozen=True, kw_only=True):
    """The body of POST /v1/messages."""

    max_tokens: Tokens
    stop_sequences: Annotated[list[StopString], Meta(max_length=MAX_STOPS)] | None = None
    metadata: UserData | None = None

    def to_chat(self) -> ChatRequest:
        return msgspec.structs.replace(
            super().to_chat(),
            max_tokens=self.max_tokens,
            stop=self.stop_sequences or self.stop,
            user=self.user or (self.metadata.user_id if self.metadata else None),
        )


class TokenCount(msgspec.Struct, frozen=True):
    input_tokens: int


def _texts(content: str | list[Block] | None) -> list[str]:
    if isinstance(content, str):
        return [content]
    return [block.text or "" for block in content or ()]


def _is_begun(turn: Turn) -> bool:
    """The assistant has begun its answer, and the completion is to go on with it."""
    blocks = turn.blocks
    has_text = any(block.type == "text" and (block.text or "").strip() for block in blocks)
    return turn.role == "assistant" and has_text and all(block.type != "tool_use" for block in blocks)


def _tool(tool: AnthropicTool) -> Tool:
    return Tool(FunctionSpec(tool.name, tool.description, tool.input_schema))


def _choice(choice: AnthropicToolChoice | None) -> ToolChoice | None:
    if choice is None:
        return None
    match choice.type:
        case "tool":
            return NamedTool(FunctionName(choice.name or ""))
        case "any":
            return "required"
        case "auto":
            return "auto"
        case "none":
            return "none"


def _response_format(format: OutputFormat | None) -> ResponseFormat | None:
    return None if format is None else ResponseFormat("json_schema", JsonSchema(format.schema))


def _settings(thinking: Thinking | None) -> dict[str, Any]:
    """By the names that templates have for it."""
    if thinking is None:
        return {}
    return dict.fromkeys(("enable_thinking", "thinking"), thinking.type != "disabled")
