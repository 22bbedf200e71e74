"""Which Struct reads the body of which endpoint. The gateway names an endpoint; gateway and tokenizer read by it."""

from typing import Any

import msgspec

from octavo.shared.anthropic import CountTokensRequest, MessagesRequest
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
    request.check()
    return request


def options_of(request: Completing) -> Options:
    """What it asks for, as chats and plain completions say it."""
    return request if isinstance(request, Options) else request.to_chat()
