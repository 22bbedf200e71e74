"""The aiohttp application: routes and middlewares put together, and the limits of its HTTP."""

from pathlib import Path

from aiohttp import web
from aiohttp.typedefs import Handler

from octavo.services.gateway.admin import AdminRoutes
from octavo.services.gateway.anthropic import AnthropicRoutes
from octavo.services.gateway.auth import require_key
from octavo.services.gateway.calls import Calls
from octavo.services.gateway.cors import answer_preflights, mark_answers
from octavo.services.gateway.docs import DocsRoutes
from octavo.services.gateway.errors import LABEL, UnsupportedMediaType, answer_errors
from octavo.services.gateway.metrics import Metrics
from octavo.services.gateway.observe import observe_answers
from octavo.services.gateway.openai import OpenAIRoutes
from octavo.services.gateway.response_store import ResponseStore
from octavo.services.gateway.responses import ResponsesRoutes
from octavo.services.gateway.traces import Traces
from octavo.services.gateway.workers import Workers
from octavo.shared.config import Config

MIB = 1024 * 1024
MAX_HEADER_BYTES = 8 * 1024
MAX_HEADERS = 64
IDLE_S = 75.0  # a connection may wait this long between requests


def build(config: Config, workers: Workers, metrics: Metrics, traces: Traces | None, folder: Path) -> web.Application:
    """The application, not yet started. folder: where it may keep files, beside other gateways."""
    observe = observe_answers(metrics, traces, has_access_log=config.access_log)
    middlewares = [observe, answer_errors, require_key(config.api_keys), _refuse_encodings]
    app = web.Application(client_max_size=config.max_body_mib * MIB)
    if config.allowed_origins:
        middlewares.insert(1, answer_preflights(config.allowed_origins))
        app.on_response_prepare.append(mark_answers(config.allowed_origins))
    app.middlewares.extend(middlewares)
    calls = Calls(config, workers, metrics)
    responses = ResponsesRoutes(calls, ResponseStore(folder / "responses"))
    app.on_cleanup.append(responses.close)
    routes = [*OpenAIRoutes(config, workers, calls).table(), *responses.table(), *AnthropicRoutes(calls).table()]
    routes += AdminRoutes(workers, metrics).table()
    routes += DocsRoutes(routes).table()
    app.add_routes([route.definition() for route in routes])
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
