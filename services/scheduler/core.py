"""The scheduler as a pure state machine: step(now, inbox) -> outbox. No sockets, no clock, no randomness.

It joins three parties: tokenizers that enqueue requests, a planner that decides, an executor that computes.
"""

import logging
from array import array
from collections import deque
from collections.abc import Sequence

import msgspec

from octavo.services.scheduler.finished import FinishedRequests
from octavo.services.scheduler.pace import DEFAULT_MAX_STEP_S, Pace
from octavo.services.scheduler.planner import Planner
from octavo.services.scheduler.policy import retry_after_s
from octavo.services.scheduler.request import Request, check_prompt, has_stopped
from octavo.services.scheduler.rows import TokenizerRows, group_rows, new_logprobs, stopped
from octavo.services.scheduler.tally import Tally
from octavo.services.scheduler.traffic_log import TrafficLog
from octavo.shared.errors import InvalidRequest, Overloaded, RequestError
from octavo.shared.messages import (
    INT32_BYTES,
    Cancel,
    Enqueue,
    ExecutorReady,
    Heartbeat,
    Message,
    Ready,
    Refused,
    RequestId,
    Reset,
    Stats,
    StepFailed,
    StepResult,
    Tokens,
    logprob_bytes,
    pack,
    unpack,
)
from octavo.shared.transport import HEARTBEAT_S, SILENCE_S, Address

log = logging.getLogger(__name__)

STEPS_AHEAD = 2
"""Steps in flight at most: one that runs, and one that the executor finds waiting."""
SHORT_STEPS_AHEAD = 3
"""The same on a GPU while steps are so short that a message may take as long."""
ORPHANED_S = 15.0
"""How long a request outlives its tokenizer: so long its gateway has to bring it back through another one."""
PACE_S = 5.0
"""Over how long finished requests are counted, to tell refused clients when to come back."""


class Outbox(msgspec.Struct):
    """What one step wants sent, in order."""

    to_tokenizers: list[tuple[Address, Message]] = []
    to_executor: list[tuple[Address, Message]] = []


class Inbox(msgspec.Struct):
    """What came since the last step; `lost` are peers that can no longer be reached."""

    from_tokenizers: Sequence[tuple[Address, Message]] = ()
    from_executor: Sequence[tuple[Address, Message]] = ()
    lost: Sequence[Address] = ()


class Scheduler:
    """All state of the scheduler process."""

    def __init__(
        self, boot: bytes, max_queued_requests: int, is_caching: bool = True, max_step_s: float | None = None
    ) -> None:
        self.boot = boot
        self.planner: Planner | None = None
        """Lives as long as an executor does."""
        self._max_step_s = max_step_s
        self._pace = Pace(None)  # until an executor tells its device
        self._in_flight: deque[tuple[float, int, int]] = deque()
        """Of each step: when it was sent, how many decode in it, and its prompt tokens."""
        self._max_queued = max_queued_requests
        self._is_caching = is_caching
        self._now = 0.0
        self._out = Outbox()
        self._executor: Address | None = None
        self._executor_boot = b""
        self._superseded: set[bytes] = set()
        """Boots of executors that others have followed: a process that wakes up late does not come back."""
        self._epoch = int.from_bytes(boot[:4], "little")  # results for an earlier scheduler have others
        self._tokenizers: dict[Address, float] = {}  # when each was last heard
        self._requests: dict[RequestId, Request] = {}
        self._orphans: dict[RequestId, float] = {}  # when each is given up
        self._finished = FinishedRequests()
        self._stop_counts: dict[int, int] = {}  # stop token -> requests that stop at it
        self._tally, self._traffic_log = Tally(), TrafficLog()
        self._num_arrived = 0
        self._finished_per_s = 0.0
        self._num_finished_lately, self._lately = 0, 0.0
        self._groups: list[TokenizerRows] = []
        self._groups_of: tuple[int, bytes] | None = None
        self._next_heartbeat = 0.0

    @property
    def is_ready(self) -> bool:
        return self.planner is not None

    def step(self, now: float, inbox: Inbox) -> Outbox:
        """Take in what came, then plan as many steps as may be in flight.

        Args:
            now: seconds on a clock that never goes back.
            inbox: messages of each party, oldest first.
        """
        self._now, self._out = now, Outbox([], [])
        for address, message in inbox.from_executor:
            self._hear_executor(address, message)
        for address, message in inbox.from_tokenizers:
            self._hear_tokenizer(address, message)
        for address in inbox.lost:
            self._lose(address)
        if now >= self._next_heartbeat:
            self._next_heartbeat = now + HEARTBEAT_S
            self._beat()
        self._plan()
        return self._out

    def stats(self) -> Stats:
        """Counters since the start, over all epochs."""
        return self._tally.stats(self.planner, len(self._requests), self._now)

    # The executor's messages

    def _hear_executor(self, address: Address, message: Message) -> None:
        if isinstance(message, ExecutorReady):
            # It greets all the time, for a scheduler that is new to it; one whose place was taken greets in vain.
            if address != self._executor and message.boot not in self._superseded:
                self._welcome_executor(address, message)
        elif address != self._executor:
            return  # the last words of one that was given up
        elif isinstance(message, StepResult) and message.epoch == self._epoch:
            self._settle(message)
        elif isinstance(message, StepFailed):
            log.error("the executor failed", extra={"step": message.number, "reason": message.reason})
            self._lose_executor()

    def _welcome_executor(self, address: Address, greeting: ExecutorReady) -> None:
        self._lose_executor()
        if self._executor_boot != greeting.boot:
            self._superseded.add(self._executor_boot)
        model, self._executor_boot = greeting.model, greeting.boot
        self._executor = address
        self._epoch += 1
        self.planner = Planner(model, self._epoch, self._is_caching)
        self._pace = Pace(self._max_step_s or DEFAULT_MAX_STEP_S.get(model.device))
        self._in_flight.clear()
        self._out.to_executor.append((address, Reset(self._epoch)))
        for tokenizer in self._tokenizers:
            self._out.to_tokenizers.append((tokenizer, Ready(self.boot, model, self.stats())))
        for request in list(self._requests.values()):
            self._enter(self.planner, request)
        log.info("executor ready", extra={"epoch": self._epoch, "blocks": model.num_blocks})

    def _lose_executor(self) -> None:
        """Every running request waits again; the tokens committed so far stay."""
        planner = self.planner
        if planner is None:
            return
        self._tally.end_epoch(planner)
        planner.stop()
        self.planner = self._executor = None
        self._groups_of = None

    # The tokenizers' messages

    def _hear_tokenizer(self, address: Address, message: Message) -> None:
        if address not in self._tokenizers:
            self._greet(address)
        self._tokenizers[address] = self._now
        if isinstance(message, Enqueue):
            try:
                self._enqueue(address, message)
            except RequestError as error:
                self._out.to_tokenizers.append((address, Refused(message.id, error.info())))
        elif isinstance(message, Cancel):
            for id in message.ids:
                self._cancel(id, address, message.reason)

    def _greet(self, address: Address) -> None:
        """A tokenizer is new, or was given up too early: then its requests are no orphans."""
        if self.planner is not None:
            self._out.to_tokenizers.append((address, Ready(self.boot, self.planner.model, self.stats())))
        for id in [id for id in self._orphans if self._requests[id].route == address]:
            del self._orphans[id]

    def _enqueue(self, address: Address, message: Enqueue) -> None:
        known = self._requests.get(message.id)
        if known is not None:
            self._reattach(known, address, len(message.output_ids) // INT32_BYTES)
            return
        kept = self._finished.get(message.id)
        if kept is not None:
            start, size = len(message.output_ids) // INT32_BYTES, logprob_bytes(message.params.logprobs or 0)
            missing = unpack(kept.output_ids)[start:]
            self._send_tokens(
                address, message.id, start, missing, kept.reason, kept.logprobs[start * size :], kept.prompt_logprobs
            )
            return
        request = self._new_request(address, message)
        self._requests[request.id] = request
        for token in request.params.stop_token_ids:
            self._stop_counts[token] = self._stop_counts.get(token, 0) + 1
        if self.planner is not None:
            self._enter(self.planner, request)

    def _new_request(self, address: Address, message: Enqueue) -> Request:
        """The request of a message. Raises RequestError if it must not enter."""
        num_waiting = len(self._requests) - (0 if self.planner is None else len(self.planner.running))
        if num_waiting >= self._max_queued and not message.output_ids:
            self._tally.num_rejected += 1
            raise Overloaded(
                f"too many streams: {num_waiting} requests are waiting; at most {self._max_queued} may wait",
                retry_after_s=retry_after_s(num_waiting, self._finished_per_s),
            )
        if len(message.prompt_ids) % INT32_BYTES or len(message.output_ids) % INT32_BYTES:
            raise InvalidRequest(f"prompt: {len(message.prompt_ids)} bytes are no whole token ids", "prompt")
        if not message.prompt_ids:
            raise InvalidRequest("prompt: it has no tokens", "prompt")
        prompt = unpack(message.prompt_ids)
        request = Request(message.id, address, message.params, prompt, message.block_hashes)
        request.token_ids.extend(unpack(message.output_ids))
        request.is_resumed = request.num_output > 0
        request.logprobs += message.output_logprobs
        request.priority = message.priority
        self._num_arrived += 1
        request.arrival = self._num_arrived
        request.arrived_s = None if message.output_ids else self._now
        return request

    def _enter(self, planner: Planner, request: Request) -> None:
        """Hand a request to the planner, unless it is at its end already or does not suit the model."""
        planner.add(request)
        try:
            check_prompt(request, planner.model)
        except RequestError as error:
            self._out.to_tokenizers.append((request.route, Refused(request.id, error.info())))
            self._forget(request, "error")
            return
        if request.num_output > 0 and has_stopped(request):
            request.finish_reason = "stop"
        elif request.num_left <= 0:
            request.finish_reason = "length"
        if request.finish_reason:
            nothing = array("i")
            self._send_tokens(request.route, request.id, request.num_output, nothing, request.finish_reason)
            self._end(request)

    def _reattach(self, request: Request, address: Address, num_known: int) -> None:
        self._orphans.pop(request.id, None)
        request.route = address
        self._groups_of = None
        if num_known < request.num_output:
            missing = request.token_ids[request.num_prompt + num_known :]
            prompt_logprobs = b"" if request.lacks_prompt_logprobs else bytes(request.prompt_logprobs)
            self._send_tokens(
                address, request.id, num_known, missing, "", request.logprobs_from(num_known), prompt_logprobs
            )

    def _cancel(self, id: RequestId, address: Address, reason: str) -> None:
        request = self._requests.get(id)
        if request is not None and request.route == address:
            self._forget(request, "stop" if reason == "stop" else "abort")

    def _lose(self, address: Address) -> None:
        if address == self._executor:
            log.error("the executor is gone", extra={"epoch": self._epoch})
            self._lose_executor()
        elif self._tokenizers.pop(address, None) is not None:
            log.warning("a tokenizer is gone", extra={"peer": address.hex()})
            for request in self._requests.values():
                if request.route == address:
                    self._orphans.setdefault(request.id, self._now + ORPHANED_S)

    # Steps

    def _plan(self) -> None:
        planner, executor = self.planner, self._executor
        if planner is None or executor is None:
            return
        is_hurried = planner.model.device == "cuda" and self._pace.has_short_steps
        while planner.num_in_flight < (SHORT_STEPS_AHEAD if is_hurried else STEPS_AHEAD):
            num_decoding = planner.num_decoding
            step = planner.plan(self._pace.most_chunk_tokens)
            if step is None:
                return
            num_chunk_tokens = sum(unpack(step.chunk_lengths))
            self._in_flight.append((self._now, num_decoding, num_chunk_tokens))
            self._tally.note_step(planner, step, num_chunk_tokens, self._now)
            self._out.to_executor.append((executor, step))

    def _settle(self, result: StepResult) -> None:
        planner = self.planner
        assert planner is not None
        self._pace.settle(self._now, *self._in_flight.popleft())
        begins = self._tally.note_result(result.number, self._now)
        tokens = unpack(result.token_ids)
        groups = self._group(planner, result.slots)
        starts = [group.starts() for group in groups]
        ended = planner.commit(result)
        if not self._stop_counts.keys().isdisjoint(tokens):
            # A token that is both the last allowed and a stop token ends as "stop".
            ended = list(dict.fromkeys(ended + stopped(groups, tokens)))
        reasons = {request.id: request.finish_reason for request in ended}
        logprobs, prompt_logprobs = new_logprobs(groups, result)
        for group, group_starts in zip(groups, starts, strict=True):
            self._tally.generation_tokens += len(group.ids)
            self._out.to_tokenizers.append(
                (group.route, group.message(group_starts, tokens, reasons, logprobs, prompt_logprobs, begins))
            )
        for slot, reason in result.failures.items():
            self._refuse(planner.by_slot[slot], reason)
        for request in ended:
            if request.id in self._requests:
                self._end(request)
        planner.after_commit()

    def _group(self, planner: Planner, slots: bytes) -> list[TokenizerRows]:
        """Rows by tokenizer. The same as last time unless a row has changed hands."""
        if self._groups_of != (planner.roster, slots):
            self._groups = group_rows(planner.rows_of(slots))
            self._groups_of = (planner.roster, slots)
        return self._groups

    def _send_tokens(
        self,
        address: Address,
        id: RequestId,
        start: int,
        tokens: "array[int]",
        finish_reason: str,
        logprobs: bytes = b"",
        prompt_logprobs: bytes = b"",
    ) -> None:
        message = Tokens(
            [id], pack([start]), pack([len(tokens)]), pack(tokens), {0: finish_reason} if finish_reason else {},
            {0: logprobs} if logprobs else {}, {0: prompt_logprobs} if prompt_logprobs else {},
        )  # fmt: skip
        self._out.to_tokenizers.append((address, message))

    # Ends

    def _refuse(self, request: Request | None, reason: str) -> None:
        """The executor cannot go on with this request alone."""
        if request is not None and request.id in self._requests:
            error = InvalidRequest(reason, code="grammar_failed")
            self._out.to_tokenizers.append((request.route, Refused(request.id, error.info())))
            self._forget(request, "error")

    def _end(self, request: Request) -> None:
        """A request has all its tokens."""
        self._num_finished_lately += 1
        self._finished.keep(request)
        self._forget(request, request.finish_reason)

    def _forget(self, request: Request, reason: str) -> None:
        self._tally.note_end(request, reason, self._now)
        del self._requests[request.id]
        if self.planner is not None:
            self.planner.finish(request)
        self._orphans.pop(request.id, None)
        for token in request.params.stop_token_ids:
            self._stop_counts[token] -= 1
            if not self._stop_counts[token]:
                del self._stop_counts[token]

    def _beat(self) -> None:
        """Twice a second: tell everyone that we live, and give up those that do not."""
        beat = Heartbeat(self.is_ready, stats := self.stats())
        self._traffic_log.note(stats)
        for address in self._tokenizers:
            self._out.to_tokenizers.append((address, beat))
        if self._executor is not None:
            self._out.to_executor.append((self._executor, beat))
        for address, heard in list(self._tokenizers.items()):
            if self._now - heard > SILENCE_S:
                self._lose(address)
        for id, deadline in list(self._orphans.items()):
            if self._now > deadline:
                log.warning("an orphaned request is given up", extra={"request": id.hex()})
                self._forget(self._requests[id], "abort")
        if self._now - self._lately >= PACE_S:
            self._finished_per_s = self._num_finished_lately / (self._now - self._lately)
            self._num_finished_lately, self._lately = 0, self._now
