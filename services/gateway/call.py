"""Call: one open HTTP request, from the side that waits for its bytes, with the journal to send it again."""

import asyncio
import time

import msgspec

from octavo.shared.errors import RequestError
from octavo.shared.messages import CallId, Generate, Progress, Spent
from octavo.shared.transport import Address

KEEPALIVE_S = 15.0  # proxies commonly drop a connection that is silent for 30 to 60 s


class _Sent:
    """What the client has been sent of one choice."""

    __slots__ = ("at_s", "num_chars", "token_ids")

    def __init__(self) -> None:
        self.token_ids = bytearray()
        self.num_chars = 0
        self.at_s = 0.0  # when the last tokens came


class Call:
    """Chunks go in by `deliver`, `end` and `fail`, and come out by `take`: in order, all, and then the error.

    Only one task may take. Everything happens on the event loop's thread.
    """

    __slots__ = (
        "id",
        "num_events",
        "num_sends",
        "spent",
        "worker",
        "_chunks",
        "_error",
        "_generate",
        "_is_complete",
        "_journal",
        "_waiter",
        "_waits_since",
    )

    def __init__(self, generate: Generate) -> None:
        self.id: CallId = generate.id
        self.worker: Address | None = None  # who works on it; None: nobody yet, or no longer
        self.num_sends = 0
        self.num_events = 0  # that its client has been sent, where they are numbered
        self.spent: Spent | None = None
        """Of a complete one that led to completions."""
        self._generate = generate
        self._journal: dict[int, _Sent] = {}
        self._chunks: list[bytes] = []
        self._error: RequestError | None = None
        self._is_complete = False
        self._waiter: asyncio.Future[None] | None = None
        self._waits_since = 0.0

    @property
    def has_ended(self) -> bool:
        """Complete, and everything was taken. A failed call never is: `take` raises instead."""
        return self._is_complete and not self._chunks

    def message(self, attempt: int) -> Generate:
        """The call as a worker must get it this time, so that it goes on where the client's stream is."""
        progress = {
            choice: Progress(bytes(sent.token_ids), sent.num_chars, self.num_events)
            for choice, sent in self._journal.items()
        }
        return msgspec.structs.replace(self._generate, progress=progress, attempt=attempt)

    def deliver(self, chunk: bytes, choice: int, token_ids: bytes, num_chars: int, now: float) -> float | None:
        """Queue a chunk and note it in the journal.

        Returns:
            Seconds since the choice's tokens before; None if there are none, or were none.
        """
        sent = self._journal.get(choice)
        if sent is None:
            sent = self._journal[choice] = _Sent()
        since_s = None
        if token_ids:
            since_s = now - sent.at_s if sent.token_ids else None
            sent.at_s = now
            sent.token_ids += token_ids
        sent.num_chars = num_chars
        if chunk:
            self._chunks.append(chunk)
            self._wake()
        return since_s

    def end(self, spent: Spent | None = None) -> None:
        """Nothing follows."""
        self.worker, self.spent = None, spent
        self._is_complete = True
        self._wake()

    def fail(self, error: RequestError) -> None:
        """Nothing follows but this error."""
        self.worker = None
        self._error = error
        self._wake()

    def nudge(self, now: float) -> None:
        """Let `take` return empty-handed if it has waited for KEEPALIVE_S."""
        # One look at all calls every tick is far cheaper than one timer for every chunk.
        if self._waiter is not None and now - self._waits_since >= KEEPALIVE_S:
            self._wake()

    async def take(self) -> bytes:
        """All bytes since the last time; waits for some. Empty: none came for KEEPALIVE_S, or the end did.

        Raises:
            RequestError: the call failed, and all that came before has been taken.
        """
        if not self._chunks and self._error is None and not self._is_complete:
            self._waits_since = time.monotonic()
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        chunks = self._chunks
        if not chunks:
            if self._error is not None:
                raise self._error
            return b""
        self._chunks = []
        return chunks[0] if len(chunks) == 1 else b"".join(chunks)

    def _wake(self) -> None:
        waiter = self._waiter
        if waiter is not None:
            self._waiter = None
            if not waiter.done():
                waiter.set_result(None)
