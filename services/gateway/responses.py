"""The routes of OpenAI's Responses API: responses are made, kept, looked up, cancelled and deleted."""

import asyncio
import logging
import re
import time
from typing import Any

import msgspec
from aiohttp import web
from aiohttp.typedefs import Handler

from octavo.services.gateway.auth import SALT
from octavo.services.gateway.call import Call
from octavo.services.gateway.calls import Calls
from octavo.services.gateway.kept_events import KeptEvents
from octavo.services.gateway.kept_response import KeptResponse
from octavo.services.gateway.response_store import Found, Record, ResponseStore
from octavo.services.gateway.route import CALL_ERRORS, Route, Shape
from octavo.shared.errors import InvalidRequest, NotFound, RequestError
from octavo.shared.responses import MAX_ITEMS, InputItem, ResponsesRequest
from octavo.shared.responses_answers import DeletedResponse, ItemList, Response, ResponseEvent

log = logging.getLogger(__name__)

GROUP = "Responses"
MAX_LISTED, LISTED = 100, 20  # items in one answer: at most, and where the client does not say
LOOK_S = 0.5  # between two looks whether a response in the background is still wanted
CLOSE_S = 1.0  # for responses in the background to note how they ended
MAX_EVENTS = 10**9
_NUMBER = re.compile(r"-?[0-9]{1,10}")
_LOST = {"code": "server_error", "message": "the gateway that worked on this response has died"}


class _Known(msgspec.Struct):
    """What is looked at in a kept response."""

    status: str
    background: bool = False
    output: list[InputItem] = []


class ResponsesRoutes:
    """Handlers and what they share."""

    def __init__(self, calls: Calls, store: ResponseStore) -> None:
        self._calls = calls
        self._store = store
        self._working: set[asyncio.Task[None]] = set()

    def table(self) -> list[Route]:
        return [
            Route(
                method="POST",
                path="/v1/responses",
                handler=self.create,
                group=GROUP,
                summary="An answer to items, which is kept",
                text="With previous_response_id the conversation goes on that led to another response; with background "
                "the answer comes at once, and the response is to be asked for. What is kept stays for a day.",
                body=ResponsesRequest,
                example={"input": "Say hello.", "max_output_tokens": 30},
                answer=Response,
                events=ResponseEvent,
                errors=CALL_ERRORS,
            ),
            _route(
                "GET",
                "",
                self.get,
                "A response that was kept",
                Response,
                "Query: stream=true sends the events of one that streams in the background, those that are to come "
                "included; starting_after, the number of the last one that is known.",
                ResponseEvent,
            ),
            _route("DELETE", "", self.delete, "Keep a response no longer", DeletedResponse),
            _route("POST", "/cancel", self.cancel, "End a response in the background", Response),
            _route(
                "GET",
                "/input_items",
                self.input_items,
                "The items that led to a response",
                ItemList,
                f"Query: order, desc or asc; limit, at most {MAX_LISTED}; after, the id of an item.",
            ),
        ]

    async def close(self, app: web.Application) -> None:
        """Let responses in the background note how they ended, once their calls have."""
        if self._working:
            await asyncio.wait(self._working, timeout=CLOSE_S)

    async def create(self, request: web.Request) -> web.StreamResponse:
        started_s = time.monotonic()
        body, wanted = await self._calls.read(request, "responses")
        assert isinstance(wanted, ResponsesRequest), "the endpoint says so"
        if wanted.previous_response_id is not None:
            wanted = await self._continued(request[SALT], wanted, wanted.previous_response_id)
            body = msgspec.json.encode(wanted)
        generate = self._calls.generate(request, "responses", body, wanted)
        kept = KeptResponse(self._store, generate, wanted)
        if not wanted.background:
            return await self._calls.answer(request, generate, wanted, started_s, kept)
        await kept.begin()
        try:
            call = self._calls.open(generate)
        except RequestError:
            await asyncio.to_thread(self._store.delete, generate.salt, kept.id)
            raise
        working = asyncio.create_task(self._work(call, kept, started_s))
        self._working.add(working)
        working.add_done_callback(self._working.discard)
        if wanted.stream:
            return await self._calls.replay(request, KeptEvents(self._store, generate.salt, kept.id))
        return _json(msgspec.json.encode(kept.begun("queued")))

    async def get(self, request: web.Request) -> web.StreamResponse:
        found, tenant, id = await self._find(request), request[SALT], request.match_info["id"]
        if request.query.get("stream", "").lower() != "true":
            return _json(found.record.response)
        after = _number(request, "starting_after", -1, -1, MAX_EVENTS)
        if await asyncio.to_thread(self._store.read_events, tenant, id, 0) is None:
            raise InvalidRequest("stream: only what was created with background and stream has kept events", "stream")
        return await self._calls.replay(request, KeptEvents(self._store, tenant, id, after + 1))

    async def delete(self, request: web.Request) -> web.Response:
        id = request.match_info["id"]
        if not await asyncio.to_thread(self._store.delete, request[SALT], id):
            raise _not_found(id)
        return _json(msgspec.json.encode(DeletedResponse(id)))

    async def cancel(self, request: web.Request) -> web.Response:
        """Whoever works on it sees that it has ended, and stops."""
        found = await self._find(request)
        known = msgspec.json.decode(found.record.response, type=_Known)
        if not known.background:
            raise InvalidRequest("only a response that was created with background can be cancelled", "response_id")
        if known.status in ("queued", "in_progress"):
            found = await self._end(request, found, {"status": "cancelled"})
        return _json(found.record.response)

    async def input_items(self, request: web.Request) -> web.Response:
        items = msgspec.json.decode((await self._find(request)).record.input, type=list[InputItem])
        order = request.query.get("order", "desc")
        if order not in ("asc", "desc"):
            raise InvalidRequest(f"order: {order[:40]!a} is neither asc nor desc", "order")
        if order == "desc":
            items.reverse()
        if after := request.query.get("after"):
            places = [place for place, item in enumerate(items) if item.id == after]
            if not places:
                raise InvalidRequest(f"after: no item here has the id {after[:80]!a}", "after")
            items = items[places[0] + 1 :]
        limit = _number(request, "limit", LISTED, 1, MAX_LISTED)
        shown = items[:limit]
        first, last = (shown[0].id, shown[-1].id) if shown else (None, None)
        return _json(msgspec.json.encode(ItemList(shown, first, last, len(items) > limit)))

    async def _continued(self, tenant: bytes, wanted: ResponsesRequest, id: str) -> ResponsesRequest:
        """The request behind all that led to another response, and its output. Raises InvalidRequest."""
        name = "previous_response_id"
        found = await asyncio.to_thread(self._store.find, tenant, id)
        if found is None:
            raise InvalidRequest(f"{name}: there is no response {id[:80]!a}", name, "previous_response_not_found")
        known = msgspec.json.decode(found.record.response, type=_Known)
        if known.status not in ("completed", "incomplete"):
            raise InvalidRequest(f"{name}: that response is {known.status}, so nothing can follow it", name)
        before = msgspec.json.decode(found.record.input, type=list[InputItem])
        items = [*before, *filter(_is_whole, known.output), *wanted.items]
        if len(items) > MAX_ITEMS:
            raise InvalidRequest(f"{name}: {len(items)} items together; at most {MAX_ITEMS} are taken", name)
        return msgspec.structs.replace(wanted, input=items)

    async def _work(self, call: Call, kept: KeptResponse, started_s: float) -> None:
        """Wait in the background for a call's answer, while anybody wants it."""
        try:
            body = await self._take(call, kept, started_s)
            if body is not None:
                await kept.finish(body)
                self._calls.note_end(call, started_s)
        except RequestError as error:
            await kept.fail(error, call.num_events)
        except Exception:
            log.exception("response failed", extra={"response": kept.id})
        finally:
            self._calls.settle(call)

    async def _keep_events(self, call: Call, kept: KeptResponse, started_s: float) -> bytes | None:
        """Returns the last of them; None: the response has been deleted."""
        last = b""
        while not call.has_ended:
            if chunk := await call.take():
                if not last:
                    self._calls.note_first_token(started_s)
                last = chunk
                if not await kept.add_events(chunk):
                    return None
        return last

    async def _take(self, call: Call, kept: KeptResponse, started_s: float) -> bytes | None:
        taking = asyncio.create_task(self._keep_events(call, kept, started_s) if kept.keeps_events else _body(call))
        try:
            while not (await asyncio.wait({taking}, timeout=LOOK_S))[0]:
                if not await kept.touch():
                    return None
            return taking.result()
        finally:
            taking.cancel()

    async def _find(self, request: web.Request) -> Found:
        """The response that a path names. Raises NotFound."""
        id = request.match_info["id"]
        found = await asyncio.to_thread(self._store.find, request[SALT], id)
        if found is None:
            raise _not_found(id)
        return await self._end(request, found, {"status": "failed", "error": _LOST}) if found.is_stale else found

    async def _end(self, request: web.Request, found: Found, change: dict[str, Any]) -> Found:
        """End a response that is being worked on, unless somebody else has; what it is then."""
        fields = msgspec.json.decode(found.record.response, type=dict[str, Any]) | change
        record = Record(msgspec.Raw(msgspec.json.encode(fields)), found.record.input)
        id = request.match_info["id"]
        await asyncio.to_thread(self._store.end, request[SALT], id, record, True)
        ended = await asyncio.to_thread(self._store.find, request[SALT], id)
        if ended is None:
            raise _not_found(id)
        return ended


def _is_whole(item: InputItem) -> bool:
    """Arguments that break off are no JSON, which templates of chats do not take."""
    return item.type != "function_call" or item.status == "completed"


def _route(
    method: str, path: str, handler: Handler, summary: str, answer: Shape, text: str = "", events: Shape | None = None
) -> Route:
    """Of one response."""
    return Route(
        method=method,
        path="/v1/responses/{id}" + path,
        handler=handler,
        group=GROUP,
        summary=summary,
        text=text,
        variables={"id": "of the response, as it was answered"},
        answer=answer,
        events=events,
        errors=(404,),
    )


async def _body(call: Call) -> bytes | None:
    parts = []
    while not call.has_ended:
        parts.append(await call.take())
    return b"".join(parts)


def _number(request: web.Request, name: str, default: int, least: int, most: int) -> int:
    text = request.query.get(name, str(default))
    if not (_NUMBER.fullmatch(text) and least <= int(text) <= most):
        raise InvalidRequest(f"{name}: {text[:40]!a} is no number from {least} to {most}", name)
    return int(text)


def _not_found(id: str) -> NotFound:
    return NotFound(f"there is no response {id[:80]!a}", param="response_id", code="response_not_found")


def _json(body: bytes | msgspec.Raw) -> web.Response:
    return web.Response(body=bytes(body), content_type="application/json")
