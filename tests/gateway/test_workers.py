"""Workers that come, go, fall silent, and what becomes of their calls."""

import asyncio
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from tests.gateway.harness import CHAT_BODY, read_until, running, until, until_ready
from tests.tools.fake_tokenizer import DEADLINE_S, DONE, FakeTokenizer, echo, nothing, text

from octavo.services.gateway.workers import Workers
from octavo.shared.errors import Overloaded, Unavailable
from octavo.shared.messages import TO_GATEWAY, CallId, Generate, Progress, pack
from octavo.shared.pulse import Pulse
from octavo.shared.transport import Hub, gateway_endpoint, new_context

STREAM = CHAT_BODY | {"stream": True}


def begin(generate: Generate) -> list[TO_GATEWAY]:
    """Three chunks of two choices, and no end."""
    return [
        text(generate, b"data: role\n\n", choice=0),
        text(generate, b"data: He\n\n", choice=0, token_ids=[11, 12], num_chars=2),
        text(generate, b"data: Yo\n\n", choice=1, token_ids=[21], num_chars=2),
        text(generate, b"data: llo\n\n", choice=0, token_ids=[13], num_chars=5),
    ]


def finish(generate: Generate) -> list[TO_GATEWAY]:
    """The end of what `begin` began."""
    return [
        text(generate, b"data: u!\n\n", choice=1, token_ids=[22], num_chars=4),
        text(generate, DONE, is_last=True),
    ]


BEGUN = b"data: role\n\ndata: He\n\ndata: Yo\n\ndata: llo\n\n"
ENDED = b"data: u!\n\n" + DONE
PROGRESS = {0: Progress(pack([11, 12, 13]), 5), 1: Progress(pack([21]), 2)}


@asynccontextmanager
async def listening(folder: Path, max_open: int = 100) -> AsyncIterator[Workers]:
    """Workers on a running loop, without HTTP and without a clock: tests call tick themselves."""
    context = new_context()
    hub: Hub[TO_GATEWAY] = Hub(context, gateway_endpoint(folder, 0), TO_GATEWAY)
    workers = Workers(hub, max_open)
    workers.start()
    yield workers
    workers.close()
    context.term()


@asynccontextmanager
async def lately_ready(folder: Path) -> AsyncIterator[Workers]:
    """Workers whose only one was ready a moment ago, and is gone."""
    async with listening(folder) as workers:
        with FakeTokenizer(folder, nothing):
            await until(lambda: workers.is_ready)
            workers.tick(time.monotonic())
        await _tick_until_none_is_ready(workers)
        yield workers


async def _tick_until_none_is_ready(workers: Workers, ahead_s: float = 0.0) -> None:
    def is_none_ready() -> bool:
        workers.tick(time.monotonic() + ahead_s)
        return not workers.is_ready

    await until(is_none_ready)


def call_of(number: int) -> Generate:
    return Generate(CallId(number.to_bytes(16, "little")), "chat", b"{}", 0, "m")


def test_a_worker_that_dies_in_the_middle_of_a_stream_is_replaced_without_a_gap(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as server:
            with FakeTokenizer(tmp_path, begin) as first:
                await until_ready(server.client)
                response = await server.client.post("/v1/chat/completions", json=STREAM)
                assert await read_until(response, b"llo\n\n") == BEGUN
                with FakeTokenizer(tmp_path, finish) as second:
                    first.die()
                    assert await response.read() == ENDED
                    (again,) = second.generates()
                    (generate,) = first.generates()
                    assert (again.id, again.body) == (generate.id, generate.body)
                    assert again.progress == PROGRESS

    asyncio.run(scenario())


def test_a_call_whose_only_worker_died_waits_for_the_next_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as server:
            with FakeTokenizer(tmp_path, begin):
                await until_ready(server.client)
                response = await server.client.post("/v1/chat/completions", json=STREAM)
                assert await read_until(response, b"llo\n\n") == BEGUN
            await until_ready(server.client, status=503)
            with FakeTokenizer(tmp_path, finish) as second:
                assert await response.read() == ENDED
                assert second.generates()[0].progress == PROGRESS

    asyncio.run(scenario())


def test_a_call_that_comes_while_no_worker_is_ready_waits_for_the_next_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with lately_ready(tmp_path) as workers:
            call = workers.open(call_of(1))
            with FakeTokenizer(tmp_path, nothing) as second:
                await until(lambda: [each.id for each in second.generates()] == [call.id])
                workers.settle(call)

    asyncio.run(scenario())


def test_a_call_that_a_crashed_gateways_successor_gets_first_waits_for_a_worker(tmp_path: Path) -> None:
    async def scenario() -> None:
        Pulse(tmp_path, "gateway").beat(is_ready=True)  # and never again
        async with running(tmp_path) as server:
            post = asyncio.create_task(server.client.post("/v1/completions", json={"prompt": "a"}))
            async with asyncio.timeout(DEADLINE_S):
                while 'octavo:open_streams{gateway="0"} 1.0' not in await (await server.client.get("/metrics")).text():
                    assert not post.done(), (await post).status
            with FakeTokenizer(tmp_path, echo):
                assert await (await post).json() == {"prompt": "a"}

    asyncio.run(scenario())


def test_calls_are_refused_where_no_worker_has_been_ready_for_30_seconds(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with lately_ready(tmp_path) as workers:
            workers.tick(time.monotonic() + 29)
            workers.settle(workers.open(call_of(1)))
            workers.tick(time.monotonic() + 31)
            with pytest.raises(Unavailable, match="the model is not ready"):
                workers.open(call_of(2))

    asyncio.run(scenario())


def test_a_call_that_three_workers_died_with_fails(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as server:
            with FakeTokenizer(tmp_path, nothing) as tokenizer:
                await until_ready(server.client)
                post = asyncio.create_task(server.client.post("/v1/chat/completions", json=CHAT_BODY))
                await until(lambda: len(tokenizer.generates()) == 1)
            for _ in range(2):
                with FakeTokenizer(tmp_path, nothing) as tokenizer:
                    await until(lambda: len(tokenizer.generates()) == 1)
            response = await post
            assert response.status == 500
            assert (await response.json())["error"]["code"] == "tokenizer_lost"

    asyncio.run(scenario())


def test_text_from_a_worker_that_does_not_own_the_call_is_ignored(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as server:
            with FakeTokenizer(tmp_path, nothing) as owner:
                await until_ready(server.client)
                post = asyncio.create_task(server.client.post("/v1/chat/completions", json=CHAT_BODY))
                await until(lambda: len(owner.generates()) == 1)
                call = owner.generates()[0]
                owner.is_ready = False
                await until_ready(server.client, status=503)

                def rogue(generate: Generate) -> list[TO_GATEWAY]:
                    return [text(call, b"wrong", is_last=True), *echo(generate)]

                with FakeTokenizer(tmp_path, rogue):
                    await until_ready(server.client)
                    response = await server.client.post("/v1/completions", json={"prompt": "a"})
                    assert await response.json() == {"prompt": "a"}
                    owner.say(text(call, b"right", is_last=True))
                    assert await (await post).read() == b"right"

    asyncio.run(scenario())


def test_text_of_an_earlier_attempt_is_ignored(tmp_path: Path) -> None:
    """A worker whose connection was lost still speaks of the call as it was, until it hears of it again."""
    asked: list[Generate] = []

    def script(generate: Generate) -> list[TO_GATEWAY]:
        asked.append(generate)
        stale = text(asked[0], b"data: stale\n\n", choice=0, token_ids=[19], num_chars=9)
        return begin(generate) if len(asked) == 1 else [stale, *finish(generate)]

    async def scenario() -> None:
        async with running(tmp_path) as server:
            with FakeTokenizer(tmp_path, script):
                await until_ready(server.client)
                response = await server.client.post("/v1/chat/completions", json=STREAM)
                assert await read_until(response, b"llo\n\n") == BEGUN
            with FakeTokenizer(tmp_path, script):
                assert await response.read() == ENDED
                assert asked[1].progress == PROGRESS

    asyncio.run(scenario())


def test_a_silent_worker_loses_its_calls_to_another(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with listening(tmp_path) as workers:
            with FakeTokenizer(tmp_path, nothing) as tokenizer:
                await until(lambda: workers.is_ready)
                call = workers.open(call_of(1))
                await until(lambda: len(tokenizer.generates()) == 1)
                # Silent for 6 s as this clock has it; its next heartbeat then makes it a new worker.
                await _tick_until_none_is_ready(workers, ahead_s=6)
                await until(lambda: len(tokenizer.generates()) == 2)
                assert call.num_sends == 2
                workers.settle(call)

    asyncio.run(scenario())


def test_a_call_waits_for_a_worker_at_most_30_seconds(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with listening(tmp_path) as workers:
            with FakeTokenizer(tmp_path, nothing) as tokenizer:
                await until(lambda: workers.is_ready)
                call = workers.open(call_of(1))
                await until(lambda: len(tokenizer.generates()) == 1)
            await _tick_until_none_is_ready(workers)
            workers.tick(time.monotonic() + 29)
            assert call.worker is None and workers.num_open == 1
            workers.tick(time.monotonic() + 31)
            with pytest.raises(Unavailable, match="no tokenizer was ready for 30 s"):
                await call.take()
            workers.settle(call)
            assert workers.num_open == 0

    asyncio.run(scenario())


def test_calls_are_spread_evenly_over_ready_workers(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with listening(tmp_path) as workers:
            fakes = [FakeTokenizer(tmp_path, nothing) for _ in range(3)]
            with fakes[0], fakes[1], fakes[2], FakeTokenizer(tmp_path, nothing, is_ready=False) as unready:
                probes = [call_of(1000 + number) for number in range(3)]
                await until(lambda: workers.is_ready)
                calls = [workers.open(probe) for probe in probes]
                await until(lambda: all(_is_joined(workers, fake) for fake in fakes))
                for call in calls:
                    workers.settle(call)
                calls = [workers.open(call_of(number)) for number in range(30)]
                owners = [call.worker for call in calls]
                assert {owners.count(owner) for owner in owners} == {10}
                assert unready.generates() == []
                for call in calls:
                    workers.settle(call)

    def _is_joined(workers: Workers, fake: FakeTokenizer) -> bool:
        """Open calls until that worker has had one."""
        call = workers.open(call_of(time.monotonic_ns()))
        workers.settle(call)
        return bool(fake.generates())

    asyncio.run(scenario())


def test_one_call_more_than_the_bound_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with listening(tmp_path, max_open=2) as workers:
            with FakeTokenizer(tmp_path, nothing):
                await until(lambda: workers.is_ready)
                calls = [workers.open(call_of(number)) for number in range(2)]
                with pytest.raises(Overloaded, match="too many streams: 2 open; at most 2") as refusal:
                    workers.open(call_of(2))
                assert refusal.value.retry_after_s == 1
                workers.settle(calls[0])
                workers.settle(workers.open(call_of(3)))
                workers.settle(calls[1])

    asyncio.run(scenario())


def test_a_flood_of_frames_is_received_to_the_last(tmp_path: Path) -> None:
    def flood(generate: Generate) -> list[TO_GATEWAY]:
        return [text(generate, b"%d\n" % n, is_last=n == 4999) for n in range(5000)]

    async def scenario() -> None:
        async with running(tmp_path) as server:
            with FakeTokenizer(tmp_path, flood):
                await until_ready(server.client)
                response = await server.client.post("/v1/chat/completions", json=STREAM)
                assert await response.read() == b"".join(b"%d\n" % n for n in range(5000))

    asyncio.run(scenario())


def test_a_restarted_gateway_is_found_by_the_same_worker(tmp_path: Path) -> None:
    async def scenario() -> None:
        with FakeTokenizer(tmp_path):
            for _ in range(2):
                async with running(tmp_path) as server:
                    await until_ready(server.client)
                    response = await server.client.post("/v1/completions", json={"prompt": "a"})
                    assert await response.json() == {"prompt": "a"}

    asyncio.run(scenario())
