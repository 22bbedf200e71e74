"""The HTTP surface: who may come in, what is refused and how, and what operators see."""

import asyncio
import io
from collections.abc import AsyncIterator
from pathlib import Path

from tests.gateway.harness import CHAT_BODY, MODEL, running, until, until_ready
from tests.tools.fake_tokenizer import FakeTokenizer, nothing, text
from tests.tools.malformed import malformed_bodies
from yarl import URL

from octavo.services.gateway.auth import OPEN_ROUTES

KEY = "sk-secret"


def test_every_route_but_the_health_checks_needs_the_key(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, api_key=KEY) as server:
            resources = [route for route in server.gateway.app.router.routes() if route.resource is not None]
            assert len(resources) > 8
            values = ("Bearer wrong", KEY, "Bearer ", "Basic a")
            wrong: list[dict[str, str]] = [{}, *({"Authorization": value} for value in values)]
            for route in resources:
                assert route.resource is not None
                path = route.resource.canonical.replace("{name}", MODEL)
                for headers in wrong:
                    response = await server.client.request(route.method, path, headers=headers)
                    assert (response.status == 401) == (route.resource.canonical not in OPEN_ROUTES), path
            for path in ("/nothing", "//v1/models", "/v1/../metrics", "/health/", "/%68ealth/x"):
                url = URL(server.address + path, encoded=True)
                assert (await server.client.get(url)).status == 401

    asyncio.run(scenario())


def test_the_right_key_opens_and_separates_prefix_caches(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, api_key=KEY) as server:
            with FakeTokenizer(tmp_path) as tokenizer:
                await until_ready(server.client)
                headers = {"Authorization": f"Bearer {KEY}"}
                response = await server.client.post("/v1/completions", json={"prompt": "a"}, headers=headers)
                assert response.status == 200
                assert len(tokenizer.generates()[0].salt) == 32
                refused = await server.client.post("/v1/completions", json={"prompt": "a"})
                assert (await refused.json())["error"]["type"] == "authentication_error"
                assert refused.headers["WWW-Authenticate"] == "Bearer"

    asyncio.run(scenario())


def test_unknown_paths_and_methods_are_answered_in_openai_shape(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as server:
            for method, path, status, code in (
                ("GET", "/v1/nothing", 404, "unknown_path"),
                ("GET", "/%ff%00", 404, "unknown_path"),
                ("GET", "/v1/chat/completions", 405, "method_not_allowed"),
                ("DELETE", "/v1/models", 405, "method_not_allowed"),
                ("GET", "/v1/models/other", 404, "model_not_found"),
            ):
                response = await server.client.request(method, path)
                assert response.status == status
                error = (await response.json())["error"]
                assert error["code"] == code and error["message"]
                assert set(error) == {"message", "type", "param", "code"}
            assert "POST" in (await server.client.get("/v1/completions")).headers["Allow"]

    asyncio.run(scenario())


def test_an_unknown_model_is_named_together_with_those_that_are_served(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as server:
            response = await server.client.post("/v1/chat/completions", json=CHAT_BODY | {"model": "gpt-9"})
            assert response.status == 404
            error = (await response.json())["error"]
            assert error["code"] == "model_not_found" and error["param"] == "model"
            assert "gpt-9" in error["message"] and MODEL in error["message"]

    asyncio.run(scenario())


def test_the_served_models_are_listed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as server:
            listed = await (await server.client.get("/v1/models")).json()
            assert listed["object"] == "list"
            assert [card["id"] for card in listed["data"]] == [MODEL]
            assert await (await server.client.get(f"/v1/models/{MODEL}")).json() == listed["data"][0]

    asyncio.run(scenario())


def test_encoded_and_oversized_bodies_are_refused(tmp_path: Path) -> None:
    async def chunks() -> AsyncIterator[bytes]:
        for _ in range(6):
            yield b"a" * 2**20

    async def scenario() -> None:
        async with running(tmp_path) as server:
            encoded = {"Content-Encoding": "gzip"}
            response = await server.client.post("/v1/completions", data=b"\x1f\x8b", headers=encoded)
            assert response.status == 415
            assert "gzip" in (await response.json())["error"]["message"]
            for body in (io.BytesIO(b"a" * (4 * 2**20 + 1)), chunks()):
                response = await server.client.post("/v1/completions", data=body)
                assert response.status == 413
                assert "4194304" in (await response.json())["error"]["message"]

    asyncio.run(scenario())


def test_every_malformed_body_is_refused_with_a_reason_and_a_good_one_then_works(tmp_path: Path) -> None:
    corpus = [(path, body) for path, body, needs_model in malformed_bodies() if not needs_model]
    assert len(corpus) >= 500

    async def scenario() -> None:
        async with running(tmp_path) as server:
            with FakeTokenizer(tmp_path) as tokenizer:
                await until_ready(server.client)
                for path, body in corpus:
                    response = await server.client.post(path, data=io.BytesIO(body))
                    assert 400 <= response.status < 500, body[:200]
                    assert (await response.json())["error"]["message"], body[:200]
                assert tokenizer.generates() == []
                response = await server.client.post("/v1/chat/completions", json=CHAT_BODY)
                assert await response.json() == CHAT_BODY

    asyncio.run(scenario())


def test_a_request_id_of_the_client_is_echoed_if_it_is_harmless(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as server:
            for given, is_echoed in (
                ("my-id_7", True),
                ("a b", False),
                ("x" * 65, False),
                ("<script>", False),
            ):
                response = await server.client.get("/v1/models", headers={"X-Request-Id": given})
                assert (response.headers["X-Request-Id"] == given) == is_echoed
            ids = {(await server.client.get("/nothing")).headers["X-Request-Id"] for _ in range(3)}
            assert len(ids) == 3

    asyncio.run(scenario())


def test_readiness_is_what_the_last_heartbeat_of_a_live_worker_said(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as server:
            for path, status in (("/livez", 200), ("/readyz", 503), ("/health", 503)):
                assert (await server.client.get(path)).status == status
            refused = await server.client.post("/v1/chat/completions", json=CHAT_BODY)
            assert refused.status == 503 and refused.headers["Retry-After"] == "1"
            with FakeTokenizer(tmp_path, is_ready=False) as tokenizer:
                await until(lambda: tokenizer.has_greeted)
                assert (await server.client.get("/readyz")).status == 503
                tokenizer.is_ready = True
                await until_ready(server.client)
                assert (await server.client.get("/health")).status == 200
                tokenizer.is_ready = False
                await until_ready(server.client, status=503)
                tokenizer.is_ready = True
                await until_ready(server.client)
            await until_ready(server.client, status=503)
            assert (await server.client.get("/livez")).status == 200

    asyncio.run(scenario())


def test_a_stopping_gateway_ends_open_streams_with_an_error(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as server:
            with FakeTokenizer(tmp_path, lambda generate: [text(generate, b"data: 1\n\n")]):
                await until_ready(server.client)
                response = await server.client.post("/v1/chat/completions", json=CHAT_BODY | {"stream": True})
                reading = asyncio.create_task(response.read())
                await server.stop()
                events = await reading
                assert events.startswith(b'data: 1\n\ndata: {"error"') and b"shutting_down" in events

    asyncio.run(scenario())


def test_a_stopping_gateway_refuses_new_calls_and_lets_open_ones_finish(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as server:
            with FakeTokenizer(tmp_path, nothing) as tokenizer:
                await until_ready(server.client)
                post = asyncio.create_task(server.client.post("/v1/chat/completions", json=CHAT_BODY))
                # A second connection, kept alive, is the only way in once the port is closed.
                await (await server.client.get("/livez")).read()
                await until(lambda: len(tokenizer.generates()) == 1)
                stopping = asyncio.create_task(server.stop())
                await until_ready(server.client, status=503)
                refused = await server.client.post("/v1/completions", json={"prompt": "a"})
                assert refused.status == 503 and refused.headers["Retry-After"] == "1"
                tokenizer.say(text(tokenizer.generates()[0], b"{}", is_last=True))
                assert await (await post).read() == b"{}"
                await stopping

    asyncio.run(scenario())
