"""A whole gateway on a free port, inside the test's event loop, and a client for it."""

import asyncio
import ssl
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
from tests.tools.fake_tokenizer import DEADLINE_S

from octavo.services.gateway.service import Gateway
from octavo.shared.config import Config

MODEL = "test-model"
CHAT_BODY = {"messages": [{"role": "user", "content": "Hi"}]}


@dataclass
class Running:
    """A gateway that serves, and a session whose paths are relative to it."""

    gateway: Gateway
    address: str
    client: aiohttp.ClientSession
    stop: Callable[[], Coroutine[None, None, None]]
    """Ends the main loop and the gateway, as SIGTERM does; the end of the block does it too."""


@asynccontextmanager
async def running(
    folder: Path, api_key: str | None = None, client_tls: ssl.SSLContext | bool = True, index: int = 0, **settings: Any
) -> AsyncIterator[Running]:
    """Serve until the end of the block; the settings are those of Config.

    index: which gateway of those in the folder it is.
    """
    keys = None if api_key is None else api_key.split(",")
    config = Config(**{"port": 0, "served_model_name": [MODEL], "api_key": keys, **settings})
    gateway = Gateway(config, folder, index)
    stopping = asyncio.Event()
    address = await gateway.start()
    loop = asyncio.create_task(gateway.run(stopping.is_set))

    async def stop() -> None:
        if not stopping.is_set():
            stopping.set()
            loop.cancel()  # its next turn, at which it would end, may be 0.2 s away
            await asyncio.wait([loop])
            if not loop.cancelled():
                loop.result()  # raises what it ended with
            await gateway.stop()

    try:
        connector = aiohttp.TCPConnector(ssl=client_tls)
        timeout = aiohttp.ClientTimeout(DEADLINE_S)
        async with aiohttp.ClientSession(address, connector=connector, timeout=timeout) as client:
            yield Running(gateway, address, client, stop)
    finally:
        await stop()


async def until(is_true: Callable[[], bool]) -> None:
    """Wait for a condition.

    Raises:
        TimeoutError: it did not come true within DEADLINE_S.
    """
    deadline = time.monotonic() + DEADLINE_S
    while not is_true():
        if time.monotonic() > deadline:
            raise TimeoutError
        await asyncio.sleep(0.005)


async def until_ready(client: aiohttp.ClientSession, status: int = 200) -> None:
    """Wait until /readyz answers with a status.

    Raises:
        TimeoutError: it did not within DEADLINE_S.
    """
    async with asyncio.timeout(DEADLINE_S):
        while True:
            async with client.get("/readyz") as response:
                await response.read()
                if response.status == status:
                    return
            await asyncio.sleep(0.005)


async def read_until(response: aiohttp.ClientResponse, end: bytes) -> bytes:
    """What comes from a stream up to and with `end`.

    Raises:
        TimeoutError: it did not come within DEADLINE_S.
    """
    async with asyncio.timeout(DEADLINE_S):
        return await response.content.readuntil(end)
