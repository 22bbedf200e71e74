"""The HTTP client of `LLM` and `octavo batch`: one answer for each body, with patience; and streams of events."""

import asyncio
import random
import resource
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
from typing import NamedTuple, TypeVar

import aiohttp

from octavo.services.llm.outputs import error_of
from octavo.shared.config import API_KEY_VARIABLE
from octavo.shared.errors import ConfigError, Unavailable

Item = TypeVar("Item")

PUT_OFF = frozenset({429, 502, 503, 504})
"""Answers that say: not now; the last ones are those of proxies."""
FIRST_PAUSE_S, LAST_PAUSE_S = 0.25, 15.0
CONNECT_S = 10.0
SPARE_FILES = 256  # of this process, for all that is not a connection


class Answer(NamedTuple):
    """A whole answer, whatever its status."""

    status: int
    request_id: str
    body: bytes


class Client:
    """Sends bodies to one server; belongs to the event loop that uses it first."""

    def __init__(
        self,
        url: str,
        api_key: str | None,
        retries: int = 0,
        timeout_s: float | None = None,
        is_alive: Callable[[], bool] = lambda: True,
    ) -> None:
        """
        Args:
            url: of the server, without a path.
            api_key: sent with every request, if there is one.
            retries: how often a body is sent again that was put off, or whose connection was lost.
            timeout_s: for an answer; None: as long as it takes.
            is_alive: False ends the retries, since nobody will answer.
        """
        self.url, self._retries, self._is_alive = url, retries, is_alive
        self._headers = {"Content-Type": "application/json"}
        if api_key:
            self._headers["Authorization"] = f"Bearer {api_key}"
        self._timeout = aiohttp.ClientTimeout(total=timeout_s, sock_connect=CONNECT_S)
        self._session: aiohttp.ClientSession | None = None

    async def check(self) -> None:
        """Raises ConfigError if there is no server, or if it does not take the key."""
        try:
            async with self._opened().get(self.url + "/v1/models") as response:
                status = response.status
        except (aiohttp.ClientError, OSError) as error:
            raise ConfigError(f"{self.url} does not answer ({_why(error)}): is `octavo serve` running?") from None
        if status in (401, 403):
            raise ConfigError(f"{self.url} answered {status}: the key is read from {API_KEY_VARIABLE}")

    async def post(self, path: str, body: bytes) -> Answer:
        """The answer to a body. Raises Unavailable if none comes, however often it is sent."""
        for attempt in range(self._retries + 1):
            answer, lost = None, ""
            try:
                async with self._opened().post(self.url + path, data=body) as response:
                    answer = Answer(response.status, response.headers.get("X-Request-Id", ""), await response.read())
                pause_s = _seconds(response.headers.get("Retry-After"))
                if answer.status not in PUT_OFF:
                    return answer
            except TimeoutError:
                lost, pause_s = f"no answer within {self._timeout.total} s", 0.0
            except (aiohttp.ClientError, OSError) as error:
                lost, pause_s = _why(error), 0.0
            if attempt == self._retries or not self._is_alive():
                break
            grown_s = FIRST_PAUSE_S * 2**attempt * random.uniform(0.5, 1.0)  # not all at the same time
            await asyncio.sleep(min(max(grown_s, pause_s), LAST_PAUSE_S))
        if answer is not None:
            return answer
        raise Unavailable(f"{self.url} does not answer ({lost})")

    async def open(self, path: str, body: bytes) -> aiohttp.ClientResponse:
        """The beginning of a streamed answer; closing it early ends the request at the server.

        Raises RequestError for another status than 200, and Unavailable when the connection is lost.
        """
        try:
            response = await self._opened().post(self.url + path, data=body)
            if response.status != 200:
                async with response:
                    raise error_of(response.status, await response.read())
        except (aiohttp.ClientError, OSError) as error:
            raise Unavailable(f"{self.url} does not answer ({_why(error)})") from None
        return response

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    def _opened(self) -> aiohttp.ClientSession:
        if self._session is None:
            connector = aiohttp.TCPConnector(limit=0)
            self._session = aiohttp.ClientSession(connector=connector, headers=self._headers, timeout=self._timeout)
        return self._session


async def read_events(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The data of each event of a streamed answer. Raises Unavailable when the connection is lost."""
    rest = b""
    try:
        # Lines have no bound: the first one may hold all token ids of a prompt.
        async for piece in response.content.iter_any():
            *lines, rest = (rest + piece).split(b"\n")
            for line in lines:
                data = line.removeprefix(b"data: ").strip()
                if line.startswith(b"data: ") and data != b"[DONE]":
                    yield data
    except (aiohttp.ClientError, OSError) as error:
        raise Unavailable(f"the server broke off ({_why(error)})") from None


async def run_all(items: Iterable[Item], do: Callable[[Item], Awaitable[None]], concurrency: int) -> None:
    """Do something with every item, so many at once, in their order; the first exception ends all."""
    waiting = iter(items)

    async def work() -> None:
        for item in waiting:
            await do(item)

    try:
        async with asyncio.TaskGroup() as group:
            for _ in range(concurrency):
                group.create_task(work())
    except ExceptionGroup as several:
        raise several.exceptions[0] from None


def affordable_connections(wanted: int) -> int:
    """How many of the wanted connections this process may open; raises its soft limit of open files for them."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = wanted + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < needed:
        soft = needed if hard == resource.RLIM_INFINITY else min(needed, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return wanted if soft == resource.RLIM_INFINITY else max(1, min(wanted, soft - SPARE_FILES))


def _seconds(retry_after: str | None) -> float:
    return float(retry_after) if retry_after and retry_after.isdecimal() else 0.0


def _why(error: Exception) -> str:
    """aiohttp's own texts speak of its settings."""
    return getattr(error, "strerror", None) or str(error) or type(error).__name__
