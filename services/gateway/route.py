"""Route: all that there is to know of one route, in one place. The router and the documentation are made of it."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from types import UnionType

import msgspec
from aiohttp import web

Shape = type[msgspec.Struct] | UnionType
"""A Struct, or a union of tagged ones."""


@dataclass(frozen=True, kw_only=True)
class Route:
    """A method and a path, what they take, and what they answer."""

    method: str
    path: str
    """As aiohttp takes it: a variable is {name}, or {name:pattern}."""
    handler: Callable[[web.Request], Awaitable[web.StreamResponse]]
    group: str
    """The heading under which the documentation has it."""
    summary: str
    """A few words; the documentation's title of it."""
    text: str = ""
    """What more a caller should know."""
    variables: Mapping[str, str] = field(default_factory=dict)
    """The variables in the path, and what they mean."""
    body: Shape | None = None
    """What the request's JSON must be. The handler validates with it."""
    example: Mapping[str, object] | None = None
    """A body that is taken."""
    answer: Shape | None = None
    """The JSON of status 200; None: any object, or what `media_type` says."""
    events: Shape | None = None
    """The data of each event, for a route that can stream."""
    failure: Shape | None = None
    """The JSON of errors; None: OpenAI's."""
    last_event: str | None = None
    """The data of one more event that ends a stream, and is no JSON."""
    media_type: str = "application/json"
    errors: tuple[int, ...] = ()
    """The statuses that it may answer besides those that every route may."""

    def definition(self) -> web.RouteDef:
        """As aiohttp's router takes it."""
        return web.route(self.method, self.path, self.handler)


CALL_ERRORS = (404, 413, 429, 503)
"""Of a route whose body is worked on behind the gateway."""
