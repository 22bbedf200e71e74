"""Manner: how the routes of an API speak where the gateway itself does, between the bytes of tokenizers."""

from typing import Protocol

import msgspec

from octavo.shared.errors import RequestError, error_body


class Manner(Protocol):
    """Of one call, or of all calls of some routes."""

    keepalive: bytes
    """What a stream says while there is nothing to say."""

    async def fail(self, error: RequestError, num_events: int) -> bytes:
        """The event that ends a stream that has begun. num_events: how many it has had, where they are numbered."""
        ...

    async def finish(self, last: bytes) -> None:
        """The answer is complete, and its client has not got the last of it: the body, or the stream's end."""
        ...


class OpenAIManner:
    """See `Manner`."""

    keepalive = b": keepalive\n\n"

    async def fail(self, error: RequestError, num_events: int) -> bytes:
        return b"data: " + error_body(error) + b"\n\n"

    async def finish(self, last: bytes) -> None:
        pass


class AnthropicManner:
    """See `Manner`."""

    keepalive = b'event: ping\ndata: {"type":"ping"}\n\n'

    async def fail(self, error: RequestError, num_events: int) -> bytes:
        return b"event: error\ndata: " + anthropic_error_body(error) + b"\n\n"

    async def finish(self, last: bytes) -> None:
        pass


OPENAI = OpenAIManner()
ANTHROPIC = AnthropicManner()

_ANTHROPIC_ERRORS = {
    401: "authentication_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    500: "api_error",
    503: "overloaded_error",
}


def anthropic_error_body(error: RequestError) -> bytes:
    """The JSON of Anthropic's error object."""
    kind = _ANTHROPIC_ERRORS.get(error.status, "invalid_request_error" if error.status < 500 else "api_error")
    return msgspec.json.encode({"type": "error", "error": {"type": kind, "message": error.message}})
