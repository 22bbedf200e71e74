"""A process that sends streamed requests and notes what comes when; `serve.py` starts several and joins them.

While streams run, a piece of data costs two appends; a stream is read when it has ended.

    stdin    a line with a Job as JSON; when all clients are prepared, an empty line: go
    stdout   a line when prepared; at the end a Report in msgpack
"""

import asyncio
import json
import random
import resource
import signal
import sys
import time
from collections.abc import Iterator

import msgspec

from octavo.services.bench.stream import read_answer

WORDS = (
    "time year people way day man thing woman life child world school state family student group country problem hand "
    "part place case week company system program question work government number night point home water room mother "
    "area money story fact month lot right study book eye job word business issue side kind head house service friend "
    "the of and to in is that it was for on are as with his they at be this from have or by one had not but what all"
).split()


class Job(msgspec.Struct, frozen=True):
    """What one client is to do."""

    host: str
    port: int
    is_tls: bool
    head: str
    """Of each HTTP request, up to the length of its body."""
    is_chat: bool
    fields: dict[str, object]
    """Of each body, besides the prompt."""
    num_requests: int
    concurrency: int
    """Requests that are open at a time; 0: they are sent at `rate`."""
    rate: float
    """Requests a second, at random times."""
    num_words: int
    seed: int
    timeout_s: float
    """For one request."""


class Outcome(msgspec.Struct, frozen=True, array_like=True):
    """One request; times by the clock that all processes of a machine share."""

    began_s: float
    ended_s: float
    token_times: list[float]
    input_tokens: int
    output_tokens: int
    error: str


class Report(msgspec.Struct, frozen=True, array_like=True):
    outcomes: list[Outcome]
    core_share: float
    """CPU time that the client took, of the time that it ran."""


class _Connection(asyncio.Protocol):
    """Sends one request and keeps what comes, until the server closes and `ended` is set."""

    def __init__(self, request: bytes, ended: "asyncio.Future[None]") -> None:
        self.pieces: list[bytes] = []
        self.times: list[float] = []
        self._request = request
        self.ended = ended

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.times.append(time.perf_counter())
        self.pieces.append(data)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.ended.done():
            self.ended.set_result(None)


class Client:
    """Runs a job."""

    def __init__(self, job: Job) -> None:
        self._job = job
        self._random = random.Random(job.seed)
        self._requests = [self._request() for _ in range(job.num_requests)]
        self._outcomes: list[Outcome] = []

    def run(self) -> Report:
        """Send all requests; returns when the last one has ended."""
        cpu_s, began = time.process_time(), time.perf_counter()
        asyncio.run(self._run_at_rate() if self._job.rate else self._run_concurrently())
        wall_s = time.perf_counter() - began
        return Report(self._outcomes, (time.process_time() - cpu_s) / wall_s)

    async def _run_concurrently(self) -> None:
        requests = iter(self._requests)
        await asyncio.gather(*(self._work(requests) for _ in range(self._job.concurrency)))

    async def _work(self, requests: Iterator[bytes]) -> None:
        for request in requests:
            await self._send(request)

    async def _run_at_rate(self) -> None:
        due, sent = time.perf_counter(), []
        for request in self._requests:
            due += self._random.expovariate(self._job.rate)
            await asyncio.sleep(max(0.0, due - time.perf_counter()))
            sent.append(asyncio.create_task(self._send(request)))
        await asyncio.gather(*sent)

    async def _send(self, request: bytes) -> None:
        loop, job = asyncio.get_running_loop(), self._job
        connection = _Connection(request, loop.create_future())
        transport = None
        began, failure = time.perf_counter(), ""
        try:
            async with asyncio.timeout(job.timeout_s):
                transport, _ = await loop.create_connection(
                    lambda: connection, job.host, job.port, ssl=True if job.is_tls else None
                )
                await connection.ended
        except TimeoutError:
            failure = f"not finished after {job.timeout_s:.0f} s (--timeout)"
        except OSError as error:
            failure = f"no connection: {error.strerror or error}"
        finally:
            if transport is not None:
                transport.abort()
        ended = connection.times[-1] if connection.times else time.perf_counter()
        answer = read_answer(connection.pieces, connection.times)
        self._outcomes.append(
            Outcome(
                began, ended, answer.token_times, answer.input_tokens, answer.output_tokens, failure or answer.error
            )
        )

    def _request(self) -> bytes:
        prompt = " ".join(self._random.choices(WORDS, k=self._job.num_words))
        asked = {"messages": [{"role": "user", "content": prompt}]} if self._job.is_chat else {"prompt": prompt}
        body = json.dumps(asked | self._job.fields).encode()
        return f"{self._job.head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def main() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the one that started us ends us
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))  # every connection is a file
    client = Client(msgspec.json.decode(sys.stdin.buffer.readline(), type=Job))
    print("prepared", flush=True)
    if sys.stdin.buffer.readline():
        sys.stdout.buffer.write(msgspec.msgpack.encode(client.run()))


if __name__ == "__main__":
    main()
