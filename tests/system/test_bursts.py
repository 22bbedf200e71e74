"""A burst of prompts is encoded beside the text of those that decode, not before it."""

import asyncio

import aiohttp
from tests.tools.server import Server, running

BURST = 48
PROMPT = "many words " * 1500  # milliseconds to encode
LEAST_PIECES = 60


def test_text_does_not_wait_until_a_burst_of_prompts_is_encoded() -> None:
    with running("--device", "sim", "--sim-step-ms", "1", "--max-num-batched-tokens", "200000") as server:
        pieces = asyncio.run(pieces_between_the_answers_of_a_burst(server))
    assert pieces >= LEAST_PIECES


async def pieces_between_the_answers_of_a_burst(server: Server) -> int:
    """Of a stream: how many come after the first answer to the burst, and before the last."""
    count, seen = 0, []
    has_begun = asyncio.Event()

    async def stream(session: aiohttp.ClientSession) -> None:
        nonlocal count
        body = {"prompt": "Once", "max_tokens": 6000, "ignore_eos": True, "stream": True}
        async with session.post(f"{server.url}/v1/completions", json=body) as response:
            async for line in response.content:
                count += line.startswith(b"data:")
                has_begun.set()

    async def ask(session: aiohttp.ClientSession) -> None:
        body = {"prompt": PROMPT, "max_tokens": 1}
        async with session.post(f"{server.url}/v1/completions", json=body) as response:
            assert response.status == 200, await response.text()
        seen.append(count)

    async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(limit=0)) as session:
        streaming = asyncio.create_task(stream(session))
        await has_begun.wait()
        await asyncio.gather(*(ask(session) for _ in range(BURST)))
        streaming.cancel()
        await asyncio.gather(streaming, return_exceptions=True)
    return seen[-1] - seen[0]
