"""Streams of responses in the background: kept for whoever asks, from any event on, at any gateway."""

import asyncio
import json
from pathlib import Path

import msgspec
import pytest
from aiohttp import ClientResponse
from tests.gateway.harness import Running, read_until, running, until, until_ready
from tests.gateway.test_responses import PATH, answer, asked, create, num_observed
from tests.tools.fake_tokenizer import FakeTokenizer, nothing

from octavo.shared.errors import Unavailable
from octavo.shared.messages import CallFailed


def numbers(events: bytes) -> list[int]:
    return [json.loads(event.partition(b"\ndata: ")[2])["sequence_number"] for event in events.split(b"\n\n")[:-1]]


async def begin_stream(server: Running, tokenizer: FakeTokenizer) -> "asyncio.Task[ClientResponse]":
    """Ask for a response that streams in the background; its answer is awaited when a tokenizer has the call."""
    post = asyncio.create_task(server.client.post(PATH, json={"input": "Hi", "stream": True, "background": True}))
    await until(lambda: bool(tokenizer.generates()))
    return post


def test_a_stream_in_the_background_goes_on_without_its_client_and_can_be_read_again_anywhere(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as one, running(tmp_path, index=1) as other:
            with FakeTokenizer(tmp_path, nothing) as tokenizer:
                await until_ready(one.client)
                post = await begin_stream(one, tokenizer)
                first, last = answer(tokenizer.generates()[0])
                tokenizer.say(first)
                response = await post
                begun = json.loads((await read_until(response, b"\n\n")).partition(b"\ndata: ")[2])
                response.close()  # the connection is lost
                path = f"{PATH}/{begun['response']['id']}"
                reader = await other.client.get(path, params={"stream": "true"})
                assert numbers(await read_until(reader, b"\n\n")) == [0]
                rest = asyncio.create_task(other.client.get(path, params={"stream": "true", "starting_after": "0"}))
                assert (await asked(other.client, "GET", path))["status"] == "in_progress"
                tokenizer.say(last)
                assert numbers(await reader.read()) == numbers(await (await rest).read()) == [1]
                ended = await asked(one.client, "GET", path)
                assert ended["output"][0]["content"][0]["text"] == "1 items"
                whole = await (await one.client.get(path, params={"stream": "true"})).read()
                assert numbers(whole) == [0, 1]
                assert json.loads(whole.rpartition(b"\ndata: ")[2])["response"] == ended
                for name in ("time_to_first_token", "e2e_request_latency"):
                    while await num_observed(one, name) == 0:
                        await asyncio.sleep(0.01)
                    assert await num_observed(one, name) == 1, "once, whoever reads it"
                assert not tokenizer.cancels()
                await asked(one.client, "DELETE", path)
                await asked(one.client, "GET", path, 404, params={"stream": "true"})
        assert [each for each in (tmp_path / "responses").rglob("*") if each.is_file()] == []

    asyncio.run(scenario())


@pytest.mark.parametrize("ending", ["cancel", "fail", "delete"])
def test_a_stream_in_the_background_that_does_not_come_to_its_end_ends(tmp_path: Path, ending: str) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as one, running(tmp_path, index=1) as other:
            with FakeTokenizer(tmp_path, nothing) as tokenizer:
                await until_ready(one.client)
                post = await begin_stream(one, tokenizer)
                generate = tokenizer.generates()[0]
                tokenizer.say(msgspec.structs.replace(answer(generate)[0], num_events=[1]))
                response = await post
                begun = json.loads((await read_until(response, b"\n\n")).partition(b"\ndata: ")[2])
                path = f"{PATH}/{begun['response']['id']}"
                match ending:
                    case "fail":
                        tokenizer.say(CallFailed(generate.id, Unavailable("gone", retry_after_s=1).info()))
                    case "cancel":
                        assert (await asked(other.client, "POST", f"{path}/cancel"))["status"] == "cancelled"
                    case _:
                        await asked(other.client, "DELETE", path)
                rest = await response.read()
                if ending == "fail":
                    assert (numbers(rest), json.loads(rest.partition(b"\ndata: ")[2])["type"]) == (
                        [1],
                        "response.failed",
                    )
                    assert (await asked(other.client, "GET", path))["status"] == "failed"
                else:
                    assert rest == b""
                    await until(lambda: bool(tokenizer.cancels()))

    asyncio.run(scenario())


def test_what_has_kept_no_events_has_none_to_be_sent_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as server:
            with FakeTokenizer(tmp_path, answer):
                await until_ready(server.client)
                path = f"{PATH}/{(await create(server, background=True))['id']}"
                error = (await asked(server.client, "GET", path, 400, params={"stream": "true"}))["error"]
                assert error["param"] == "stream" and "background" in error["message"]
                wrong = {"stream": "true", "starting_after": "x"}
                assert (await asked(server.client, "GET", path, 400, params=wrong))["error"][
                    "param"
                ] == "starting_after"

    asyncio.run(scenario())
