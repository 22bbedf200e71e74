"""Request ids, and the access log: what it says of each answer, and what it must not."""

import asyncio
import io
import logging
from pathlib import Path

import pytest
from tests.gateway.harness import CHAT_BODY, read_until, running, until, until_ready
from tests.tools.fake_tokenizer import FakeTokenizer, text

LOGGER = "octavo.services.gateway.observe"
SECRETS = ("sk-key", "my-prompt", "my-query", "my-path")


def test_a_request_id_comes_back_with_answers_errors_and_streams(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, api_key="sk-key", allowed_origins=["*"]) as server:
            with FakeTokenizer(tmp_path):
                await until_ready(server.client)
                key, path = {"X-Api-Key": "sk-key"}, "/v1/chat/completions"
                asks = {"Origin": "https://a.com", "Access-Control-Request-Method": "POST"}
                requests = [
                    (200, "POST", path, key, CHAT_BODY),
                    (200, "POST", path, key, CHAT_BODY | {"stream": True}),
                    (400, "POST", path, key, {"messages": []}),
                    (401, "POST", path, {}, CHAT_BODY),
                    (404, "GET", "/nothing", key, None),
                    (405, "DELETE", path, key, None),
                    (415, "POST", path, key | {"Content-Encoding": "br"}, None),
                    (204, "OPTIONS", path, asks, None),
                    (200, "GET", "/health", {}, None),
                ]
                for number, (status, method, to, headers, body) in enumerate(requests):
                    label = f"my-id_{number}"
                    headers = headers | {"X-Request-Id": label}
                    response = await server.client.request(method, to, headers=headers, json=body)
                    assert (response.status, response.headers["X-Request-Id"]) == (status, label)

    asyncio.run(scenario())


def test_each_answer_is_one_line_without_secrets(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with running(tmp_path, api_key="sk-key", access_log=True) as server:
            with FakeTokenizer(tmp_path):
                await until_ready(server.client)
                caplog.clear()
                headers = {"Authorization": "Bearer sk-key", "X-Request-Id": "id-1"}
                body = {"messages": [{"role": "user", "content": "my-prompt"}]}
                response = await server.client.post("/v1/chat/completions?a=my-query", json=body, headers=headers)
                size = len(await response.read())
                await server.client.get("/my-path?b=my-query", headers={"X-Request-Id": "id-2"})
                await server.client.get("/v1/models/my-path", headers=headers | {"X-Request-Id": "id-3"})
                first, second, third = (vars(each) for each in caplog.records if each.name == LOGGER)
                assert (first["method"], first["route"], first["status"]) == ("POST", "/v1/chat/completions", 200)
                assert (first["request"], first["client"]) == ("id-1", "127.0.0.1")
                assert first["bytes"] >= size and 0 < first["took_ms"] < 60_000
                assert (second["route"], second["status"], second["request"]) == ("none", 401, "id-2")
                assert (third["route"], third["status"]) == ("/v1/models/{name}", 404)
                shown = str([first, second, third])
                assert not [secret for secret in SECRETS if secret in shown]

    assert logging.getLogger().level == logging.WARNING  # as by default: the log's own flag is enough
    asyncio.run(scenario())


def test_a_client_that_left_is_logged_as_499_with_the_bytes_it_got(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def lines() -> list[dict[str, object]]:
        return [vars(each) for each in caplog.records if vars(each).get("route") == "/v1/chat/completions"]

    async def scenario() -> None:
        async with running(tmp_path, access_log=True) as server:
            with FakeTokenizer(tmp_path, lambda generate: [text(generate, b"data: 1\n\n")]):
                await until_ready(server.client)
                response = await server.client.post("/v1/chat/completions", json=CHAT_BODY | {"stream": True})
                await read_until(response, b"\n\n")
                response.close()
                await until(lambda: len(lines()) == 1)
                [line] = lines()
                assert line["status"] == 499
                assert int(str(line["bytes"])) >= len(b"data: 1\n\n")

    asyncio.run(scenario())


def test_without_the_flag_nothing_is_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as server:
            await server.client.get("/v1/models")

    with caplog.at_level(logging.DEBUG):
        asyncio.run(scenario())
    assert [record for record in caplog.records if record.name == LOGGER] == []


def test_a_body_may_be_as_large_as_the_flag_says_and_the_error_names_it(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, max_body_mib=5) as server:
            for size, status in ((5 * 2**20, 400), (5 * 2**20 + 1, 413)):
                response = await server.client.post("/v1/completions", data=io.BytesIO(b"a" * size))
                assert response.status == status
            sentence = (await response.json())["error"]["message"]
            assert "5242881 bytes" in sentence and "at most 5242880" in sentence and "--max-body-mib" in sentence

    asyncio.run(scenario())


@pytest.mark.slow
def test_a_body_that_does_not_arrive_is_given_up(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as server:
            reader, writer = await asyncio.open_connection("127.0.0.1", int(server.address.rpartition(":")[2]))
            writer.write(b"POST /v1/completions HTTP/1.1\r\nHost: a\r\nContent-Length: 100\r\n\r\n{")
            async with asyncio.timeout(60):
                answer = await reader.readuntil(b"\r\n\r\n")
            assert answer.startswith(b"HTTP/1.1 400 ")
            writer.close()

    asyncio.run(scenario())
