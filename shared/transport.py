"""Typed messages over ZeroMQ; the only file that imports zmq.

A Hub binds a ROUTER and answers many peers by their address; a Link connects a DEALER to one Hub. ZeroMQ is a
wire here, not a queue: whoever sends keeps what it would need to send again. Sends never block: a send that
returns False did not happen.
"""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Generic, NewType, TypeVar

import msgspec
import zmq

log = logging.getLogger(__name__)

Address = NewType("Address", bytes)
"""A Link as its Hub sees it. The Hub makes a new one for each connection: a process that has died, or lost its
connection and with it frames, is never mistaken for the one that was there before."""

In = TypeVar("In")

MAX_QUEUED_FRAMES = 20_000  # per peer; at one frame a step this is minutes of a stalled peer
MAX_FRAME_BYTES = 64 * 1024 * 1024
MAX_RECEIVE = 1_000  # frames taken at once, so that a flood cannot keep a loop from its other work
HEARTBEAT_S = 0.5  # from every main loop, on every edge
SILENCE_S = 5.0  # a peer that says nothing for so long is taken for dead


class _Socket(Generic[In]):
    """What Hub and Link share: options, encoding, and decoding that survives any frame."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", kind: int, incoming: object) -> None:
        self.socket = context.socket(kind)
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.SNDHWM, MAX_QUEUED_FRAMES),
            (zmq.RCVHWM, MAX_QUEUED_FRAMES),
            (zmq.MAXMSGSIZE, MAX_FRAME_BYTES),
            # For hosts that vanish without a word; our own heartbeats notice the rest, and a busy machine must
            # not cost connections.
            (zmq.HEARTBEAT_IVL, 2_000),
            (zmq.HEARTBEAT_TIMEOUT, 10_000),
            (zmq.HEARTBEAT_TTL, 10_000),
            (zmq.HANDSHAKE_IVL, 2_000),
        ):
            self.socket.setsockopt(option, value)
        self._encoder = msgspec.msgpack.Encoder()
        self._decoder: msgspec.msgpack.Decoder[In] = msgspec.msgpack.Decoder(incoming)

    @property
    def fd(self) -> int:
        """Becomes readable when something may have come; edge-triggered, so then receive until nothing is left."""
        return int(self.socket.getsockopt(zmq.FD))

    @property
    def has_input(self) -> bool:
        return bool(int(self.socket.getsockopt(zmq.EVENTS)) & zmq.POLLIN)

    def close(self) -> None:
        self.socket.close(0)

    def _frames(self) -> Iterator[list[bytes]]:
        for _ in range(MAX_RECEIVE):
            try:
                yield self.socket.recv_multipart(zmq.NOBLOCK)
            except zmq.Again:
                return

    def _decode(self, frame: bytes) -> In | None:
        try:
            return self._decoder.decode(frame)
        except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
            log.warning("dropped a frame", extra={"bytes": len(frame), "reason": str(error)})
            return None


class Hub(_Socket[In]):
    """The bound end: receives from many peers, sends to one of them by its address."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", endpoint: str, incoming: object) -> None:
        super().__init__(context, zmq.ROUTER, incoming)
        self.socket.setsockopt(zmq.ROUTER_MANDATORY, 1)
        self.socket.setsockopt(zmq.ROUTER_HANDOVER, 1)
        self.socket.bind(endpoint)

    def receive(self) -> list[tuple[Address, In]]:
        """All that has come, without waiting."""
        received = []
        for frames in self._frames():
            if len(frames) == 2 and (message := self._decode(frames[1])) is not None:
                received.append((Address(frames[0]), message))
        return received

    def send(self, to: Address, message: msgspec.Struct) -> bool:
        """False when that peer is gone or has stopped reading."""
        try:
            self.socket.send_multipart((to, self._encoder.encode(message)), zmq.NOBLOCK)
        except zmq.Again:
            log.warning("peer has stopped reading", extra={"peer": to.hex()})
            return False
        except zmq.ZMQError as error:
            if error.errno != zmq.EHOSTUNREACH:
                raise
            return False
        return True


class Link(_Socket[In]):
    """The connecting end: one Hub, which may come and go."""

    def __init__(self, context: "zmq.Context[zmq.Socket[bytes]]", endpoint: str, incoming: object) -> None:
        super().__init__(context, zmq.DEALER, incoming)
        self.socket.setsockopt(zmq.IMMEDIATE, 1)
        self.socket.setsockopt(zmq.RECONNECT_IVL, 50)
        self.socket.setsockopt(zmq.RECONNECT_IVL_MAX, 1_000)
        self.socket.connect(endpoint)

    def receive(self) -> list[In]:
        """All that has come, without waiting."""
        return [
            message
            for frames in self._frames()
            if len(frames) == 1 and (message := self._decode(frames[0])) is not None
        ]

    def send(self, message: msgspec.Struct) -> bool:
        """False when the Hub is not there or has stopped reading."""
        try:
            self.socket.send(self._encoder.encode(message), zmq.NOBLOCK)
        except zmq.Again:
            return False
        return True


def new_context() -> "zmq.Context[zmq.Socket[bytes]]":
    return zmq.Context()


def wait(sockets: "Sequence[Hub[In] | Link[In]]", timeout_s: float, fds: Sequence[int] = ()) -> None:
    """Sleep until one of the sockets has something to receive, a file descriptor is readable, or the time is over."""
    poller = zmq.Poller()
    for each in sockets:
        poller.register(each.socket, zmq.POLLIN)
    for fd in fds:
        poller.register(fd, zmq.POLLIN)
    poller.poll(max(0, int(timeout_s * 1000 + 0.999)))


def gateway_endpoint(folder: Path, index: int) -> str:
    """Where gateway number `index` waits for tokenizers."""
    return f"ipc://{folder}/gateway-{index}.sock"


def scheduler_endpoint(folder: Path) -> str:
    """Where the scheduler waits for tokenizers."""
    return f"ipc://{folder}/scheduler.sock"


def executor_endpoint(folder: Path) -> str:
    """Where the scheduler waits for its executor."""
    return f"ipc://{folder}/executor.sock"
