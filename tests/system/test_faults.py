"""Processes die and clients go away in the midst of streams: no token is lost, and nothing is held."""

import asyncio
from collections.abc import Callable, Iterator
from http.client import HTTPConnection

import psutil  # type: ignore[import-untyped]  # it has no type information
import pytest
from benchmarks.streams import DEFAULT_VOCAB, shared_prefix_prompts
from tests.tools.load_client import OpenStreams, Stream, completion_body, fault_of
from tests.tools.server import Server, running, wait_until

from octavo.shared.transport import SILENCE_S

NUM_STREAMS = 20
NUM_TOKENS = 80  # at 20 ms a step, so that a disturbance after a second finds every stream in its midst
TIMEOUT_S = 120.0
SOME = 10


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with running("--device", "sim", "--tokenizers", "2", "--sim-step-ms", "20") as server:
        yield server


def disturb(server: Server, by: Callable[[], None], num_tokens: int = NUM_TOKENS) -> list[str]:
    """Run streams and disturb them in the midst; returns what is wrong with any of them."""
    prompts = shared_prefix_prompts(NUM_STREAMS, DEFAULT_VOCAB)
    streams = asyncio.run(_run_disturbed(server, prompts, by, num_tokens))
    faults = [
        fault_of(stream, prompt, num_tokens, DEFAULT_VOCAB) for prompt, stream in zip(prompts, streams, strict=True)
    ]
    return [fault for fault in faults if fault]


async def _run_disturbed(
    server: Server, prompts: list[list[int]], by: Callable[[], None], num_tokens: int
) -> list[Stream]:
    with OpenStreams(server.host, server.port) as streams:
        await streams.open([completion_body(prompt, num_tokens) for prompt in prompts])
        await streams.until_all_have(SOME, TIMEOUT_S)
        by()
        return await streams.finish(TIMEOUT_S)


def kill_first(server: Server, role: str) -> Callable[[], None]:
    return lambda: server.services(role)[0].kill()


@pytest.mark.parametrize("role", ["tokenizer", "executor", "scheduler"])
def test_no_stream_notices_that_a_service_is_killed(server: Server, role: str) -> None:
    before = server.services(role)
    assert disturb(server, kill_first(server, role)) == []
    wait_until(lambda: len(server.services(role)) == len(before), f"the {role} is started again")
    assert set(server.services(role)) != set(before)
    assert f"the {role} process ended with code -9; it is started again" in server.errors
    wait_until(lambda: server.is_ready, "the server is ready again")


@pytest.mark.parametrize(
    "role",
    ["executor", *(pytest.param(role, marks=pytest.mark.slow) for role in ("tokenizer", "scheduler", "gateway"))],
)
def test_no_stream_notices_that_a_service_stands_still(role: str) -> None:
    with running("--device", "sim", "--sim-step-ms", "20") as server:
        assert disturb(server, lambda: freeze(server.services(role)[0])) == []


def freeze(process: psutil.Process) -> None:
    """Stop a process for so long that its peers take it for dead, and let it go on as if nothing had been."""
    process.suspend()
    asyncio.get_running_loop().call_later(SILENCE_S + 2, process.resume)


@pytest.mark.parametrize("is_followed", [False, True])
def test_a_dead_service_is_not_noticed_by_requests_that_come_later(server: Server, is_followed: bool) -> None:
    victim = server.services("executor")[0]
    victim.kill()
    if is_followed:
        wait_until(lambda: any(each != victim for each in server.services("executor")), "it is started again")
    assert disturb(server, lambda: None) == []


def test_the_blocks_of_a_stream_are_freed_when_its_client_goes_away(server: Server) -> None:
    asyncio.run(_open_and_cut(server))
    wait_until(lambda: _is_idle(server), "nothing runs and no block is held")


async def _open_and_cut(server: Server) -> None:
    with OpenStreams(server.host, server.port) as streams:
        await streams.open([completion_body([5, 6, 7], 8000)] * NUM_STREAMS)
        await streams.until_all_have(SOME, TIMEOUT_S)
        streams.cut()


def test_the_blocks_of_a_whole_answer_are_freed_when_its_client_goes_away(server: Server) -> None:
    connection = HTTPConnection(server.host, server.port, timeout=TIMEOUT_S)
    connection.request("POST", "/v1/completions", completion_body([5, 6, 7], 8000, stream=False, n=4))
    wait_until(lambda: server.metric("vllm:num_requests_running") == 4, "the requests run")
    connection.close()
    wait_until(lambda: _is_idle(server), "nothing runs and no block is held")


def _is_idle(server: Server) -> bool:
    names = ("vllm:num_requests_running", "vllm:num_requests_waiting", "vllm:kv_cache_usage_perc")
    return all(server.metric(name) == 0 for name in (*names, "octavo:open_streams"))
