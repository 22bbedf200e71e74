"""The routes of Anthropic's API: errors in its own form, before a stream and within it."""

import asyncio
import json
from pathlib import Path
from typing import Any

from anthropic.types import ErrorResponse
from tests.gateway.harness import running, until_ready
from tests.tools.fake_tokenizer import FakeTokenizer, text

from octavo.shared.errors import Unavailable
from octavo.shared.messages import TO_GATEWAY, CallFailed, Generate

BODY: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 5}
IMAGE = {"type": "image", "source": {"type": "base64", "media_type": "image/png", "data": ""}}


def test_errors_are_anthropics(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as server:
            for method, path, body, status, kind, word in (
                ("POST", "/v1/messages", BODY | {"max_tokens": 0}, 400, "invalid_request_error", "max_tokens"),
                ("POST", "/v1/messages", BODY | {"model": "gpt-9"}, 404, "not_found_error", "gpt-9"),
                ("GET", "/v1/messages", None, 405, "invalid_request_error", "GET"),
                ("POST", "/v1/messages", BODY, 503, "overloaded_error", "not ready"),
                ("POST", "/v1/messages/count_tokens", {}, 400, "invalid_request_error", "messages"),
                ("POST", "/v1/messages", BODY | {"messages": [{"role": "user", "content": [IMAGE]}]},
                 400, "invalid_request_error", "messages[0].content[0].type: 'image' is not supported"),
            ):  # fmt: skip
                response = await server.client.request(method, path, json=body)
                assert response.status == status, path
                error = ErrorResponse.model_validate(await response.json())
                assert error.error.type == kind and word in error.error.message

    asyncio.run(scenario())


def test_a_count_of_tokens_is_never_streamed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as server:
            with FakeTokenizer(tmp_path):
                await until_ready(server.client)
                response = await server.client.post("/v1/messages/count_tokens", json=BODY | {"stream": True})
                assert (response.status, response.content_type) == (200, "application/json")

    asyncio.run(scenario())


def test_the_key_is_asked_for_in_anthropics_words(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, api_key="secret") as server:
            response = await server.client.post("/v1/messages", json=BODY)
            assert response.status == 401
            assert ErrorResponse.model_validate(await response.json()).error.type == "authentication_error"

    asyncio.run(scenario())


def test_a_stream_that_fails_ends_with_an_error_event(tmp_path: Path) -> None:
    def script(generate: Generate) -> list[TO_GATEWAY]:
        first = text(generate, b"event: message_start\ndata: {}\n\n")
        return [first, CallFailed(generate.id, Unavailable("gone", retry_after_s=1).info())]

    async def scenario() -> None:
        async with running(tmp_path) as server:
            with FakeTokenizer(tmp_path, script):
                await until_ready(server.client)
                response = await server.client.post("/v1/messages", json=BODY | {"stream": True})
                [_, event, _] = (await response.read()).decode().split("\n\n")
                name, data = event.split("\n")
                assert name == "event: error"
                error = ErrorResponse.model_validate(json.loads(data.removeprefix("data: ")))
                assert (error.error.type, error.error.message) == ("overloaded_error", "gone")

    asyncio.run(scenario())
