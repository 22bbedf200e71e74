"""Requests keep coming for a minute while processes behind the gateways are killed: all answers are whole and right."""

import asyncio
import random
import time

import pytest
from benchmarks.streams import DEFAULT_VOCAB
from tests.tools.load_client import OpenStreams, completion_body
from tests.tools.server import Server, running

from octavo.shared.oracle import expected_tokens

FLAGS = ("--device", "sim", "--sim-step-ms", "10", "--gateways", "2", "--tokenizers", "2")
SECONDS, REQUESTS_PER_S = 60.0, 15.0
KILLS = {"executor": 4, "scheduler": 4, "tokenizer": 6}  # five of one process in a minute would end the server
PREFIX = list(range(1000, 1064))
TIMEOUT_S = 120.0


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_no_request_is_lost_while_processes_die(seed: int) -> None:
    with running(*FLAGS) as server:
        faults, num_kills = asyncio.run(disturb(server, random.Random(seed)))
    assert num_kills == sum(KILLS.values())
    assert len(faults) > SECONDS * REQUESTS_PER_S / 2
    assert [fault for fault in faults if fault] == []


async def disturb(server: Server, draw: random.Random) -> tuple[list[str], int]:
    """What is wrong with each request, "" if nothing is, and how many processes were killed meanwhile."""
    began = time.monotonic()
    kills = sorted((draw.uniform(1, SECONDS - 1), role) for role, count in KILLS.items() for _ in range(count))
    num_kills, requests = 0, []
    while (now_s := time.monotonic() - began) < SECONDS:
        while kills and kills[0][0] < now_s and (victims := server.services(kills[0][1])):
            victims[0].kill()  # the one that has run the longest
            kills.pop(0)
            num_kills += 1
        prompt = PREFIX[: draw.choice([0, 16, 64])] + draw.choices(range(2000, 40_000), k=draw.randint(1, 200))
        requests.append(asyncio.create_task(fault_of_one(server, prompt, draw.randint(5, 150))))
        await asyncio.sleep(draw.expovariate(REQUESTS_PER_S))
    return await asyncio.gather(*requests), num_kills


async def fault_of_one(server: Server, prompt: list[int], num_tokens: int) -> str:
    with OpenStreams(server.host, server.port) as streams:
        await streams.open([completion_body(prompt, num_tokens)])
        (stream,) = await streams.finish(TIMEOUT_S)
    if stream.error or stream.token_ids != expected_tokens(prompt, num_tokens, DEFAULT_VOCAB):
        return stream.error or f"{len(stream.token_ids)} tokens of {num_tokens}, not the oracle's"
    return ""
