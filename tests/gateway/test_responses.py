"""Responses that are kept: found by every gateway and by nobody else, worked on in the background, ended once."""

import asyncio
import json
import os
import stat
import time
from pathlib import Path
from typing import Any

import msgspec
import pytest
from aiohttp import ClientSession
from openai.types.responses import Response, ResponseItemList
from tests.gateway.harness import Running, running, until, until_ready
from tests.tools.fake_tokenizer import FakeTokenizer, nothing, text

from octavo.services.gateway.response_store import STALE_S, Bounds, Record, ResponseStore
from octavo.shared.endpoints import read_request
from octavo.shared.errors import InvalidRequest, Unavailable
from octavo.shared.messages import TO_GATEWAY, CallFailed, Generate
from octavo.shared.responses import ResponsesRequest
from octavo.shared.responses_answers import CallItem, MessageItem, OutputText, begin_response

PATH = "/v1/responses"
ID = "resp_" + "0" * 32


def wanted_by(generate: Generate) -> ResponsesRequest:
    wanted = read_request("responses", generate.body)
    assert isinstance(wanted, ResponsesRequest)
    return wanted


def answer(generate: Generate) -> list[TO_GATEWAY]:
    """The script of a tokenizer whose model says how many items it was told."""
    wanted = wanted_by(generate)
    begun = begin_response(generate.id, wanted, generate.created_s, generate.model, "in_progress")
    said = MessageItem(id="msg_1", status="completed", content=[OutputText(f"{len(wanted.items)} items")])
    ended = msgspec.structs.replace(begun, status="completed", output=[said])
    if not wanted.stream:
        return [text(generate, msgspec.json.encode(ended), is_last=True)]
    first, last = (
        b"event: response.%b\ndata: " % name + msgspec.json.encode(event) + b"\n\n"
        for name, event in (
            (b"created", {"type": "response.created", "sequence_number": 0, "response": begun}),
            (b"completed", {"type": "response.completed", "sequence_number": 1, "response": ended}),
        )
    )
    return [text(generate, first), text(generate, last, is_last=True)]


async def create(server: Running, status: int = 200, **fields: object) -> dict[str, Any]:
    return await asked(server.client, "POST", PATH, status, json={"input": "Hi"} | fields)


async def asked(client: ClientSession, method: str, path: str, status: int = 200, **fields: Any) -> dict[str, Any]:
    response = await client.request(method, path, **fields)
    told = await response.json()
    assert response.status == status, told
    assert isinstance(told, dict)
    return told


async def num_observed(server: Running, name: str) -> float:
    """Requests that a histogram of /metrics has counted, at the gateway that is asked."""
    lines = (await (await server.client.get("/metrics")).text()).splitlines()
    counts = [line for line in lines if line.startswith(f"vllm:{name}_seconds_count") and 'gateway="0"' in line]
    return sum(float(line.rpartition(" ")[2]) for line in counts)


def test_a_response_is_found_through_every_gateway_until_it_is_deleted(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as one, running(tmp_path, index=1) as other:
            with FakeTokenizer(tmp_path, answer), FakeTokenizer(tmp_path, answer, index=1):
                await until_ready(one.client)
                made = await create(one)
                Response.model_validate(made, strict=True)
                path = f"{PATH}/{made['id']}"
                assert await asked(one.client, "GET", path) == await asked(other.client, "GET", path) == made
                assert await asked(other.client, "DELETE", path) == {
                    "id": made["id"], "object": "response", "deleted": True,
                }  # fmt: skip
                for method in ("GET", "DELETE"):
                    assert made["id"] in (await asked(one.client, method, path, 404))["error"]["message"]
                assert (await asked(one.client, "POST", f"{path}/cancel", 404))["error"]["param"] == "response_id"

    asyncio.run(scenario())


def test_a_conversation_goes_on_through_another_gateway(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as one, running(tmp_path, index=1) as other:
            with FakeTokenizer(tmp_path, answer), FakeTokenizer(tmp_path, answer, index=1) as tokenizer:
                await until_ready(one.client)
                await until_ready(other.client)
                streamed = await one.client.post(PATH, json={"input": "One", "instructions": "Be", "stream": True})
                last = json.loads((await streamed.read()).rpartition(b"\ndata: ")[2])
                second = await create(other, input="Two", previous_response_id=last["response"]["id"])
                third = await create(other, input=[{"role": "user", "content": "Three"}],
                                     previous_response_id=second["id"])  # fmt: skip
                assert [said["output"][0]["content"][0]["text"] for said in (second, third)] == ["3 items", "5 items"]
                wanted = wanted_by(tokenizer.generates()[-1])
                assert wanted.instructions is None, "instructions are not inherited"
                assert [(said.role, said.content) for said in wanted.to_chat().messages] == [
                    ("user", "One"), ("assistant", "1 items"), ("user", "Two"), ("assistant", "3 items"),
                    ("user", "Three"),
                ]  # fmt: skip
                assert third["previous_response_id"] == second["id"]

    asyncio.run(scenario())


def test_nothing_follows_what_is_not_there(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as server:
            with FakeTokenizer(tmp_path, answer):
                await until_ready(server.client)
                unkept = await create(server, store=False)
                for id in (unkept["id"], ID, "../secret", "resp_"):
                    error = (await create(server, 400, previous_response_id=id))["error"]
                    assert (error["param"], error["code"]) == ("previous_response_id", "previous_response_not_found")

    asyncio.run(scenario())


def test_tenants_do_not_find_each_others_responses(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path, "key-a") as one, running(tmp_path, "key-b", index=1) as other:
            one.client.headers["Authorization"] = "Bearer key-a"
            other.client.headers["Authorization"] = "Bearer key-b"
            with FakeTokenizer(tmp_path, answer), FakeTokenizer(tmp_path, answer, index=1):
                await until_ready(one.client)
                await until_ready(other.client)
                made = await create(one)
                path = f"{PATH}/{made['id']}"
                for method, suffix in (("GET", ""), ("DELETE", ""), ("POST", "/cancel"), ("GET", "/input_items")):
                    await asked(other.client, method, path + suffix, 404)
                await create(other, 400, previous_response_id=made["id"])
                assert await asked(one.client, "GET", path) == made
        files = [path for path in (tmp_path / "responses").rglob("*")]
        assert [stat.S_IMODE(path.stat().st_mode) for path in files if path.is_dir()] == [0o700]
        assert {stat.S_IMODE(path.stat().st_mode) for path in files if path.is_file()} == {0o600}
        assert b"key-a" not in b"".join(str(path).encode() for path in files)

    asyncio.run(scenario())


def test_the_items_that_led_to_a_response_are_listed(tmp_path: Path) -> None:
    items = [
        {"role": "user", "content": "Weather?"},
        {"type": "reasoning", "id": "rs_9", "summary": [], "content": [{"type": "reasoning_text", "text": "hm"}]},
        {"type": "function_call", "call_id": "c", "name": "f", "arguments": "{}"},
        {"type": "function_call_output", "call_id": "c", "output": "rain"},
        {"role": "assistant", "content": [{"type": "output_text", "text": "Rain."}]},
    ]

    async def scenario() -> None:
        async with running(tmp_path) as server:
            with FakeTokenizer(tmp_path, answer):
                await until_ready(server.client)
                path = f"{PATH}/{(await create(server, input=items))['id']}/input_items"
                told = await asked(server.client, "GET", path, params={"order": "asc"})
                listed = ResponseItemList.model_validate(told, strict=True)
                assert [item.type for item in listed.data] == [item.get("type", "message") for item in items]
                assert (listed.has_more, listed.data[1].id) == (False, "rs_9")
                page = await asked(server.client, "GET", path, params={"limit": "2"})
                assert [item["id"] for item in page["data"]] == [listed.data[4].id, listed.data[3].id]
                assert page["has_more"] and page["last_id"] == listed.data[3].id
                rest = await asked(server.client, "GET", path, params={"after": page["last_id"]})
                assert [item["id"] for item in rest["data"]] == [listed.data[place].id for place in (2, 1, 0)]
                for wrong in ({"limit": "0"}, {"limit": "101"}, {"limit": "x"}, {"order": "up"}, {"after": "x"}):
                    [name] = wrong
                    assert (await asked(server.client, "GET", path, 400, params=wrong))["error"]["param"] == name

    asyncio.run(scenario())


def test_a_response_in_the_background_can_be_asked_for_meanwhile(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as one, running(tmp_path, index=1) as other:
            with FakeTokenizer(tmp_path, nothing) as tokenizer:
                await until_ready(one.client)
                begun = await create(one, background=True)
                Response.model_validate(begun, strict=True)
                assert (begun["status"], begun["output"], begun["background"]) == ("queued", [], True)
                path = f"{PATH}/{begun['id']}"
                assert await asked(other.client, "GET", path) == begun | {"status": "in_progress"}
                assert "in_progress" in (await create(one, 400, previous_response_id=begun["id"]))["error"]["message"]
                await until(lambda: bool(tokenizer.generates()))
                for message in answer(tokenizer.generates()[0]):
                    tokenizer.say(message)
                while (ended := await asked(other.client, "GET", path))["status"] == "in_progress":
                    await asyncio.sleep(0.01)
                assert ended["output"][0]["content"][0]["text"] == "1 items"
                assert await asked(other.client, "POST", f"{path}/cancel") == ended, "it has ended before"
                while await num_observed(one, "e2e_request_latency") == 0:
                    await asyncio.sleep(0.01)
                assert await num_observed(one, "e2e_request_latency") == 1, "as those are that are waited for"

    asyncio.run(scenario())


@pytest.mark.parametrize("method", ["cancel", "delete"])
def test_a_response_in_the_background_is_stopped_through_any_gateway(tmp_path: Path, method: str) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as one, running(tmp_path, index=1) as other:
            with FakeTokenizer(tmp_path, nothing) as tokenizer:
                await until_ready(one.client)
                path = f"{PATH}/{(await create(one, background=True))['id']}"
                if method == "delete":
                    await asked(other.client, "DELETE", path)
                else:
                    assert (await asked(other.client, "POST", f"{path}/cancel"))["status"] == "cancelled"
                await until(lambda: bool(tokenizer.cancels()))
                for message in answer(tokenizer.generates()[0]):
                    tokenizer.say(message)  # too late
                if method == "delete":
                    await asked(one.client, "GET", path, 404)
                else:
                    for _ in range(2):
                        assert (await asked(one.client, "POST", f"{path}/cancel"))["status"] == "cancelled"

    asyncio.run(scenario())


def test_only_what_is_in_the_background_can_be_cancelled(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as server:
            with FakeTokenizer(tmp_path, answer):
                await until_ready(server.client)
                made = await create(server)
                error = (await asked(server.client, "POST", f"{PATH}/{made['id']}/cancel", 400))["error"]
                assert "background" in error["message"]
                assert (await create(server, 400, background=True, store=False))["error"]["param"] == "background"
                error = (await asked(server.client, "GET", f"{PATH}/{made['id']}?stream=true", 400))["error"]
                assert error["param"] == "stream"

    asyncio.run(scenario())


def test_what_fails_in_the_background_says_why(tmp_path: Path) -> None:
    def refuse(generate: Generate) -> list[TO_GATEWAY]:
        return [CallFailed(generate.id, InvalidRequest("messages: it has 9 tokens", "messages").info())]

    async def scenario() -> None:
        async with running(tmp_path) as server:
            with FakeTokenizer(tmp_path, refuse):
                await until_ready(server.client)
                path = f"{PATH}/{(await create(server, background=True))['id']}"
                while (ended := await asked(server.client, "GET", path))["status"] == "in_progress":
                    await asyncio.sleep(0.01)
                Response.model_validate(ended, strict=True)
                assert ended["status"] == "failed"
                assert ended["error"] == {"code": "invalid_prompt", "message": "input: it has 9 tokens"}
                error = (await create(server, 400))["error"]
                assert (error["message"], error["param"]) == ("input: it has 9 tokens", "input")

    asyncio.run(scenario())


def test_a_gateway_that_ends_fails_what_it_works_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as one, running(tmp_path, index=1) as other:
            with FakeTokenizer(tmp_path, nothing):
                await until_ready(one.client)
                path = f"{PATH}/{(await create(one, background=True))['id']}"
                await one.stop()
                ended = await asked(other.client, "GET", path)
                assert (ended["status"], ended["error"]["code"]) == ("failed", "server_error")

    asyncio.run(scenario())


def test_a_response_whose_gateway_has_died_has_failed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as server:
            store, record = (
                ResponseStore(tmp_path / "responses"),
                Record(msgspec.Raw(b'{"status":"x"}'), msgspec.Raw(b"[]")),
            )
            store.begin(b"", ID, record)
            assert await asked(server.client, "GET", f"{PATH}/{ID}") == {"status": "x"}
            [path] = (tmp_path / "responses").rglob("*.open")
            long_ago = time.time() - STALE_S - 1
            os.utime(path, (long_ago, long_ago))
            ended = await asked(server.client, "GET", f"{PATH}/{ID}")
            assert ended["status"] == "failed" and "died" in ended["error"]["message"]
            assert not store.touch(b"", ID), "if it lives after all, it hears that it is too late"

    asyncio.run(scenario())


def test_a_stream_that_fails_ends_with_an_event_and_the_response_says_so(tmp_path: Path) -> None:
    def script(generate: Generate) -> list[TO_GATEWAY]:
        first = msgspec.structs.replace(text(generate, b"event: response.created\ndata: {}\n\n"), num_events=[2])
        return [first, CallFailed(generate.id, Unavailable("gone", retry_after_s=1).info())]

    async def scenario() -> None:
        async with running(tmp_path) as server:
            with FakeTokenizer(tmp_path, script):
                await until_ready(server.client)
                response = await server.client.post(PATH, json={"input": "Hi", "stream": True})
                event = json.loads((await response.read()).rpartition(b"\ndata: ")[2])
                assert (event["type"], event["sequence_number"]) == ("response.failed", 2)
                failed = event["response"]
                Response.model_validate(failed, strict=True)
                assert (failed["status"], failed["error"]["message"]) == ("failed", "gone")
                assert await asked(server.client, "GET", f"{PATH}/{failed['id']}") == failed

    asyncio.run(scenario())


def test_the_number_of_events_goes_through_the_journal(tmp_path: Path) -> None:
    def begin(generate: Generate) -> list[TO_GATEWAY]:
        return [msgspec.structs.replace(text(generate, b"data: 1\n\n", token_ids=[5], num_chars=1), num_events=[7])]

    async def scenario() -> None:
        async with running(tmp_path) as server:
            with FakeTokenizer(tmp_path, begin) as first:
                await until_ready(server.client)
                response = await server.client.post(PATH, json={"input": "Hi", "stream": True})
                with FakeTokenizer(tmp_path, answer) as second:
                    await until(lambda: second.has_greeted)
                    first.die()
                    await until(lambda: bool(second.generates()))
                    assert second.generates()[0].progress[0].num_events == 7
                    await response.read()

    asyncio.run(scenario())


def test_a_call_that_breaks_off_is_not_told_to_the_model_again(tmp_path: Path) -> None:
    def script(generate: Generate) -> list[TO_GATEWAY]:
        begun = begin_response(generate.id, wanted_by(generate), 1, "m", "in_progress")
        called = CallItem(id="fc_1", status="incomplete", call_id="c", name="f", arguments='{"a')
        ended = msgspec.structs.replace(begun, status="incomplete", output=[called])
        return [text(generate, msgspec.json.encode(ended), is_last=True)]

    async def scenario() -> None:
        async with running(tmp_path) as server:
            with FakeTokenizer(tmp_path, script) as tokenizer:
                await until_ready(server.client)
                await create(server, previous_response_id=(await create(server))["id"])
                assert [item.role for item in wanted_by(tokenizer.generates()[1]).items] == ["user", "user"]

    asyncio.run(scenario())


def record(size: int = 1) -> Record:
    return Record(msgspec.Raw(b'{"a":"' + b"x" * size + b'"}'), msgspec.Raw(b"[]"))


def test_the_store_ends_a_response_once_and_a_deleted_one_never(tmp_path: Path) -> None:
    one, other = ResponseStore(tmp_path / "r"), ResponseStore(tmp_path / "r")
    one.begin(b"", ID, record())
    assert other.end(b"", ID, record(2), was_begun=True)
    assert not one.end(b"", ID, record(3), was_begun=True)
    found = one.find(b"", ID)
    assert found is not None and bytes(found.record.response) == bytes(record(2).response)
    assert other.delete(b"", ID) and not other.delete(b"", ID)

    one.begin(b"", ID, record())
    assert other.delete(b"", ID)
    assert not one.end(b"", ID, record(), was_begun=True)
    assert one.find(b"", ID) is None
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []


def test_the_store_is_bounded_by_number_bytes_and_age(tmp_path: Path) -> None:
    store = ResponseStore(tmp_path / "r", Bounds(3, 10_000, age_s=1_000.0, look_s=0.0))

    def keep(number: int, size: int = 1, age_s: float = 0.0) -> None:
        store.end(b"", f"resp_{number:032x}", record(size))
        path = next(tmp_path.rglob(f"resp_{number:032x}.json"))
        at = time.time() - age_s
        os.utime(path, (at, at))

    def kept() -> set[int]:
        return {int(path.stem[5:], 16) for path in tmp_path.rglob("*.json")}

    for number in range(5):
        keep(number, age_s=100 - number)
    assert kept() == {2, 3, 4}
    keep(5, size=9_000, age_s=10)
    keep(6, size=9_000, age_s=5)
    keep(7)
    assert kept() == {6, 7}
    keep(8, age_s=1_001)
    keep(9)
    assert kept() == {6, 7, 9}
    store.end(b"other", ID, record())
    assert len(kept()) == 4, "tenants do not crowd each other out"
