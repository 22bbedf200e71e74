"""The aiohttp application: routes and middlewares put together, and the limits of its HTTP."""

import os
import re

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from octavo.services.gateway.admin import AdminRoutes
from octavo.services.gateway.auth import require_key
from octavo.services.gateway.errors import LABEL, UnsupportedMediaType, answer_errors
from octavo.services.gateway.metrics import Metrics
from octavo.services.gateway.openai import OpenAIRoutes
from octavo.services.gateway.traces import Traces
from octavo.services.gateway.workers import Workers
from octavo.shared.config import Config

MAX_BODY_BYTES = 4 * 1024 * 1024
MAX_HEADER_BYTES = 8 * 1024
MAX_HEADERS = 64
IDLE_S = 75.0  # a connection may wait this long between requests

_LABEL_SHAPE = re.compile(r"[A-Za-z0-9_-]{1,64}")


def build(config: Config, workers: Workers, metrics: Metrics, traces: Traces | None) -> web.Application:
    """The application, not yet started."""
    app = web.Application(
        client_max_size=MAX_BODY_BYTES,
        middlewares=[_observe(metrics, traces), answer_errors, require_key(config.api_keys), _refuse_encodings],
    )
    app.add_routes(OpenAIRoutes(config, workers, metrics).table())
    app.add_routes(AdminRoutes(workers, metrics).table())
    app.on_response_prepare.append(_add_headers)
    return app


def runner(app: web.Application, shutdown_s: float) -> web.AppRunner:
    """What serves the application; a handler is cancelled when its client goes away."""
    return web.AppRunner(
        app,
        handler_cancellation=True,
        max_line_size=MAX_HEADER_BYTES,
        max_field_size=MAX_HEADER_BYTES,
        max_headers=MAX_HEADERS,
        keepalive_timeout=IDLE_S,
        auto_decompress=False,
        access_log=None,
        shutdown_timeout=shutdown_s,
    )


def _observe(metrics: Metrics, traces: Traces | None) -> Middleware:
    """A middleware that names a request, counts its answer, and traces it if it generates text."""

    @web.middleware
    async def observe(request: web.Request, handler: Handler) -> web.StreamResponse:
        resource = request.match_info.route.resource
        label = request.headers.get("X-Request-Id", "")
        request[LABEL] = label if _LABEL_SHAPE.fullmatch(label) else os.urandom(16).hex()
        route = resource.canonical if resource is not None else "none"
        status = 499
        if traces is not None and request.method == "POST":
            traces.begin(request, route)
        try:
            response = await handler(request)
            status = response.status
            return response
        finally:
            metrics.note_answer(route, status)
            if traces is not None:
                traces.end(request, status)

    return observe


@web.middleware
async def _refuse_encodings(request: web.Request, handler: Handler) -> web.StreamResponse:
    encoding = request.headers.get("Content-Encoding")
    if encoding is not None:
        raise UnsupportedMediaType(f"Content-Encoding {encoding[:40]!a} is not taken; send the body as it is")
    return await handler(request)


async def _add_headers(request: web.Request, response: web.StreamResponse) -> None:
    # A request that is refused before the middlewares has no label.
    response.headers["X-Request-Id"] = request.get(LABEL, "-")
    response.headers["Server"] = "octavo"
