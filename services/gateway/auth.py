"""Who may come in: the API keys, checked for every matched route that is not named as open."""

import hmac
from collections.abc import Iterator, Sequence
from hashlib import sha256

from aiohttp import web
from aiohttp.typedefs import Handler, Middleware

from octavo.shared.errors import Unauthorized

OPEN_ROUTES = frozenset({"/health", "/livez", "/readyz"})
SALT = web.RequestKey("salt", bytes)
"""The digest of the client's key: separates the prefix caches of tenants. Empty without keys."""


def require_key(keys: Sequence[str]) -> Middleware:
    """A middleware that answers 401 to whoever brings none of the keys; without keys all may come in."""
    digests = [sha256(key.encode()).digest() for key in keys]

    @web.middleware
    async def check_key(request: web.Request, handler: Handler) -> web.StreamResponse:
        request[SALT] = _matching(digests, request) if digests and not _is_open(request) else b""
        return await handler(request)

    return check_key


def _is_open(request: web.Request) -> bool:
    # The matched route decides, never the path's text: two readings of one path have opened doors before.
    resource = request.match_info.route.resource
    return resource is not None and resource.canonical in OPEN_ROUTES


def _matching(digests: Sequence[bytes], request: web.Request) -> bytes:
    """The digest of the key that the request brings. Raises Unauthorized."""
    given = [sha256(key.encode(errors="surrogateescape")).digest() for key in _brought(request)]
    if not given:
        sentence = "an API key is needed: Authorization: Bearer KEY, or X-Api-Key: KEY"
        raise Unauthorized(sentence, code="missing_api_key")
    matching = b""
    for digest in digests:  # all of them, so that the time tells nothing
        for each in given:
            if hmac.compare_digest(digest, each):
                matching = digest
    if not matching:
        raise Unauthorized("this API key is not known here", code="invalid_api_key")
    return matching


def _brought(request: web.Request) -> Iterator[str]:
    """The keys in the request's headers: OpenAI's clients bring a bearer, Anthropic's have a header of their own."""
    scheme, _, key = request.headers.get("Authorization", "").partition(" ")
    if scheme.lower() == "bearer" and key.strip():
        yield key.strip()
    if key := request.headers.get("X-Api-Key", "").strip():
        yield key
