"""Workers: the tokenizer workers that have greeted this gateway, and which open call each works on.

A call belongs to one worker at a time. When its worker dies it is sent to another one with its journal, and
what the first one may still say of it is ignored.
"""

import asyncio
import logging
import time

from octavo.services.gateway.call import Call
from octavo.shared.errors import Internal, Overloaded, RequestError, Unavailable, from_info
from octavo.shared.histogram import Histogram
from octavo.shared.messages import (
    TO_GATEWAY,
    CallFailed,
    CallId,
    CancelCall,
    Generate,
    Heartbeat,
    ModelInfo,
    Serving,
    Stats,
    Text,
)
from octavo.shared.transport import SILENCE_S, Address, Hub

log = logging.getLogger(__name__)

MAX_SENDS = 3  # a call whose text kills tokenizers must not kill all of them
MAX_WAIT_S = 30.0  # for a worker: of a call, and of those who come when none is ready
RETRY_AFTER_S = 1


class _Worker:
    """A live tokenizer worker."""

    def __init__(self, address: Address) -> None:
        self.address = address
        self.heard_s = 0.0
        self.is_ready = False
        self.turn = 0  # of the last call that it got; the lowest goes first among equals
        self.calls: dict[CallId, Call] = {}


class Workers:
    """Sends calls to workers, and their chunks back to the calls. Belongs to the event loop's thread."""

    def __init__(self, hub: Hub[TO_GATEWAY], max_open: int, is_successor: bool = False) -> None:
        """is_successor: of a gateway that has crashed, so that there are workers, of which nothing is known yet."""
        self.model: ModelInfo | None = None
        """What is served, as soon as a worker knows."""
        self.stats: Stats | None = None  # the newest that any worker passed on
        self.inter_token = Histogram("vllm:inter_token_latency_seconds")
        self._hub = hub
        self._max_open = max_open
        self._is_draining = False
        self._was_ready_s = time.monotonic() if is_successor else None
        """When a worker was last ready: what has died since is being replaced. None: too long ago to wait for one."""
        self._again: asyncio.Handle | None = None
        self._num_turns = 0
        self._workers: dict[Address, _Worker] = {}
        self._open: dict[CallId, Call] = {}
        self._waiting: dict[Call, float] = {}  # accepted calls without a worker, oldest first -> deadline

    @property
    def is_ready(self) -> bool:
        """A call that came now would be worked on."""
        return not self._is_draining and any(worker.is_ready for worker in self._workers.values())

    @property
    def num_open(self) -> int:
        return len(self._open)

    def start(self) -> None:
        """Begin to listen, on the running event loop."""
        asyncio.get_running_loop().add_reader(self._hub.fd, self._receive)
        self._receive()

    def close(self) -> None:
        """Stop listening and close the socket."""
        if self._again is not None:
            self._again.cancel()
        asyncio.get_running_loop().remove_reader(self._hub.fd)
        self._hub.close()

    def open(self, generate: Generate) -> Call:
        """Accept a call and send it to a worker, now or as soon as one is ready. Whoever opens a call must settle it.

        Raises:
            Overloaded: too many are open.
            Unavailable: no worker is ready nor was lately, or the gateway is about to end.
        """
        if self._is_draining:
            raise shutting_down()
        if not self.is_ready and self._was_ready_s is None:
            raise Unavailable("the model is not ready", code="not_ready", retry_after_s=RETRY_AFTER_S)
        if len(self._open) >= self._max_open:
            sentence = f"too many streams: {len(self._open)} open; at most {self._max_open}"
            raise Overloaded(sentence, retry_after_s=RETRY_AFTER_S)
        call = Call(generate)
        self._open[call.id] = call
        self._wait(call)
        self._place_waiting()
        return call

    def settle(self, call: Call) -> None:
        """Forget a call; if it has not ended, its client is gone and its worker stops working on it."""
        del self._open[call.id]
        self._waiting.pop(call, None)
        worker = self._workers.get(call.worker) if call.worker is not None else None
        if worker is not None:
            del worker.calls[call.id]
            if not self._send(worker, CancelCall(call.id)):
                self._remove(worker, "cannot be reached")
                self._place_waiting()

    def tick(self, now: float) -> None:
        """Beat to the workers, notice the dead, end waits that last too long. Due several times a second.

        Args:
            now: `time.monotonic()`
        """
        self._receive()
        for worker in list(self._workers.values()):
            # After a pause of our own what they said may still wait to be received.
            if now - worker.heard_s > SILENCE_S and not self._hub.has_input:
                self._remove(worker, "is silent")
            elif not self._send(worker, Heartbeat()):
                self._remove(worker, "cannot be reached")
        self._place_waiting()
        if self.is_ready:
            self._was_ready_s = now
        elif self._was_ready_s is not None and now - self._was_ready_s >= MAX_WAIT_S:
            self._was_ready_s = None
        for call in [call for call, deadline in self._waiting.items() if deadline <= now]:
            del self._waiting[call]
            sentence = f"no tokenizer was ready for {MAX_WAIT_S:.0f} s"
            call.fail(Unavailable(sentence, code="not_ready", retry_after_s=RETRY_AFTER_S))
        for call in self._open.values():
            call.nudge(now)

    def stop_accepting(self) -> None:
        """Refuse new calls; the open ones go on."""
        self._is_draining = True

    def fail_all(self, error: RequestError) -> None:
        """End every open call with an error."""
        for call in self._waiting:
            call.fail(error)
        self._waiting.clear()
        for worker in self._workers.values():
            for call in worker.calls.values():
                self._send(worker, CancelCall(call.id))
                call.fail(error)
            worker.calls.clear()

    def _receive(self) -> None:
        """Take what has come: a bounded part of it, so that a flood cannot keep the loop from its streams."""
        if self._again is not None:
            self._again.cancel()
            self._again = None
        now = time.monotonic()
        try:
            for address, message in self._hub.receive():
                self._settle_message(address, message, now)
        finally:
            self._look_again()

    def _look_again(self) -> None:
        """The hub's fd is edge-triggered: a send or a receive may have eaten the edge of what came since."""
        if self._again is None and self._hub.has_input:
            self._again = asyncio.get_running_loop().call_soon(self._receive)

    def _send(self, worker: _Worker, message: Generate | CancelCall | Heartbeat) -> bool:
        was_sent = self._hub.send(worker.address, message)
        self._look_again()
        return was_sent

    def _settle_message(self, address: Address, message: TO_GATEWAY, now: float) -> None:
        worker = self._workers.get(address)
        if worker is None:
            if isinstance(message, Text | CallFailed):
                return  # of one that was given up: its calls have gone elsewhere
            # A heartbeat alone is enough: after a restart of this gateway its workers do not greet anew.
            worker = self._workers[address] = _Worker(address)
            log.info("worker joined", extra={"worker": address.hex()})
        worker.heard_s = now
        match message:
            case Text():
                self._deliver(worker, message, now)
            case Heartbeat():
                worker.is_ready = message.is_ready
                self.model = message.model or self.model
                stats = message.stats
                if stats is not None and (self.stats is None or stats.made_at_s >= self.stats.made_at_s):
                    self.stats = stats
                self._place_waiting()
            case CallFailed():
                call = worker.calls.pop(message.id, None)
                if call is not None:
                    call.fail(from_info(message.error))
            case Serving():
                pass  # being known is all it wants

    def _deliver(self, worker: _Worker, text: Text, now: float) -> None:
        columns = zip(text.ids, text.attempts, text.chunks, text.choices, text.token_ids, text.num_chars, strict=True)
        finished = frozenset(text.finished)
        for place, (call_id, attempt, chunk, choice, token_ids, num_chars) in enumerate(columns):
            call = worker.calls.get(call_id)
            if call is None or call.num_sends != attempt:
                continue  # cancelled meanwhile, or from before its connection was lost and the call sent again
            if text.num_events:
                call.num_events = text.num_events[place]
            since_s = call.deliver(chunk, choice, token_ids, num_chars, now)
            if since_s is not None:
                self.inter_token.observe(since_s)
            if place in finished:
                del worker.calls[call_id]
                call.end(text.spent.get(place))

    def _wait(self, call: Call) -> None:
        call.worker = None
        self._waiting[call] = time.monotonic() + MAX_WAIT_S

    def _remove(self, worker: _Worker, reason: str) -> None:
        """Forget a worker; its calls wait for another one, but for those that were sent often enough."""
        fields = {"worker": worker.address.hex(), "reason": reason, "calls": len(worker.calls)}
        log.warning("worker lost", extra=fields)
        del self._workers[worker.address]
        for call in worker.calls.values():
            if call.num_sends < MAX_SENDS:
                self._wait(call)
            else:
                call.fail(Internal(f"{MAX_SENDS} tokenizers died with this request", code="tokenizer_lost"))
        worker.calls.clear()

    def _place_waiting(self) -> None:
        """Send the waiting calls, the oldest first, while there is a worker that takes them."""
        while self._waiting and (worker := self._choose()) is not None:
            call = next(iter(self._waiting))
            if not self._send(worker, call.message(call.num_sends + 1)):
                self._remove(worker, "cannot be reached")
                continue
            del self._waiting[call]
            call.num_sends += 1
            call.worker = worker.address
            worker.calls[call.id] = call

    def _choose(self) -> _Worker | None:
        """The ready worker with the fewest calls, in turns."""
        ready = [worker for worker in self._workers.values() if worker.is_ready]
        if not ready:
            return None
        worker = min(ready, key=lambda worker: (len(worker.calls), worker.turn))
        self._num_turns += 1
        worker.turn = self._num_turns
        return worker


def shutting_down() -> Unavailable:
    return Unavailable("the server is shutting down", code="shutting_down", retry_after_s=RETRY_AFTER_S)
