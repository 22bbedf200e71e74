"""Answers of OpenAI's Responses API: the response object and the items of its output."""

from typing import Any, Literal

import msgspec
from msgspec import UNSET, UnsetType

from octavo.shared.errors import RequestError
from octavo.shared.responses import (
    FunctionChoice,
    FunctionTool,
    InputItem,
    ReasoningOptions,
    ResponsesRequest,
    TextFormat,
)

ItemStatus = Literal["in_progress", "completed", "incomplete"]


class OutputText(msgspec.Struct, frozen=True, tag="output_text"):
    text: str
    annotations: list[Any] = []
    logprobs: list[dict[str, Any]] = []


class ReasoningText(msgspec.Struct, frozen=True, tag="reasoning_text"):
    text: str


class MessageItem(msgspec.Struct, frozen=True, kw_only=True, tag="message"):
    id: str
    status: ItemStatus
    role: Literal["assistant"] = "assistant"
    content: list[OutputText]


class ReasoningItem(msgspec.Struct, frozen=True, kw_only=True, tag="reasoning"):
    id: str
    status: ItemStatus
    summary: list[Any] = []
    content: list[ReasoningText]


class CallItem(msgspec.Struct, frozen=True, kw_only=True, tag="function_call"):
    id: str
    status: ItemStatus
    call_id: str
    name: str
    arguments: str


OutputItem = MessageItem | ReasoningItem | CallItem


class InputDetails(msgspec.Struct, frozen=True):
    """What of it a cache holds is not told."""

    cached_tokens: int = 0
    cache_write_tokens: int = 0


class OutputDetails(msgspec.Struct, frozen=True):
    reasoning_tokens: int


class ResponseUsage(msgspec.Struct, frozen=True, kw_only=True):
    """Counted in tokens."""

    input_tokens: int
    input_tokens_details: InputDetails = InputDetails()
    output_tokens: int
    output_tokens_details: OutputDetails
    total_tokens: int


class ResponseFailure(msgspec.Struct, frozen=True):
    code: str
    message: str


class TextSettings(msgspec.Struct, frozen=True):
    format: TextFormat


class Response(msgspec.Struct, frozen=True, kw_only=True):
    """What it is to be, and what has become of it."""

    id: str
    object: Literal["response"] = "response"
    created_at: int
    status: Literal["queued", "in_progress", "completed", "incomplete", "failed", "cancelled"]
    model: str
    output: list[OutputItem] = []
    usage: ResponseUsage | None = None
    error: ResponseFailure | None = None
    incomplete_details: dict[str, str] | None = None
    instructions: str | None = None
    previous_response_id: str | None = None
    background: bool = False
    store: bool = True
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_logprobs: int = 0
    parallel_tool_calls: bool = True
    tool_choice: Literal["none", "auto", "required"] | FunctionChoice = "auto"
    tools: list[FunctionTool] = []
    reasoning: ReasoningOptions = ReasoningOptions()
    text: TextSettings
    truncation: Literal["auto", "disabled"] = "disabled"
    metadata: dict[str, str] = {}
    user: str | None = None


class ResponseEvent(msgspec.Struct, frozen=True, kw_only=True):
    """What a stream tells, as the documentation describes it: which fields there are follows from the type."""

    type: Literal[
        "response.created", "response.in_progress", "response.completed", "response.incomplete", "response.failed",
        "response.output_item.added", "response.output_item.done",
        "response.content_part.added", "response.content_part.done",
        "response.output_text.delta", "response.output_text.done",
        "response.reasoning_text.delta", "response.reasoning_text.done",
        "response.function_call_arguments.delta", "response.function_call_arguments.done",
    ]  # fmt: skip
    sequence_number: int
    response: Response | UnsetType = UNSET
    item: OutputItem | UnsetType = UNSET
    part: OutputText | ReasoningText | UnsetType = UNSET
    item_id: str | UnsetType = UNSET
    output_index: int | UnsetType = UNSET
    content_index: int | UnsetType = UNSET
    delta: str | UnsetType = UNSET
    text: str | UnsetType = UNSET
    arguments: str | UnsetType = UNSET
    name: str | UnsetType = UNSET
    logprobs: list[dict[str, Any]] | UnsetType = UNSET


class DeletedResponse(msgspec.Struct, frozen=True):
    id: str
    object: Literal["response"] = "response"
    deleted: bool = True


class ItemList(msgspec.Struct, frozen=True):
    """Items that led to a response."""

    data: list[InputItem]
    first_id: str | None
    last_id: str | None
    has_more: bool
    object: Literal["list"] = "list"


def begin_response(
    call: bytes, request: ResponsesRequest, created_s: int, model: str, status: Literal["queued", "in_progress"]
) -> Response:
    """The response to a call, before there is any output."""
    return Response(
        id=response_id(call),
        created_at=created_s,
        status=status,
        model=model,
        instructions=request.instructions,
        previous_response_id=request.previous_response_id,
        background=bool(request.background),
        store=request.is_stored,
        max_output_tokens=request.max_output_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_logprobs=request.top_logprobs or 0,
        parallel_tool_calls=request.parallel_tool_calls is not False,
        tool_choice=request.tool_choice or "auto",
        tools=request.tools or [],
        reasoning=request.reasoning or ReasoningOptions(),
        text=TextSettings((request.text.format if request.text else None) or TextFormat("text")),
        truncation=request.truncation or "disabled",
        metadata=request.metadata or {},
        user=request.user,
    )


def response_id(call: bytes) -> str:
    return f"resp_{call.hex()}"


def failure_of(error: RequestError) -> ResponseFailure:
    """An error in the few words that responses have for it."""
    code = {400: "invalid_prompt", 429: "rate_limit_exceeded"}.get(error.status, "server_error")
    return ResponseFailure(code, error.message)
