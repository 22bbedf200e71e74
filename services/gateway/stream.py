"""A call's answer: waits for its first bytes, so that an error has its true status, then forwards what comes.

The bytes of every chunk arrive complete from the tokenizer; nothing here looks into them.
"""

import asyncio
import logging
import socket
import time

from aiohttp import web

from octavo.services.gateway.call import Call
from octavo.services.gateway.kept_events import KeptEvents
from octavo.services.gateway.manner import Manner
from octavo.services.gateway.metrics import Metrics
from octavo.shared.errors import RequestError

log = logging.getLogger(__name__)

SEND_BUFFER_BYTES = 64 * 1024  # with the kernel's default an idle client holds 4 MB before it shows
MAX_WRITE_BYTES = 32 * 1024  # below aiohttp's own limit, at which its write would wait without a timeout
STALL_S = 30.0  # a client that takes nothing for so long is cut
EVENT_HEADERS = {"Content-Type": "text/event-stream", "Cache-Control": "no-cache"}
JSON_HEADERS = {"Content-Type": "application/json"}


async def answer_stream(
    request: web.Request, call: Call | KeptEvents, metrics: Metrics, started_s: float, manner: Manner
) -> web.StreamResponse:
    """Forward a call's chunks as they come, all that are queued in one write. Kept events are not counted again.

    Raises:
        RequestError: the call failed before its first chunk; afterwards an error is an event of the stream.
    """
    chunk = b""
    while not chunk and not call.has_ended:
        chunk = await call.take()
    if isinstance(call, Call):
        metrics.note_first_token(request, time.monotonic() - started_s)
    response = web.StreamResponse(headers=EVENT_HEADERS)
    try:
        client = await _Client.prepare(request, response)
        try:
            while not call.has_ended:
                await client.write(chunk or manner.keepalive)
                chunk = await call.take()
            await manner.finish(chunk)
            if chunk:
                await client.write(chunk)
        except RequestError as error:
            response.force_close()
            await client.write(await manner.fail(error, call.num_events))
        await response.write_eof()
        if call.has_ended and isinstance(call, Call):
            metrics.note_end(request, call, time.monotonic() - started_s)
    except ConnectionError as error:
        log.debug("client gone", extra={"call": call.id.hex(), "reason": str(error)})
    return response


async def answer_whole(
    request: web.Request, call: Call, metrics: Metrics, started_s: float, manner: Manner
) -> web.StreamResponse:
    """Collect a call's one JSON body and send it.

    Raises:
        RequestError: the call failed.
    """
    parts = []
    while not call.has_ended:
        parts.append(await call.take())
    body = b"".join(parts)
    await manner.finish(body)
    response = web.StreamResponse(headers=JSON_HEADERS)
    response.content_length = len(body)
    try:
        client = await _Client.prepare(request, response)
        await client.write(body)
        await response.write_eof()
        metrics.note_end(request, call, time.monotonic() - started_s)
    except ConnectionError as error:
        log.debug("client gone", extra={"call": call.id.hex(), "reason": str(error)})
    return response


class _Client:
    """Writes to one client, never more at once than it takes, and cuts it when it takes nothing."""

    def __init__(self, request: web.Request, response: web.StreamResponse, transport: asyncio.Transport) -> None:
        self._writer = request.writer
        self._response = response
        self._transport = transport

    @classmethod
    async def prepare(cls, request: web.Request, response: web.StreamResponse) -> "_Client":
        """Send the headers.

        Raises:
            ConnectionError: the client is gone.
        """
        transport = request.transport
        if transport is None:
            raise ConnectionResetError("gone before the first byte")
        connection = transport.get_extra_info("socket")
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, SEND_BUFFER_BYTES)
        transport.set_write_buffer_limits(high=0)  # so that drain waits until the kernel has everything
        client = cls(request, response, transport)
        await response.prepare(request)
        return client

    async def write(self, data: bytes) -> None:
        """Returns when the kernel has taken everything.

        Raises:
            ConnectionError: the client is gone, or was cut.
        """
        if len(data) <= MAX_WRITE_BYTES:
            await self._write(data)
            return
        for start in range(0, len(data), MAX_WRITE_BYTES):
            await self._write(data[start : start + MAX_WRITE_BYTES])

    async def _write(self, data: bytes) -> None:
        self._writer.buffer_size = 0
        await self._response.write(data)
        while size := self._transport.get_write_buffer_size():
            try:
                async with asyncio.timeout(STALL_S):
                    await self._writer.drain()
            except TimeoutError:
                if self._transport.get_write_buffer_size() >= size:
                    self._transport.abort()
                    raise ConnectionResetError(f"took nothing for {STALL_S:.0f} s") from None
