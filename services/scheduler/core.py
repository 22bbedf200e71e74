"""The scheduler as a pure state machine: step(now, inbox) -> outbox. No sockets, no clock, no randomness.

It joins three parties: tokenizers that enqueue requests, the planner that decides, and the executor that computes.
"""

import logging
from array import array
from collections import OrderedDict
from collections.abc import Callable, Sequence
from operator import itemgetter, sub

import msgspec

from octavo.services.scheduler.planner import Planner
from octavo.services.scheduler.policy import retry_after_s
from octavo.services.scheduler.request import Request, State
from octavo.shared.errors import InvalidRequest, Overloaded, RequestError
from octavo.shared.messages import (
    Cancel,
    Enqueue,
    ExecutorReady,
    Heartbeat,
    Message,
    ModelInfo,
    Ready,
    Refused,
    RequestId,
    Reset,
    Stats,
    Step,
    StepFailed,
    StepResult,
    Tokens,
    pack,
    unpack,
)
from octavo.shared.transport import HEARTBEAT_S, SILENCE_S, Address

log = logging.getLogger(__name__)

STEPS_AHEAD = 2
"""Steps in flight at most: one that runs, and one that the executor finds waiting."""
ORPHANED_S = 15.0
"""How long a request outlives its tokenizer: so long its gateway has to bring it back through another one."""
KEPT_FINISHED = 4096
"""Finished requests whose tokens are kept for a tokenizer that takes over from a dead one."""
KEPT_TOKENS = 4_000_000


class Outbox(msgspec.Struct):
    """What one step wants sent, in order."""

    to_tokenizers: list[tuple[Address, Message]] = []
    to_executor: list[tuple[Address, Message]] = []


class Inbox(msgspec.Struct):
    """What came since the last step; `lost` are peers that can no longer be reached."""

    from_tokenizers: Sequence[tuple[Address, Message]] = ()
    from_executor: Sequence[tuple[Address, Message]] = ()
    lost: Sequence[Address] = ()


class _Finished(msgspec.Struct, frozen=True):
    output_ids: bytes
    reason: str


class _Group(msgspec.Struct, frozen=True):
    """The rows of one step's result that go to one tokenizer."""

    route: Address
    requests: list[Request]
    ids: list[RequestId]
    arrays: "list[array[int]]"
    num_prompts: list[int]
    pick: Callable[[Sequence[int]], Sequence[int]] | None
    """Chooses the group's tokens from all rows; None when it has all."""


class Scheduler:
    """All state of the scheduler process."""

    def __init__(self, boot: bytes, max_queued_requests: int, is_caching: bool = True) -> None:
        self.boot = boot
        self._max_queued = max_queued_requests
        self._is_caching = is_caching
        self._now = 0.0
        self._out = Outbox()
        self._planner: Planner | None = None
        self._executor: Address | None = None
        self._executor_heard = 0.0
        self._epoch = 0
        self._tokenizers: dict[Address, float] = {}  # when each was last heard
        self._requests: dict[RequestId, Request] = {}
        self._orphans: dict[RequestId, float] = {}
        self._finished: OrderedDict[RequestId, _Finished] = OrderedDict()
        self._num_kept_tokens = 0
        self._stop_counts: dict[int, int] = {}  # stop token -> requests that stop at it
        self._past = Stats()
        self._num_arrived = self._prompt_tokens = self._generation_tokens = 0
        self._finished_per_s = 0.0
        self._num_finished_lately, self._lately = 0, 0.0
        self._groups: list[_Group] = []
        self._groups_of: tuple[int, bytes] | None = None
        self._next_heartbeat = 0.0

    @property
    def is_ready(self) -> bool:
        return self._planner is not None

    @property
    def wants_step(self) -> bool:
        """Whether another step could be planned at once."""
        planner = self._planner
        return planner is not None and planner.num_in_flight < STEPS_AHEAD and planner.has_work

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
        self._plan()
        if now >= self._next_heartbeat:
            self._next_heartbeat = now + HEARTBEAT_S
            self._beat()
        return self._out

    def stats(self) -> Stats:
        """Counters since the start, over all epochs."""
        planner, past = self._planner, self._past
        base = Stats(prompt_tokens=self._prompt_tokens, generation_tokens=self._generation_tokens)
        if planner is None:
            return msgspec.structs.replace(
                past, num_waiting=len(self._requests), prompt_tokens=base.prompt_tokens,
                generation_tokens=base.generation_tokens, num_running=0, num_blocks_used=0,
            )  # fmt: skip
        return Stats(
            num_running=len(planner.running),
            num_waiting=len(self._requests) - len(planner.running),
            num_blocks=planner.pool.num_blocks,
            num_blocks_used=planner.pool.num_held,
            num_steps=past.num_steps + planner.number,
            num_preemptions=past.num_preemptions + planner.num_preemptions,
            prompt_tokens=base.prompt_tokens,
            generation_tokens=base.generation_tokens,
            prefix_queries=past.prefix_queries + planner.prefix_queries,
            prefix_hits=past.prefix_hits + planner.prefix_hits,
        )

    # The executor's messages

    def _hear_executor(self, address: Address, message: Message) -> None:
        if isinstance(message, ExecutorReady):
            self._welcome_executor(address, message.model)
        elif address != self._executor:
            return  # the last words of one that was given up
        self._executor_heard = self._now
        if isinstance(message, StepResult) and message.epoch == self._epoch:
            self._settle(message)
        elif isinstance(message, StepFailed):
            log.error("the executor failed", extra={"step": message.number, "reason": message.reason})
            self._lose_executor()

    def _welcome_executor(self, address: Address, model: ModelInfo) -> None:
        self._lose_executor()
        self._executor = address
        self._epoch += 1
        self._planner = planner = Planner(model, self._epoch, self._is_caching)
        for request in self._requests.values():
            planner.waiting.append(request)
        self._out.to_executor.append((address, Reset(self._epoch)))
        for tokenizer in self._tokenizers:
            self._out.to_tokenizers.append((tokenizer, Ready(self.boot, model)))
        log.info("executor ready", extra={"epoch": self._epoch, "blocks": model.num_blocks})

    def _lose_executor(self) -> None:
        """Every running request waits again, oldest first; the tokens committed so far stay."""
        planner = self._planner
        if planner is None:
            return
        self._past = self.stats()
        everyone = planner.everyone()
        for request in everyone:
            if request.state is not State.WAITING:
                request.go_back()
        self._requests = {request.id: request for request in everyone}
        self._planner = self._executor = None
        self._groups_of = None

    # The tokenizers' messages

    def _hear_tokenizer(self, address: Address, message: Message) -> None:
        if address not in self._tokenizers:
            if self._planner is not None:
                self._out.to_tokenizers.append((address, Ready(self.boot, self._planner.model)))
        self._tokenizers[address] = self._now
        if isinstance(message, Enqueue):
            try:
                self._enqueue(address, message)
            except RequestError as error:
                self._out.to_tokenizers.append((address, Refused(message.id, error.info())))
        elif isinstance(message, Cancel):
            for id in message.ids:
                self._cancel(id, address)

    def _enqueue(self, address: Address, message: Enqueue) -> None:
        known = self._requests.get(message.id)
        if known is not None:
            self._reattach(known, address, len(message.output_ids) // 4)
            return
        kept = self._finished.get(message.id)
        if kept is not None:
            start = len(message.output_ids) // 4
            self._send_tokens(address, message.id, start, unpack(kept.output_ids)[start:], kept.reason)
            return
        request = self._new_request(address, message)
        if request.num_left <= 0:
            self._send_tokens(address, request.id, request.num_output, array("i"), "length")
            return
        if self._planner is not None:
            self._planner.add(request)
        self._requests[request.id] = request
        self._prompt_tokens += request.num_prompt
        for token in request.params.stop_token_ids:
            self._stop_counts[token] = self._stop_counts.get(token, 0) + 1

    def _new_request(self, address: Address, message: Enqueue) -> Request:
        """The request of a message. Raises RequestError if it must not enter."""
        num_running = 0 if self._planner is None else len(self._planner.running)
        num_waiting = len(self._requests) - num_running
        if num_waiting >= self._max_queued and not message.output_ids:
            raise Overloaded(
                f"too many streams: {num_waiting} requests are waiting; at most {self._max_queued} may wait",
                retry_after_s=retry_after_s(num_waiting, self._finished_per_s),
            )
        prompt = unpack(message.prompt_ids)
        if not prompt:
            raise InvalidRequest("prompt: it has no tokens", "prompt")
        if self._planner is not None:
            _check_prompt(prompt, self._planner.model)
        request = Request(message.id, address, message.params, prompt, message.block_hashes)
        request.token_ids.extend(unpack(message.output_ids))
        request.is_resumed = request.num_output > 0
        self._num_arrived += 1
        request.arrival = self._num_arrived
        return request

    def _reattach(self, request: Request, address: Address, num_known: int) -> None:
        self._orphans.pop(request.id, None)
        request.route = address
        self._groups_of = None
        if num_known < request.num_output:
            missing = request.token_ids[request.num_prompt + num_known :]
            self._send_tokens(address, request.id, num_known, missing, "")

    def _cancel(self, id: RequestId, address: Address) -> None:
        request = self._requests.get(id)
        if request is not None and request.route == address:
            self._forget(request)

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
        planner, executor = self._planner, self._executor
        if planner is None or executor is None:
            return
        while planner.num_in_flight < STEPS_AHEAD:
            step: Step | None = planner.plan()
            if step is None:
                return
            self._out.to_executor.append((executor, step))

    def _settle(self, result: StepResult) -> None:
        planner = self._planner
        assert planner is not None
        tokens = unpack(result.token_ids)
        self._generation_tokens += len(tokens)
        groups = self._group(planner, result.slots)
        starts = [array("i", map(sub, map(len, group.arrays), group.num_prompts)) for group in groups]
        ended = planner.commit(result)
        if not self._stop_counts.keys().isdisjoint(tokens):
            # A token that is both the last allowed and a stop token ends as "stop".
            ended = list(dict.fromkeys(ended + self._stopped(groups, tokens)))
        reasons = {request.id: request.finish_reason for request in ended}
        for group, group_starts in zip(groups, starts, strict=True):
            chosen = tokens if group.pick is None else group.pick(tokens)
            finished = {i: reasons[id] for i, id in enumerate(group.ids) if id in reasons} if reasons else {}
            message = Tokens(group.ids, pack(group_starts), b"", pack(chosen), finished)
            self._out.to_tokenizers.append((group.route, message))
        for request in ended:
            self._keep_finished(request)
            self._forget(request)
        planner.after_commit()

    def _group(self, planner: Planner, slots: bytes) -> list[_Group]:
        """Rows by tokenizer. The same as last time unless a row has changed hands."""
        if self._groups_of == (planner.roster, slots):
            return self._groups
        by_route: dict[Address, list[tuple[int, Request]]] = {}
        rows = planner.rows_of(slots)
        for index, request in enumerate(rows):
            if request is not None:
                by_route.setdefault(request.route, []).append((index, request))
        self._groups = [_make_group(route, members, len(rows)) for route, members in by_route.items()]
        self._groups_of = (planner.roster, slots)
        return self._groups

    def _stopped(self, groups: list[_Group], tokens: "array[int]") -> list[Request]:
        """Requests whose newest token is one that they stop at."""
        stopped = []
        for group in groups:
            chosen = tokens if group.pick is None else group.pick(tokens)
            for request, token in zip(group.requests, chosen, strict=True):
                if token in request.params.stop_token_ids:
                    request.finish_reason = "stop"
                    stopped.append(request)
        return stopped

    def _send_tokens(
        self, address: Address, id: RequestId, start: int, tokens: "array[int]", finish_reason: str
    ) -> None:
        finished = {0: finish_reason} if finish_reason else {}
        message = Tokens([id], pack([start]), pack([len(tokens)]), pack(tokens), finished)
        self._out.to_tokenizers.append((address, message))

    # Ends

    def _forget(self, request: Request) -> None:
        if self._requests.pop(request.id, None) is None:
            return
        if self._planner is not None:
            self._planner.finish(request)
        self._orphans.pop(request.id, None)
        for token in request.params.stop_token_ids:
            self._stop_counts[token] -= 1
            if not self._stop_counts[token]:
                del self._stop_counts[token]

    def _keep_finished(self, request: Request) -> None:
        self._num_finished_lately += 1
        output_ids = pack(request.token_ids[request.num_prompt :])
        self._finished[request.id] = _Finished(output_ids, request.finish_reason)
        self._num_kept_tokens += request.num_output
        while len(self._finished) > KEPT_FINISHED or self._num_kept_tokens > KEPT_TOKENS:
            _, oldest = self._finished.popitem(last=False)
            self._num_kept_tokens -= len(oldest.output_ids) // 4

    def _beat(self) -> None:
        """Twice a second: tell everyone that we live, and give up those that do not."""
        stats = self.stats()
        beat = Heartbeat(self.is_ready, stats)
        for address in self._tokenizers:
            self._out.to_tokenizers.append((address, beat))
        if self._executor is not None:
            self._out.to_executor.append((self._executor, beat))
        for address, heard in list(self._tokenizers.items()):
            if self._now - heard > SILENCE_S:
                self._lose(address)
        for id, deadline in list(self._orphans.items()):
            if self._now > deadline and id in self._requests:
                self._forget(self._requests[id])
        if self._now - self._lately >= 5.0:
            self._finished_per_s = self._num_finished_lately / (self._now - self._lately)
            self._num_finished_lately, self._lately = 0, self._now


def _check_prompt(prompt: "array[int]", model: ModelInfo) -> None:
    if not 0 <= min(prompt) <= max(prompt) < model.vocab_size:
        wrong = next(token for token in prompt if not 0 <= token < model.vocab_size)
        raise InvalidRequest(
            f"prompt: token id {wrong} is outside the vocabulary; ids are 0 to {model.vocab_size - 1}", "prompt"
        )
    if len(prompt) >= model.max_model_len:
        raise InvalidRequest(
            f"prompt: it has {len(prompt)} tokens; this model takes {model.max_model_len} with the completion, "
            f"so at most {model.max_model_len - 1} are left for the prompt",
            "prompt",
            "context_length_exceeded",
        )


def _make_group(route: Address, members: list[tuple[int, Request]], num_rows: int) -> _Group:
    requests = [request for _, request in members]
    pick: Callable[[Sequence[int]], Sequence[int]] | None = None
    if len(members) == 1 < num_rows:
        only = members[0][0]
        pick = itemgetter(slice(only, only + 1))  # itemgetter of one index would give no sequence
    elif len(members) < num_rows:
        pick = itemgetter(*(index for index, _ in members))
    return _Group(
        route, requests, [request.id for request in requests], [request.token_ids for request in requests],
        [request.num_prompt for request in requests], pick,
    )  # fmt: skip


