"""Bodies of /tokenize and /detokenize, as vLLM has them: text or messages to token ids, and back."""

from typing import Annotated, Any

import msgspec
from msgspec import Meta

from octavo.shared.errors import InvalidRequest
from octavo.shared.fields import TokenId
from octavo.shared.openai_parts import ChatMessage, Tools, check_messages


class TokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    """A prompt, or messages."""

    model: str | None = None
    prompt: str | None = None
    messages: Annotated[list[ChatMessage], Meta(min_length=1, max_length=2048)] | None = None
    tools: Tools | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool | None = None

    @property
    def stream(self) -> bool:
        return False

    def check(self) -> None:
        if (self.prompt is None) == (self.messages is None):
            raise InvalidRequest("prompt: either this field or messages is required, and not both", "prompt")
        if self.messages is not None:
            check_messages(self.messages)


class DetokenizeRequest(msgspec.Struct, frozen=True, kw_only=True):
    tokens: list[TokenId]
    model: str | None = None

    @property
    def stream(self) -> bool:
        return False

    def check(self) -> None:
        """Any list of ids will do."""


class Tokenized(msgspec.Struct, frozen=True):
    count: int
    max_model_len: int
    tokens: list[int]
    token_strs: list[str] | None = None


class Detokenized(msgspec.Struct, frozen=True):
    prompt: str
