"""What browsers are told when a page of another origin calls."""

import asyncio
from pathlib import Path

import pytest
from tests.gateway.harness import CHAT_BODY, running, until_ready
from tests.tools.fake_tokenizer import FakeTokenizer

from octavo.shared.config import Config
from octavo.shared.errors import ConfigError

PAGE, OTHER = "https://app.example.com:8443", "https://evil.example.com"
ASKS = {
    "Origin": PAGE,
    "Access-Control-Request-Method": "POST",
    "Access-Control-Request-Headers": "authorization,content-type,x-stainless-os",
}
KEY = "sk-secret"


def test_nothing_is_said_unless_origins_are_allowed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, api_key=KEY) as server:
            for method, status in (("OPTIONS", 401), ("GET", 401)):
                response = await server.client.request(method, "/v1/models", headers=ASKS)
                assert response.status == status
                assert not any(name.lower().startswith("access-control") for name in response.headers)
                assert "Vary" not in response.headers

    asyncio.run(scenario())


def test_a_page_of_an_allowed_origin_asks_without_a_key_and_reads_answers_errors_and_streams(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, api_key=KEY, allowed_origins=["https://a.example.com", PAGE]) as server:
            asked = await server.client.options("/v1/chat/completions", headers=ASKS)
            assert asked.status == 204 and await asked.read() == b""
            assert asked.headers["Access-Control-Allow-Origin"] == PAGE
            assert "POST" in asked.headers["Access-Control-Allow-Methods"]
            assert asked.headers["Access-Control-Allow-Headers"] == ASKS["Access-Control-Request-Headers"]
            assert asked.headers["Vary"] == "Origin"
            with FakeTokenizer(tmp_path):
                await until_ready(server.client)
                headers = {"Origin": PAGE, "Authorization": f"Bearer {KEY}"}
                answers = [
                    await server.client.get("/v1/models", headers=headers),
                    await server.client.post(
                        "/v1/chat/completions", json=CHAT_BODY | {"stream": True}, headers=headers
                    ),
                    await server.client.get("/nothing", headers=headers),
                    await server.client.get("/v1/models", headers={"Origin": PAGE}),
                ]
                assert [answer.status for answer in answers] == [200, 200, 404, 401]
                for answer in answers:
                    assert answer.headers["Access-Control-Allow-Origin"] == PAGE
                    assert "X-Request-Id" in answer.headers["Access-Control-Expose-Headers"]
                    assert answer.headers["Vary"] == "Origin"
                    assert "Access-Control-Allow-Credentials" not in answer.headers

    asyncio.run(scenario())


def test_pages_of_other_origins_are_told_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, api_key=KEY, allowed_origins=[PAGE]) as server:
            for origin in (OTHER, PAGE + ".evil.com", PAGE.upper(), "null", "https://app.example.com"):
                for method in ("OPTIONS", "GET"):
                    response = await server.client.request(method, "/v1/models", headers=ASKS | {"Origin": origin})
                    assert response.status == 401
                    assert "Access-Control-Allow-Origin" not in response.headers
                    assert response.headers["Vary"] == "Origin"

    asyncio.run(scenario())


def test_a_star_allows_every_origin_and_an_options_that_asks_nothing_is_no_preflight(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, api_key=KEY, allowed_origins=["*"]) as server:
            asked = await server.client.options("/v1/models", headers=ASKS | {"Origin": OTHER})
            assert (asked.status, asked.headers["Access-Control-Allow-Origin"]) == (204, "*")
            assert "Vary" not in asked.headers
            assert (await server.client.options("/v1/models", headers={"Origin": OTHER})).status == 401

    asyncio.run(scenario())


@pytest.mark.parametrize(
    "origin", ["https://a.com/", "a.com", "https://a.com/x", "https://u@a.com", "", "null", '["*"]']
)
def test_what_is_no_origin_is_refused_at_the_start(origin: str) -> None:
    with pytest.raises(ConfigError, match="--allowed-origins"):
        Config(allowed_origins=["https://ok.com", origin])
