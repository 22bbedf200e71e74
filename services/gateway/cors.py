"""Cross-origin calls: which other sites' pages a browser lets call us. It asks first, and without a key."""

from collections.abc import Awaitable, Callable, Sequence

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

METHODS = "GET, POST, DELETE"
EXPOSED = "X-Request-Id, Retry-After"
PREFLIGHT_S = 600  # a browser may remember the answer for so long


def answer_preflights(origins: Sequence[str]) -> Middleware:
    """A middleware that answers the questions of browsers on pages of these origins."""

    @web.middleware
    async def answer(request: web.Request, handler: Handler) -> web.StreamResponse:
        is_preflight = request.method == "OPTIONS" and "Access-Control-Request-Method" in request.headers
        if not is_preflight or _admitted(origins, request) is None:
            return await handler(request)
        headers = {"Access-Control-Allow-Methods": METHODS, "Access-Control-Max-Age": str(PREFLIGHT_S)}
        # A star would leave out Authorization, and clients bring many headers of their own.
        if wanted := request.headers.get("Access-Control-Request-Headers"):
            headers["Access-Control-Allow-Headers"] = wanted
        return web.Response(status=204, headers=headers)

    return answer


def mark_answers(origins: Sequence[str]) -> Callable[[web.Request, web.StreamResponse], Awaitable[None]]:
    """A signal of `on_response_prepare`: pages of these origins may read what is answered, errors and streams too."""

    async def mark(request: web.Request, response: web.StreamResponse) -> None:
        admitted = _admitted(origins, request)
        if admitted != "*":
            response.headers.add("Vary", "Origin")  # a cache must not give one origin's answer to another
        if admitted is not None:
            response.headers["Access-Control-Allow-Origin"] = admitted
            response.headers["Access-Control-Expose-Headers"] = EXPOSED

    return mark


def _admitted(origins: Sequence[str], request: web.Request) -> str | None:
    """What Access-Control-Allow-Origin says to this request; None: it is left out."""
    origin = request.headers.get("Origin")
    return "*" if "*" in origins else origin if origin in origins else None
