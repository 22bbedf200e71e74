"""What a client gets of its call: bytes, errors, and the consequences of leaving."""

import asyncio
import json
import socket
from pathlib import Path

import pytest
from tests.gateway.harness import CHAT_BODY, MODEL, read_until, running, until, until_ready
from tests.tools.fake_tokenizer import DONE, FakeTokenizer, nothing, text

from octavo.services.gateway.manner import OPENAI
from octavo.services.gateway.stream import STALL_S
from octavo.shared.errors import Overloaded
from octavo.shared.messages import TO_GATEWAY, CallFailed, Generate, Text

OVERLOADED = Overloaded("the queue is full: 9 wait; at most 8", code="queue_full", retry_after_s=7)
OVERLOADED_OBJECT = {
    "message": "the queue is full: 9 wait; at most 8",
    "type": "rate_limit_error",
    "param": None,
    "code": "queue_full",
}


def test_a_stream_is_forwarded_byte_for_byte(tmp_path: Path) -> None:
    parts = [b'data: {"n": %d, "text": "\xc3\xa9"}\n\n' % n for n in range(50)] + [DONE]

    def script(generate: Generate) -> list[TO_GATEWAY]:
        columns = [generate.id] * 20, parts[:20], [0] * 20, [b""] * 20, [0] * 20
        one_by_one = [text(generate, part, is_last=part is DONE) for part in parts[20:]]
        return [Text(*columns, finished=[], attempts=[1] * 20), *one_by_one]

    async def scenario() -> None:
        async with running(tmp_path) as server:
            with FakeTokenizer(tmp_path, script):
                await until_ready(server.client)
                response = await server.client.post("/v1/chat/completions", json=CHAT_BODY | {"stream": True})
                assert response.status == 200
                assert response.headers["Content-Type"] == "text/event-stream"
                assert response.headers["Cache-Control"] == "no-cache"
                assert await response.read() == b"".join(parts)

    asyncio.run(scenario())


def test_a_body_larger_than_any_buffer_arrives_whole(tmp_path: Path) -> None:
    body = b'{"text": "' + b"x" * 3_000_000 + b'"}'

    async def scenario() -> None:
        async with running(tmp_path) as server:
            with FakeTokenizer(tmp_path, lambda generate: [text(generate, body, is_last=True)]):
                await until_ready(server.client)
                for stream in (False, True):
                    wanted = {"prompt": "a", "stream": stream}
                    response = await server.client.post("/v1/completions", json=wanted)
                    assert await response.read() == body

    asyncio.run(scenario())


def test_a_call_that_does_not_stream_gets_one_json_body(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as server:
            with FakeTokenizer(tmp_path) as tokenizer:
                await until_ready(server.client)
                response = await server.client.post("/v1/completions", json={"prompt": "a", "model": MODEL})
                assert response.status == 200
                assert response.headers["Content-Type"] == "application/json"
                assert await response.json() == {"prompt": "a", "model": MODEL}
                (generate,) = tokenizer.generates()
                assert (generate.endpoint, generate.model) == ("completion", MODEL)
                assert generate.progress == {} and generate.salt == b"" and len(generate.id) == 16

    asyncio.run(scenario())


@pytest.mark.parametrize("stream", [False, True])
def test_an_error_before_the_first_byte_has_its_status_and_shape(tmp_path: Path, stream: bool) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as server:
            with FakeTokenizer(tmp_path, lambda generate: [CallFailed(generate.id, OVERLOADED.info())]):
                await until_ready(server.client)
                response = await server.client.post("/v1/chat/completions", json=CHAT_BODY | {"stream": stream})
                assert response.status == 429
                assert response.headers["Retry-After"] == "7"
                assert await response.json() == {"error": OVERLOADED_OBJECT}

    asyncio.run(scenario())


def test_an_error_after_the_headers_is_an_event_and_the_connection_closes(tmp_path: Path) -> None:
    def script(generate: Generate) -> list[TO_GATEWAY]:
        return [text(generate, b"data: 1\n\n"), CallFailed(generate.id, OVERLOADED.info())]

    async def scenario() -> None:
        async with running(tmp_path) as server:
            with FakeTokenizer(tmp_path, script):
                await until_ready(server.client)
                host, port = server.address.removeprefix("http://").split(":")
                reader, writer = await asyncio.open_connection(host, int(port))
                body = json.dumps(CHAT_BODY | {"stream": True}).encode()
                writer.write(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: ")
                writer.write(b"%d\r\n\r\n%s" % (len(body), body))
                async with asyncio.timeout(60):
                    answer = await reader.read()  # up to the end of the connection
                writer.close()
                await writer.wait_closed()
        head, _, events = answer.partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 ")
        assert b"data: 1\n\n" in events and b"[DONE]" not in events
        (event,) = [line for line in events.split(b"\n") if line.startswith(b'data: {"error"')]
        assert json.loads(event.removeprefix(b"data: ")) == {"error": OVERLOADED_OBJECT}

    asyncio.run(scenario())


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_before_the_first_byte_cancels_its_call(tmp_path: Path, stream: bool) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as server:
            with FakeTokenizer(tmp_path, nothing) as tokenizer:
                await until_ready(server.client)
                body = CHAT_BODY | {"stream": stream}
                post = asyncio.create_task(server.client.post("/v1/chat/completions", json=body))
                await until(lambda: len(tokenizer.generates()) == 1)
                post.cancel()
                await until(lambda: len(tokenizer.cancels()) == 1)
                assert tokenizer.cancels()[0].id == tokenizer.generates()[0].id

    asyncio.run(scenario())


def test_a_client_that_leaves_in_the_middle_of_its_stream_cancels_its_call(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as server:
            with FakeTokenizer(tmp_path, lambda generate: [text(generate, b"data: 1\n\n")]) as tokenizer:
                await until_ready(server.client)
                response = await server.client.post("/v1/chat/completions", json=CHAT_BODY | {"stream": True})
                assert await read_until(response, b"\n\n") == b"data: 1\n\n"
                response.close()
                await until(lambda: len(tokenizer.cancels()) == 1)
                assert 'octavo:open_streams{gateway="0"} 0.0' in await (await server.client.get("/metrics")).text()

    asyncio.run(scenario())


def test_a_finished_call_is_not_cancelled(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as server:
            with FakeTokenizer(tmp_path) as tokenizer:
                await until_ready(server.client)
                for _ in range(3):
                    await (await server.client.post("/v1/completions", json={"prompt": "a"})).read()
                assert len(tokenizer.generates()) == 3
                assert tokenizer.cancels() == []

    asyncio.run(scenario())


@pytest.mark.slow
def test_a_stream_that_is_silent_gets_a_comment_that_keeps_it_alive(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as server:
            with FakeTokenizer(tmp_path, lambda generate: [text(generate, b"data: 1\n\n")]):
                await until_ready(server.client)
                body = CHAT_BODY | {"stream": True}
                response = await server.client.post("/v1/chat/completions", json=body, timeout=None)
                async with asyncio.timeout(20):
                    assert (
                        await response.content.readexactly(9 + len(OPENAI.keepalive))
                        == b"data: 1\n\n" + OPENAI.keepalive
                    )
                response.close()

    asyncio.run(scenario())


@pytest.mark.slow
def test_a_client_that_takes_nothing_is_cut_and_its_call_cancelled(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as server:
            megabytes = [b"x" * 1_000_000] * 8
            script = lambda generate: [text(generate, part) for part in megabytes]  # noqa: E731
            with FakeTokenizer(tmp_path, script) as tokenizer:
                await until_ready(server.client)
                host, port = server.address.removeprefix("http://").split(":")
                with socket.create_connection((host, int(port))) as connection:
                    body = json.dumps(CHAT_BODY | {"stream": True}).encode()
                    connection.sendall(b"POST /v1/chat/completions HTTP/1.1\r\nHost: a\r\nContent-Length: ")
                    connection.sendall(b"%d\r\n\r\n%s" % (len(body), body))
                    async with asyncio.timeout(STALL_S + 10):
                        while not tokenizer.cancels():
                            await asyncio.sleep(0.1)

    asyncio.run(scenario())
