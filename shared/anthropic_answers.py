"""What the routes of Anthropic's API answer, as the documentation describes it; tests hold the bytes to it."""

from typing import Annotated, Any, Literal

import msgspec
from msgspec import Meta

StopReason = Literal["end_turn", "max_tokens", "stop_sequence", "tool_use"]


class MessageUsage(msgspec.Struct, frozen=True):
    """Counted in tokens."""

    input_tokens: int
    output_tokens: int


class TextBlock(msgspec.Struct, frozen=True, tag="text"):
    text: str


class ThinkingBlock(msgspec.Struct, frozen=True, tag="thinking"):
    thinking: str
    signature: Annotated[str, Meta(description="clients send thinking back only if it is signed; it is not checked")]


class ToolUseBlock(msgspec.Struct, frozen=True, tag="tool_use"):
    id: str
    name: str
    input: dict[str, Any]


AnswerBlock = TextBlock | ThinkingBlock | ToolUseBlock


class MessageAnswer(msgspec.Struct, frozen=True):
    id: str
    type: Literal["message"]
    role: Literal["assistant"]
    model: str
    content: list[AnswerBlock]
    stop_reason: StopReason | None
    stop_sequence: Annotated[str | None, Meta(description="the one at which the text ended")]
    usage: MessageUsage


class TextDelta(msgspec.Struct, frozen=True, tag="text_delta"):
    text: str


class ThinkingDelta(msgspec.Struct, frozen=True, tag="thinking_delta"):
    thinking: str


class SignatureDelta(msgspec.Struct, frozen=True, tag="signature_delta"):
    signature: str


class InputDelta(msgspec.Struct, frozen=True, tag="input_json_delta"):
    partial_json: str


class MessageStart(msgspec.Struct, frozen=True, tag="message_start"):
    message: MessageAnswer


class MessagePing(msgspec.Struct, frozen=True, tag="ping"):
    """Keeps the connection open."""


class BlockStart(msgspec.Struct, frozen=True, tag="content_block_start"):
    index: int
    content_block: AnswerBlock


class BlockDelta(msgspec.Struct, frozen=True, tag="content_block_delta"):
    index: int
    delta: TextDelta | ThinkingDelta | SignatureDelta | InputDelta


class BlockStop(msgspec.Struct, frozen=True, tag="content_block_stop"):
    index: int


class MessageEnd(msgspec.Struct, frozen=True):
    stop_reason: StopReason
    stop_sequence: str | None


class MessageDelta(msgspec.Struct, frozen=True, tag="message_delta"):
    delta: MessageEnd
    usage: MessageUsage


class MessageStop(msgspec.Struct, frozen=True, tag="message_stop"):
    """Nothing follows."""


MessageEvent = MessageStart | MessagePing | BlockStart | BlockDelta | BlockStop | MessageDelta | MessageStop


class FailureObject(msgspec.Struct, frozen=True):
    type: str
    message: str


class MessageFailure(msgspec.Struct, frozen=True):
    type: Literal["error"]
    error: FailureObject
