"""A load client that is cheap enough to measure the server and not itself.

While streams run, a piece of data costs one append; everything is parsed after the last stream has ended.
"""

import asyncio
import json
import resource
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from octavo.shared.oracle import expected_tokens

DONE = "[DONE]"


class _Choice(msgspec.Struct):
    index: int
    text: str = ""
    finish_reason: str | None = None
    token_ids: list[int] = []
    prompt_token_ids: list[int] | None = None


class _Usage(msgspec.Struct):
    prompt_tokens: int
    completion_tokens: int


class _Event(msgspec.Struct):
    choices: list[_Choice] = []
    usage: _Usage | None = None
    error: dict[str, object] | None = None


_decode_event = msgspec.json.Decoder(_Event).decode


@dataclass
class Stream:
    """What came back for one request, and when."""

    status: int = 0
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    finish_reasons: list[str] = field(default_factory=list)
    usage: _Usage | None = None
    error: str = ""
    """Anything that is wrong with the stream itself; empty: it is whole."""
    num_events: int = 0
    start_s: float = 0.0
    arrivals_s: list[float] = field(default_factory=list)
    """When each piece of the body came; a piece has one event or more."""

    @property
    def first_s(self) -> float:
        """Time to the first piece of the body."""
        return self.arrivals_s[0] - self.start_s

    @property
    def gaps_s(self) -> list[float]:
        return [late - early for early, late in zip(self.arrivals_s, self.arrivals_s[1:], strict=False)]


def completion_body(prompt_ids: Sequence[int], max_tokens: int, **fields: object) -> bytes:
    """A streaming request whose tokens can be compared with the oracle's."""
    body = {"prompt": list(prompt_ids), "max_tokens": max_tokens, "stream": True, "ignore_eos": True}
    return json.dumps(body | {"return_token_ids": True} | fields).encode()


def fault_of(stream: Stream, prompt: Sequence[int], num_tokens: int, vocab_size: int) -> str:
    """What is wrong with a stream of `--device sim` that was to have so many tokens; "" if it is the oracle's."""
    wanted = expected_tokens(prompt, num_tokens, vocab_size)
    if stream.error or stream.token_ids != wanted:
        same = [ours == right for ours, right in zip(stream.token_ids, wanted, strict=False)]
        return f"{len(stream.token_ids)} tokens, {sum(same)} of them right; {stream.error}"
    return "" if stream.finish_reasons == ["length"] else f"it ends with {stream.finish_reasons}"


class _Connection(asyncio.Protocol):
    """Sends one request and keeps what comes, until the server closes."""

    def __init__(self, request: bytes, ended: "asyncio.Future[None]") -> None:
        self.pieces: list[bytes] = []
        self.times: list[float] = []
        self.start_s = 0.0
        self.transport: asyncio.Transport | None = None
        self._request = request
        self._ended = ended

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self.transport = transport
        self.start_s = time.monotonic()
        transport.write(self._request)

    def data_received(self, data: bytes) -> None:
        self.pieces.append(data)
        self.times.append(time.monotonic())

    def connection_lost(self, error: Exception | None) -> None:
        if not self._ended.done():
            self._ended.set_result(None)


async def run_streams(
    host: str, port: int, bodies: Sequence[bytes], timeout_s: float, path: str = "/v1/completions"
) -> list[Stream]:
    """Send all bodies at once, each on a connection of its own; returns the streams in the bodies' order.

    Streams that have not ended when the time is over are cut, and say so in `error`.
    """
    with OpenStreams(host, port, path) as streams:
        await streams.open(bodies)
        return await streams.finish(timeout_s)


class OpenStreams:
    """Streams that are under way, for tests that disturb them."""

    def __init__(self, host: str, port: int, path: str = "/v1/completions") -> None:
        self._host, self._port, self._path = host, port, path
        self._connections: list[_Connection] = []
        self._ends: list[asyncio.Future[None]] = []

    def __enter__(self) -> "OpenStreams":
        _allow_files()
        return self

    def __exit__(self, *error: object) -> None:
        self.cut()

    @property
    def num_pieces(self) -> list[int]:
        """How many pieces of data each stream has received."""
        return [len(connection.pieces) for connection in self._connections]

    async def open(self, bodies: Sequence[bytes]) -> None:
        """Connect and send."""
        for body in bodies:
            self._ends.append(asyncio.get_running_loop().create_future())
            self._connections.append(_Connection(self._request(body), self._ends[-1]))
        await asyncio.gather(*(self._connect(each) for each in self._connections[-len(bodies) :]))

    async def until_all_have(self, num_pieces: int, timeout_s: float) -> None:
        """Wait until every stream has received so many pieces. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while min(self.num_pieces) < num_pieces:
                await asyncio.sleep(0.005)

    async def finish(self, timeout_s: float) -> list[Stream]:
        """Wait for all to end, then read what they brought."""
        await asyncio.wait(self._ends, timeout=timeout_s)
        return [_read(each, ended.done()) for each, ended in zip(self._connections, self._ends, strict=True)]

    def cut(self) -> None:
        """Close all connections as a client does that goes away."""
        for connection in self._connections:
            if connection.transport is not None:
                connection.transport.abort()

    async def _connect(self, connection: _Connection) -> None:
        await asyncio.get_running_loop().create_connection(lambda: connection, self._host, self._port)

    def _request(self, body: bytes) -> bytes:
        return (
            f"POST {self._path} HTTP/1.1\r\nHost: {self._host}:{self._port}\r\nConnection: close\r\n"
            f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
        ).encode() + body


def _read(connection: _Connection, has_ended: bool) -> Stream:
    head, _, body = b"".join(connection.pieces).partition(b"\r\n\r\n")
    stream = Stream(start_s=connection.start_s, arrivals_s=connection.times)
    if not head:
        stream.error = "no answer" if has_ended else "no answer in time"
        return stream
    stream.status = int(head.split(None, 2)[1])
    if b"transfer-encoding: chunked" not in head.lower():
        stream.error = f"{stream.status}: {body[:300].decode(errors='replace')}"
        return stream
    content, is_whole = _join_chunks(body)
    events = [event.removeprefix("data: ") for event in content.decode().split("\n\n") if event.startswith("data: ")]
    _read_events(events, stream)
    if not stream.error and not (is_whole and events and events[-1] == DONE):
        stream.error = f"cut after {len(events)} events" + ("" if has_ended else ": time was over")
    return stream


def _read_events(events: Sequence[str], stream: Stream) -> None:
    for data in events:
        if data == DONE:
            continue
        event = _decode_event(data)
        stream.num_events += 1
        stream.usage = event.usage or stream.usage
        if event.error is not None:
            stream.error = str(event.error)
        for choice in event.choices:
            stream.text += choice.text
            stream.token_ids += choice.token_ids
            if choice.finish_reason is not None:
                stream.finish_reasons.append(choice.finish_reason)


def _join_chunks(body: bytes) -> tuple[bytes, bool]:
    """The content of a chunked body, and whether its end has come."""
    content: list[bytes] = []
    place = 0
    while (line_end := body.find(b"\r\n", place)) >= 0:
        size = int(body[place:line_end], 16)
        if size == 0:
            return b"".join(content), True
        content.append(body[line_end + 2 : line_end + 2 + size])
        place = line_end + 2 + size + 2
    return b"".join(content), False


def _allow_files() -> None:
    """Every connection is a file."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
