"""KeptEvents: the events of a response in the background, read from the store while they come."""

import asyncio
import time

from octavo.services.gateway.call import KEEPALIVE_S
from octavo.services.gateway.response_store import ResponseStore

LOOK_S = 0.05  # between two looks for new ones
_END = b"\n\n"  # of an event; its JSON has no newlines


class KeptEvents:
    """To be taken like those of a `Call`, by any number of readers, at any gateway."""

    def __init__(self, store: ResponseStore, tenant: bytes, id: str, starts_at: int = 0) -> None:
        """starts_at: the first event that is wanted; they are numbered from 0."""
        self.id = id.encode()
        self.num_events = 0
        """That have been read."""
        self.has_ended = False
        self._store, self._tenant, self._id = store, tenant, id
        self._starts_at, self._at, self._rest = starts_at, 0, b""

    async def take(self) -> bytes:
        """All whole events since the last time; waits for some. Empty: none came for KEEPALIVE_S, or the end did.

        The end comes without a last event where the response was cancelled, or its gateway has died.
        """
        deadline_s = time.monotonic() + KEEPALIVE_S
        while time.monotonic() < deadline_s:
            found = await asyncio.to_thread(self._store.read_events, self._tenant, self._id, self._at)
            data, may_follow = found or (b"", False)
            self._at += len(data)
            if not (data or may_follow):
                self.has_ended = True
                break
            *events, self._rest = (self._rest + data).split(_END)
            wanted = events[max(0, self._starts_at - self.num_events) :]
            self.num_events += len(events)
            if wanted:
                return b"".join(event + _END for event in wanted)
            await asyncio.sleep(LOOK_S)
        return b""
