"""KeptResponse: one response of the Responses API on its way into the store."""

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from hashlib import blake2b
from typing import Literal

import msgspec

from octavo.services.gateway.manner import OPENAI
from octavo.services.gateway.response_store import Record, ResponseStore
from octavo.services.gateway.workers import RETRY_AFTER_S
from octavo.shared.endpoints import in_words_of
from octavo.shared.errors import InvalidRequest, RequestError, Unavailable
from octavo.shared.messages import Generate
from octavo.shared.responses import InputItem, ItemPart, ResponsesRequest, texts
from octavo.shared.responses_answers import Response, begin_response, failure_of

log = logging.getLogger(__name__)


class _LastEvent(msgspec.Struct):
    response: msgspec.Raw


class KeptResponse:
    """See `Manner`: it keeps what the request wants to be kept, before the client has the end of it."""

    keepalive = OPENAI.keepalive

    def __init__(self, store: ResponseStore, generate: Generate, wanted: ResponsesRequest) -> None:
        self._store, self._tenant = store, generate.salt
        self._generate, self._wanted = generate, wanted
        self.id = self.begun("queued").id
        self.keeps_events = bool(wanted.stream and wanted.background)

    def begun(self, status: Literal["queued", "in_progress"]) -> Response:
        """The response before there is any output."""
        generate = self._generate
        return begin_response(generate.id, self._wanted, generate.created_s, generate.model, status)

    async def begin(self) -> None:
        """Note that it is being worked on. Raises Unavailable."""
        record = self._record(msgspec.json.encode(self.begun("in_progress")))
        try:
            await asyncio.to_thread(self._store.begin, self._tenant, self.id, record, self.keeps_events)
        except OSError as error:
            raise _cannot_be_kept(error) from None

    async def touch(self) -> bool:
        """False: nobody waits for it any more."""
        return await asyncio.to_thread(self._store.touch, self._tenant, self.id)

    async def add_events(self, events: bytes) -> bool:
        """Keep events for those who ask for them. False: the response has been deleted. Raises Unavailable."""
        try:
            return await asyncio.to_thread(self._store.add_events, self._tenant, self.id, events)
        except OSError as error:
            raise _cannot_be_kept(error) from None

    async def fail(self, error: RequestError, num_events: int) -> bytes:
        if isinstance(error, InvalidRequest):
            error = in_words_of(self._wanted, error)
        failed = msgspec.structs.replace(self.begun("in_progress"), status="failed", error=failure_of(error))
        fields = {"type": "response.failed", "sequence_number": num_events, "response": failed}
        event = b"event: response.failed\ndata: " + msgspec.json.encode(fields) + b"\n\n"
        if self.keeps_events:
            with contextlib.suppress(Unavailable):
                await self.add_events(event)
        await self._end(msgspec.json.encode(failed))
        return event

    async def finish(self, last: bytes) -> None:
        if self._wanted.stream:
            last_event = last.rpartition(b"\ndata: ")[2]
            last = bytes(msgspec.json.decode(last_event, type=_LastEvent).response)
        await self._end(last)

    async def _end(self, response: bytes) -> None:
        if not self._wanted.is_stored:
            return
        record, was_begun = self._record(response), bool(self._wanted.background)
        try:
            await asyncio.to_thread(self._store.end, self._tenant, self.id, record, was_begun)
        except OSError as error:  # a full disk; the client gets its answer nevertheless
            log.warning("response not kept", extra={"response": self.id, "reason": str(error)})

    def _record(self, response: bytes) -> Record:
        items = list_items(self._wanted.items, self.id)
        return Record(msgspec.Raw(response), msgspec.Raw(msgspec.json.encode(items)))


def _cannot_be_kept(error: OSError) -> Unavailable:
    return Unavailable(f"the response cannot be kept: {error.strerror}", retry_after_s=RETRY_AFTER_S)


def list_items(items: Sequence[InputItem], response: str) -> list[InputItem]:
    """The items as clients may list them: all with an id, and with parts instead of plain text."""
    return [_listed(item, f"{response} {place}") for place, item in enumerate(items)]


def _listed(item: InputItem, name: str) -> InputItem:
    digest = blake2b(name.encode(), digest_size=16).hexdigest()
    type = item.type or "message"
    known = {"type": type, "id": item.id or f"{_PREFIXES[type]}_{digest}", "status": "completed"}
    if type == "message":
        is_output = item.role == "assistant"
        kind, annotations = ("output_text", list[object]()) if is_output else ("input_text", None)
        parts = [ItemPart(kind, text, annotations=annotations) for text in texts(item.content)]
        return msgspec.structs.replace(item, **known, content=parts)
    if type == "reasoning":
        summary = [ItemPart("summary_text", text) for text in texts(item.summary)]
        content = [ItemPart("reasoning_text", text) for text in texts(item.content)]
        return msgspec.structs.replace(item, **known, summary=summary, content=content)
    return msgspec.structs.replace(item, **known)


_PREFIXES = {"message": "msg", "reasoning": "rs", "function_call": "fc", "function_call_output": "fco"}
