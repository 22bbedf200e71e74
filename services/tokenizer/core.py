"""The tokenizer's state: calls in, requests out; tokens in, finished bytes out. No sockets.

Everything here can be made again from what the gateway keeps: a tokenizer may die at any time.
"""

import logging
from collections.abc import Sequence

import msgspec

from octavo.services.tokenizer.call import Call, Emitted
from octavo.services.tokenizer.choice import Choice
from octavo.services.tokenizer.compiling import Compiling, Waiting
from octavo.services.tokenizer.workshop import Workshop
from octavo.shared.endpoints import Immediate, options_of, read_request
from octavo.shared.errors import Internal, RequestError, Unavailable
from octavo.shared.messages import (
    CallFailed,
    CallId,
    Cancel,
    CancelCall,
    Generate,
    Heartbeat,
    Message,
    ModelInfo,
    Ready,
    Refused,
    RequestId,
    Stats,
    Text,
    Tokens,
    pack,
    unpack,
)

log = logging.getLogger(__name__)

ASK_AGAIN_S = 10.0  # long beside a step, so that it is rarely asked in vain


class Outbox(msgspec.Struct):
    """What is to be sent: by gateway, and to the scheduler."""

    to_gateways: list[tuple[int, Message]] = []
    to_scheduler: list[Message] = []


class TokenizerCore:
    """All calls of one tokenizer process."""

    def __init__(self, workshop: Workshop, compiling: Compiling) -> None:
        self._workshop, self._compiling = workshop, compiling
        self._calls: dict[CallId, Call] = {}
        self._choices: dict[RequestId, tuple[Call, Choice]] = {}
        self.model: ModelInfo | None = None
        """Of the scheduler's executor, once there has been one."""
        self._chunks: dict[int, list[tuple[Call, Emitted]]] = {}
        self._out = Outbox([], [])
        self.is_ready = False
        """The scheduler says that it can serve."""
        self.stats: Stats | None = None

    def take_outbox(self) -> Outbox:
        """All that has come together, one Text for each gateway."""
        for gateway, entries in self._chunks.items():
            self._out.to_gateways.append((gateway, _make_text(entries)))
        self._chunks = {}
        out, self._out = self._out, Outbox([], [])
        return out

    def hear_gateway(self, gateway: int, message: Message) -> None:
        """A message of a gateway, by its index."""
        if isinstance(message, CancelCall):
            self._compiling.cancel(message.id)
            self._forget(message.id, tell_scheduler=True)
        elif isinstance(message, Generate):
            try:
                self._begin(gateway, message)
            except RequestError as error:
                self._fail(gateway, message.id, error)
            except Exception:
                # One call fails and the service lives.
                log.exception("call failed", extra={"call": message.id.hex()})
                self._fail(gateway, message.id, Internal("the request could not be prepared"))

    def hear_compiler(self) -> None:
        """Begin the calls whose grammars are compiled; refuse those whose cannot be."""
        for waiting, error in self._compiling.take_answers():
            if error is None:
                self.hear_gateway(waiting.gateway, waiting.message)
            else:
                self._fail(waiting.gateway, waiting.message.id, error)

    def hear_scheduler(self, message: Message) -> None:
        if isinstance(message, Tokens):
            self._take_tokens(message)
        elif isinstance(message, Ready):
            # A new scheduler knows none of our requests, and one that greets us anew may have lost us for a
            # while. Where it has lost nothing, to enqueue again is harmless.
            self.model, self.stats = message.model, message.stats
            for _, choice in self._choices.values():
                self._enqueue(choice)
            self.is_ready = True
        elif isinstance(message, Heartbeat):
            self.is_ready = message.is_ready and self.model is not None
            self.stats = message.stats
        elif isinstance(message, Refused):
            self._refuse(message)

    def lose_scheduler(self) -> None:
        """It has been silent for too long. Calls wait for its successor, which they are sent to again."""
        self.is_ready = False

    def lose_gateway(self, gateway: int) -> None:
        """It has been silent for too long: nobody waits for its calls."""
        self._compiling.lose_gateway(gateway)
        for call in [call for call in self._calls.values() if call.gateway == gateway]:
            self._forget(call.id, tell_scheduler=True)

    def ask_again(self) -> None:
        """Enqueue once more what has had no token since the last time; due every ASK_AGAIN_S.

        The request, or its last tokens, may have been lost with a connection. To the scheduler it is the same
        request.
        """
        for _, choice in self._choices.values():
            num_output = len(choice.output_ids)
            if num_output == choice.num_at_last_look:
                self._enqueue(choice)
            choice.num_at_last_look = num_output
        self._compiling.keep({choice.request.params.grammar for _, choice in self._choices.values()} - {""})

    # Calls

    def _begin(self, gateway: int, message: Generate) -> None:
        if self.model is None:
            raise Unavailable("the model is not ready", retry_after_s=1)
        model, wanted = self.model, read_request(message.endpoint, message.body)
        if isinstance(wanted, Immediate):
            self._answer_at_once(gateway, message, self._workshop.answer(wanted, model))
            return
        options = options_of(wanted)
        prompts = self._workshop.prompts(options, model)
        grammar, follows = "", self._workshop.grammar(options, prompts)
        if follows is not None:
            key = self._compiling.key_of(follows[0], model, Waiting(gateway, message, follows[1]))
            if key is None:
                return
            grammar = key
        call = self._workshop.call(message, wanted, options, prompts, gateway, model, grammar)
        self._forget(message.id, tell_scheduler=False)
        self._calls[message.id] = call
        for choice in call.choices:
            self._choices[choice.id] = (call, choice)
            progress = message.progress.get(choice.index)
            if progress is not None:
                token_ids = unpack(progress.token_ids)
                self._send(call, call.resume(choice, token_ids, progress.num_chars, progress.num_events))
            self._enqueue(choice)
        if call.is_finished:
            self._forget(call.id, tell_scheduler=False)

    def _answer_at_once(self, gateway: int, message: Generate, body: bytes) -> None:
        text = Text([message.id], [body], [0], [b""], [0], [0], [message.attempt])
        self._out.to_gateways.append((gateway, text))

    def _enqueue(self, choice: Choice) -> None:
        if choice.finish_reason is None:
            known = {"output_ids": pack(choice.output_ids), "output_logprobs": bytes(choice.logprobs)}
            self._out.to_scheduler.append(msgspec.structs.replace(choice.request, **known))

    def _take_tokens(self, message: Tokens) -> None:
        starts, tokens = unpack(message.starts), unpack(message.token_ids)
        counts: Sequence[int] = unpack(message.counts) if message.counts else (1,) * len(message.ids)
        place = 0
        for index, (id, start, count) in enumerate(zip(message.ids, starts, counts, strict=True)):
            known = self._choices.get(id)
            if known is not None:
                reason = message.finished.get(index) if message.finished else None
                logprobs = message.logprobs.get(index, b"") if message.logprobs else b""
                if message.prompt_logprobs and index in message.prompt_logprobs:
                    known[1].prompt_logprobs = message.prompt_logprobs[index]
                if message.begins and index in message.begins:
                    known[0].note_begin(message.begins[index])
                self._take(known[0], known[1], start, tokens[place : place + count], reason, logprobs)
            place += count

    def _take(
        self, call: Call, choice: Choice, start: int, tokens: Sequence[int], reason: str | None, logprobs: bytes
    ) -> None:
        if choice.finish_reason is not None:
            return
        num_known = len(choice.output_ids)
        if start > num_known:
            log.warning("tokens are missing", extra={"request": choice.id.hex(), "have": num_known, "got": start})
            self._enqueue(choice)
            return
        num_new = len(tokens) - (num_known - start)
        if logprobs and num_new < len(tokens):
            logprobs = logprobs[len(logprobs) // len(tokens) * (len(tokens) - num_new) :]
        text = choice.feed(tokens[num_known - start :], reason, logprobs)
        if choice.finish_reason is not None and reason is None:
            # A stop string has ended it; the scheduler cannot know.
            self._out.to_scheduler.append(Cancel([choice.id], "stop"))
        self._send(call, call.show(choice, text))

    def _send(self, call: Call, emitted: Emitted | None) -> None:
        if emitted is not None:
            self._chunks.setdefault(call.gateway, []).append((call, emitted))
        if call.is_finished:
            self._forget(call.id, tell_scheduler=False)

    # Ends

    def _refuse(self, message: Refused) -> None:
        known = self._choices.get(message.id)
        if known is not None:
            call = known[0]
            self._out.to_gateways.append((call.gateway, CallFailed(call.id, message.error)))
            self._forget(call.id, tell_scheduler=True)

    def _fail(self, gateway: int, id: CallId, error: RequestError) -> None:
        self._out.to_gateways.append((gateway, CallFailed(id, error.info())))

    def _forget(self, id: CallId, tell_scheduler: bool) -> None:
        call = self._calls.pop(id, None)
        if call is None:
            return
        for choice in call.choices:
            del self._choices[choice.id]
        open_ids = [choice.id for choice in call.choices if choice.finish_reason is None]
        if tell_scheduler and open_ids:
            self._out.to_scheduler.append(Cancel(open_ids))


def _make_text(entries: list[tuple[Call, Emitted]]) -> Text:
    num_events = [emitted[4] for _, emitted in entries]
    finished = _last_of_finished(entries)
    return Text(
        ids=[call.id for call, _ in entries],
        chunks=[emitted[0] for _, emitted in entries],
        choices=[emitted[1] for _, emitted in entries],
        token_ids=[emitted[2] for _, emitted in entries],
        num_chars=[emitted[3] for _, emitted in entries],
        finished=finished,
        attempts=[call.attempt for call, _ in entries],
        num_events=num_events if any(num_events) else [],
        spent={place: entries[place][0].spent() for place in finished},
    )


def _last_of_finished(entries: list[tuple[Call, Emitted]]) -> list[int]:
    """The last entry of each finished call."""
    last = {call.id: place for place, (call, _) in enumerate(entries)}
    return [place for place in last.values() if entries[place][0].is_finished]
