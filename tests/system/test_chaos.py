"""Requests keep coming for a minute while processes behind the gateways are killed: all answers are whole and right."""

import asyncio
import random
import time

import pytest
from benchmarks.streams import DEFAULT_VOCAB
from tests.tools.load_client import completion_body, fault_of, run_streams
from tests.tools.server import Server, running

FLAGS = ("--device", "sim", "--sim-step-ms", "10", "--gateways", "2", "--tokenizers", "2")
SECONDS, REQUESTS_PER_S = 60.0, 15.0
KILLS = {"executor": 4, "scheduler": 4, "tokenizer": 6}  # five of one process in a minute would end the server
PREFIX = list(range(1000, 1064))
TIMEOUT_S = 120.0


@pytest.mark.slow
@pytest.mark.parametrize("seed", [1, 2])
def test_no_request_is_lost_while_processes_die(seed: int) -> None:
    with running(*FLAGS) as server:
        faults, kills_left = asyncio.run(disturb(server, random.Random(seed)))
    assert kills_left == 0
    assert len(faults) > SECONDS * REQUESTS_PER_S / 2
    assert [fault for fault in faults if fault] == []


async def disturb(server: Server, draw: random.Random) -> tuple[list[str], int]:
    """What is wrong with each request, "" if nothing is, and how many of the kills did not take place."""
    began = time.monotonic()
    kills = sorted((draw.uniform(1, SECONDS - 1), role) for role, count in KILLS.items() for _ in range(count))
    requests = []
    while (now_s := time.monotonic() - began) < SECONDS:
        while kills and kills[0][0] < now_s and (victims := server.services(kills[0][1])):
            victims[0].kill()  # the one that has run the longest
            kills.pop(0)
        prompt = PREFIX[: draw.choice([0, 16, 64])] + draw.choices(range(2000, 40_000), k=draw.randint(1, 200))
        requests.append(asyncio.create_task(fault_of_one(server, prompt, draw.randint(5, 150))))
        await asyncio.sleep(draw.expovariate(REQUESTS_PER_S))
    return await asyncio.gather(*requests), len(kills)


async def fault_of_one(server: Server, prompt: list[int], num_tokens: int) -> str:
    (stream,) = await run_streams(server.host, server.port, [completion_body(prompt, num_tokens)], TIMEOUT_S)
    return fault_of(stream, prompt, num_tokens, DEFAULT_VOCAB)
