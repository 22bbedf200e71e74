"""A tokenizer worker without a tokenizer: it answers every Generate with what its script says."""

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from pathlib import Path
from types import TracebackType

from octavo.shared.messages import (
    TO_GATEWAY,
    TO_TOKENIZER_FROM_GATEWAY,
    CancelCall,
    Generate,
    Heartbeat,
    Serving,
    Stats,
    Text,
    pack,
)
from octavo.shared.transport import HEARTBEAT_S, Link, gateway_endpoint, new_context, wait

Script = Callable[[Generate], Iterable[TO_GATEWAY]]

DEADLINE_S = 60.0
DONE = b"data: [DONE]\n\n"


def text(
    call: Generate,
    chunk: bytes,
    choice: int = 0,
    token_ids: Iterable[int] = (),
    num_chars: int = 0,
    is_last: bool = False,
) -> Text:
    """A Text of one entry, for a call as it was sent."""
    return Text([call.id], [chunk], [choice], [pack(token_ids)], [num_chars], [0] if is_last else [], [call.attempt])


def echo(generate: Generate) -> list[TO_GATEWAY]:
    """The script that answers with the request's own body."""
    return [text(generate, generate.body, is_last=True)]


def nothing(generate: Generate) -> list[TO_GATEWAY]:
    """The script that leaves every call open."""
    return []


class FakeTokenizer:
    """A worker in a thread of its own, so that it can serve a gateway in any process. A context manager."""

    def __init__(self, folder: Path, script: Script = echo, is_ready: bool = True, index: int = 0) -> None:
        """Connect to a gateway.

        Args:
            folder: the gateway's runtime folder.
            script: gives the answers to a Generate, sent in order.
            is_ready: what its heartbeats say.
            index: the gateway's number.
        """
        self.received: list[Generate | CancelCall] = []
        self.is_ready = is_ready
        self.has_greeted = False
        self.stats: Stats | None = None
        self._script = script
        self._outbox: deque[TO_GATEWAY] = deque()
        self._is_stopping = False
        self._context = new_context()
        self._link: Link[TO_TOKENIZER_FROM_GATEWAY] = Link(
            self._context, gateway_endpoint(folder, index), TO_TOKENIZER_FROM_GATEWAY
        )
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> "FakeTokenizer":
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.die()

    def die(self) -> None:
        """Go away without a word."""
        self._is_stopping = True
        self._thread.join(DEADLINE_S)

    def say(self, message: TO_GATEWAY) -> None:
        """Send something on top of what the script sends."""
        self._outbox.append(message)

    def generates(self) -> list[Generate]:
        return [message for message in self.received if isinstance(message, Generate)]

    def cancels(self) -> list[CancelCall]:
        return [message for message in self.received if isinstance(message, CancelCall)]

    def _run(self) -> None:
        self._outbox.append(Serving(os.urandom(8)))
        said_ready: bool | None = None
        next_beat = 0.0
        while not self._is_stopping:
            wait([self._link], 0.005)
            for message in self._link.receive():
                if isinstance(message, Generate | CancelCall):
                    self.received.append(message)
                if isinstance(message, Generate):
                    self._outbox.extend(self._script(message))
            if self.is_ready != said_ready or time.monotonic() >= next_beat:
                said_ready = self.is_ready
                next_beat = time.monotonic() + HEARTBEAT_S
                self._outbox.append(Heartbeat(said_ready, self.stats))
            while self._outbox and self._link.send(self._outbox[0]):
                self._outbox.popleft()
                self.has_greeted = True
        self._link.close()
        self._context.term()
