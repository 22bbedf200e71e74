"""What is noted of every request: its label, a count, and with --access-log one line."""

import logging
import os
import re
import time

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from octavo.services.gateway.errors import LABEL
from octavo.services.gateway.metrics import Metrics
from octavo.services.gateway.traces import Traces

log = logging.getLogger(__name__)

CLIENT_GONE = 499  # in counts and in the log; nobody is left to see it

_LABEL_SHAPE = re.compile(r"[A-Za-z0-9_-]{1,64}")


def observe_answers(metrics: Metrics, traces: Traces | None, has_access_log: bool) -> Middleware:
    """A middleware that names a request, counts its answer, and traces and logs it if that is wanted."""
    if has_access_log:
        log.setLevel(logging.INFO)  # whatever --log-level says

    @web.middleware
    async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
        started_s = time.monotonic()
        label = request.headers.get("X-Request-Id", "")
        request[LABEL] = label if _LABEL_SHAPE.fullmatch(label) else os.urandom(16).hex()
        response = None
        if traces is not None and request.method == "POST":
            traces.begin(request, _route(request))
        try:
            response = await handler(request)
            return response
        finally:
            status = CLIENT_GONE if response is None else response.status
            metrics.note_answer(_route(request), status)
            if traces is not None:
                traces.end(request, status)
            if has_access_log:
                _log_answer(request, response, status, time.monotonic() - started_s)

    return observe


def _route(request: web.Request) -> str:
    """The route's pattern: the path itself may be anything, and a query may hold secrets."""
    resource = request.match_info.route.resource
    return "none" if resource is None else resource.canonical


def _log_answer(request: web.Request, response: web.StreamResponse | None, status: int, took_s: float) -> None:
    # A whole answer is written when the middlewares are through; of a stream all is.
    body = response.body if isinstance(response, web.Response) else None
    num_bytes = len(body) if isinstance(body, bytes) else request.writer.output_size
    fields = {
        "method": request.method,
        "route": _route(request),
        "status": status,
        "took_ms": round(1000 * took_s, 1),
        "bytes": num_bytes,
        "request": request.get(LABEL),
        "client": request.remote,
    }
    log.info("answered", extra=fields)
