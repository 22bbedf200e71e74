"""Which Struct reads the body of which endpoint. The gateway names an endpoint; gateway and tokenizer read by it."""

import re
from typing import Any

import msgspec

from octavo.shared.anthropic import CountTokensRequest, MessagesRequest, PromptRequest
from octavo.shared.errors import InvalidRequest
from octavo.shared.fields import invalid_field
from octavo.shared.openai import ChatRequest, CompletionRequest, Options
from octavo.shared.responses import ResponsesRequest
from octavo.shared.tokenization import DetokenizeRequest, TokenizeRequest

Completing = ChatRequest | CompletionRequest | ResponsesRequest | MessagesRequest
"""Leads to completions."""
Immediate = TokenizeRequest | DetokenizeRequest | CountTokensRequest
"""Is answered by the tokenizer alone."""
CallRequest = Completing | Immediate

BODIES: dict[str, type[CallRequest]] = {
    "chat": ChatRequest,
    "completion": CompletionRequest,
    "responses": ResponsesRequest,
    "messages": MessagesRequest,
    "count_tokens": CountTokensRequest,
    "tokenize": TokenizeRequest,
    "detokenize": DetokenizeRequest,
}
_DECODERS: dict[str, msgspec.json.Decoder[Any]] = {name: msgspec.json.Decoder(body) for name, body in BODIES.items()}


def read_request(endpoint: str, body: bytes) -> CallRequest:
    """The checked request of an endpoint in BODIES.

    Raises:
        InvalidRequest: not JSON, not of the right shape, or out of bounds; the message names the field.
    """
    try:
        request: CallRequest = _DECODERS[endpoint].decode(body)
    except msgspec.ValidationError as error:
        raise invalid_field(str(error)) from None
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise InvalidRequest(f"the body is not valid JSON: {error}") from None
    except RecursionError:
        raise InvalidRequest("the body is nested too deeply") from None
    try:
        request.check()
    except InvalidRequest as error:
        raise in_words_of(request, error) from None
    return request


def options_of(request: Completing) -> Options:
    """What it asks for, as chats and plain completions say it."""
    return request if isinstance(request, Options) else request.to_chat()


def in_words_of(request: CallRequest, error: InvalidRequest) -> InvalidRequest:
    """What is wrong with the chat that a request stands for, by the names that its own fields have."""
    if not isinstance(request, ResponsesRequest | PromptRequest):
        return error
    names = request.chat_names
    name = re.compile(rf"(?<!')\b({'|'.join(names)})\b(?!')")  # what is quoted is the client's
    message = name.sub(lambda found: names[found[0]], error.message)
    return InvalidRequest(message, names.get(error.param or "", error.param), error.code)
