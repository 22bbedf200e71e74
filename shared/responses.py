"""Request body of OpenAI's Responses API, with vLLM's additions, and the chat that it stands for."""

from typing import Annotated, Any, ClassVar, Literal

import msgspec
from msgspec import Meta

from octavo.shared.conversation import Conversation
from octavo.shared.errors import InvalidRequest
from octavo.shared.fields import Tokens, Top
from octavo.shared.openai import ChatRequest, Effort, Sampling
from octavo.shared.openai_parts import (
    MAX_TOOLS,
    FunctionName,
    FunctionSpec,
    JsonSchema,
    NamedTool,
    ResponseFormat,
    Tool,
)

MAX_ITEMS = 2048
LOGPROBS = "message.output_text.logprobs"
_TEXT_PARTS = ("input_text", "output_text", "text", "refusal", "summary_text", "reasoning_text")


class ItemPart(msgspec.Struct, frozen=True, omit_defaults=True):
    """One part of an item. Of all types only text is supported."""

    type: str
    text: str | None = None
    refusal: str | None = None
    annotations: list[Any] | None = None


class InputItem(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A message, a call of a function, what it has given, or reasoning: as `type` says; none is a message."""

    type: str | None = None
    id: str | None = None
    role: Literal["user", "assistant", "system", "developer"] | None = None
    content: str | list[ItemPart] | None = None
    summary: list[ItemPart] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    """JSON."""
    output: str | list[ItemPart] | None = None
    status: str | None = None

    def check(self, place: str) -> None:
        """Raises InvalidRequest for what is no text, and where something is missing. place: names the item."""
        required = _REQUIRED.get(self.type or "message")
        if required is None:
            known = ", ".join(_REQUIRED)
            raise InvalidRequest(f"{place}.type: {str(self.type)[:40]!r} is not supported; only {known} are", "input")
        given = {"role": self.role, "content": self.content, "call_id": self.call_id, "name": self.name}
        given |= {"arguments": self.arguments, "output": self.output}
        for field in required:
            if given[field] is None:
                raise InvalidRequest(f"{place}.{field}: this field is required", "input")
        for field, parts in (("content", self.content), ("output", self.output), ("summary", self.summary)):
            for number, part in enumerate(parts if isinstance(parts, list) else ()):
                if part.type not in _TEXT_PARTS or (part.text is None and part.refusal is None):
                    sentence = f"{place}.{field}[{number}]: parts of type {part.type[:40]!r} are not supported"
                    raise InvalidRequest(f"{sentence}; only text is", "input")

    def tell(self, conversation: Conversation) -> None:
        """Add it to a chat."""
        match self.type or "message":
            case "message" if self.role == "assistant":
                if conversation.has_answer:
                    conversation.end_turn()
                conversation.answer("".join(texts(self.content)))
            case "message":
                assert self.role is not None and self.role != "assistant", "check has seen to it"
                conversation.tell(self.role, texts(self.content))
            case "reasoning":
                conversation.think("\n".join(texts(self.content) or texts(self.summary)))
            case "function_call":
                conversation.call(self.call_id or "", self.name or "", self.arguments or "{}")
            case _:
                conversation.result(self.call_id or "", "\n".join(texts(self.output)))


_REQUIRED: dict[str, tuple[str, ...]] = {
    "message": ("role", "content"),
    "function_call": ("call_id", "name", "arguments"),
    "function_call_output": ("call_id", "output"),
    "reasoning": (),
}


class FunctionTool(msgspec.Struct, frozen=True):
    type: str
    name: Annotated[str, Meta(pattern=r"^[a-zA-Z0-9_.-]{1,128}$")] | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FunctionChoice(msgspec.Struct, frozen=True):
    """The one function that must be called."""

    type: Literal["function"]
    name: str


class ReasoningOptions(msgspec.Struct, frozen=True):
    effort: Effort | None = None
    summary: Annotated[str | None, Meta(description="taken, and not made: reasoning is shown as it is")] = None


class TextFormat(msgspec.Struct, frozen=True, omit_defaults=True):
    type: Literal["text", "json_object", "json_schema"]
    name: str | None = None
    description: str | None = None
    schema: dict[str, Any] | bool | None = None
    strict: bool | None = None


class TextOptions(msgspec.Struct, frozen=True):
    format: Annotated[TextFormat | None, Meta(description="text, any JSON object, or JSON of a schema")] = None
    verbosity: str | None = None


Metadata = Annotated[
    dict[Annotated[str, Meta(max_length=64)], Annotated[str, Meta(max_length=512)]], Meta(max_length=16)
]


class ResponsesRequest(Sampling, frozen=True, kw_only=True):
    """The body of POST /v1/responses."""

    chat_names: ClassVar[dict[str, str]] = {
        "messages": "input",
        "max_tokens": "max_output_tokens",
        "response_format": "text.format",
        "truncate_prompt_tokens": "truncation",
    }
    """What a chat's fields are called here."""

    input: str | Annotated[list[InputItem], Meta(min_length=1, max_length=MAX_ITEMS)]
    instructions: str | None = None
    max_output_tokens: Tokens | None = None
    top_logprobs: Top | None = None
    include: Annotated[list[str], Meta(max_length=64)] | None = None
    tools: Annotated[list[FunctionTool], Meta(max_length=MAX_TOOLS)] | None = None
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice | None = None
    parallel_tool_calls: bool | None = None
    reasoning: Annotated[ReasoningOptions | None, Meta(description="how the model is to reason")] = None
    include_reasoning: bool | None = None
    thinking_token_budget: Tokens | None = None
    text: Annotated[TextOptions | None, Meta(description="the form of the answer's text")] = None
    truncation: Literal["auto", "disabled"] | None = None
    metadata: Metadata | None = None
    previous_response_id: str | None = None
    store: bool | None = None
    background: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    conversation: Annotated[Any, Meta(description="not supported; use previous_response_id")] = None
    prompt: Annotated[Any, Meta(description="not supported; send its text as input and instructions")] = None

    @property
    def items(self) -> list[InputItem]:
        """The input, as items."""
        if isinstance(self.input, list):
            return self.input
        return [InputItem(role="user", content=self.input)]

    @property
    def is_stored(self) -> bool:
        return self.store is not False

    def check(self) -> None:
        """What no single field's bounds can say. Raises InvalidRequest."""
        if self.conversation is not None:
            raise InvalidRequest("conversation: not supported; use previous_response_id", "conversation")
        if self.prompt is not None:
            raise InvalidRequest("prompt: not supported; send its text as input and instructions", "prompt")
        if self.background and not self.is_stored:
            raise InvalidRequest("background: only together with store, or nobody could fetch it", "background")
        for place, item in enumerate(self.input if isinstance(self.input, list) else ()):
            item.check(f"input[{place}]")
        for place, tool in enumerate(self.tools or ()):
            if tool.type != "function" or not tool.name:
                what = f"{tool.type[:40]!r} is not supported; only function is"
                reason = "name: this field is required" if tool.type == "function" else f"type: {what}"
                raise InvalidRequest(f"tools[{place}].{reason}", "tools")
        format = self.text.format if self.text else None
        if format is not None and format.type == "json_schema" and format.schema is None:
            raise InvalidRequest("text.format.schema: this field is required for json_schema", "text.format")
        self.to_chat().check()

    def to_chat(self) -> ChatRequest:
        """The chat whose answer is the response."""
        conversation = Conversation()
        if self.instructions:
            conversation.tell("system", [self.instructions])
        for item in self.items:
            item.tell(conversation)
        has_logprobs = LOGPROBS in (self.include or ())
        return ChatRequest(
            **{field: getattr(self, field) for field in Sampling.__struct_fields__},
            messages=conversation.messages(),
            max_tokens=self.max_output_tokens,
            logprobs=has_logprobs,
            top_logprobs=self.top_logprobs if has_logprobs else None,
            tools=[_tool(each) for each in self.tools] if self.tools else None,
            tool_choice=_choice(self.tool_choice),
            parallel_tool_calls=self.parallel_tool_calls,
            reasoning_effort=self.reasoning.effort if self.reasoning else None,
            include_reasoning=self.include_reasoning,
            thinking_token_budget=self.thinking_token_budget,
            response_format=_response_format(self.text),
            truncate_prompt_tokens=-1 if self.truncation == "auto" else None,
            chat_template_kwargs=self.chat_template_kwargs,
        )


def texts(content: str | list[ItemPart] | None) -> list[str]:
    """What the parts of an item say."""
    if isinstance(content, str):
        return [content]
    return [part.text if part.text is not None else part.refusal or "" for part in content or ()]


def _tool(tool: FunctionTool) -> Tool:
    return Tool(FunctionSpec(tool.name or "", tool.description, tool.parameters, tool.strict))


def _choice(
    choice: Literal["none", "auto", "required"] | FunctionChoice | None,
) -> Literal["none", "auto", "required"] | NamedTool | None:
    return NamedTool(FunctionName(choice.name)) if isinstance(choice, FunctionChoice) else choice


def _response_format(text: TextOptions | None) -> ResponseFormat | None:
    format = text.format if text else None
    if format is None:
        return None
    if format.type != "json_schema":
        return ResponseFormat(format.type)
    return ResponseFormat(format.type, JsonSchema(format.schema, format.name, format.description, format.strict))
