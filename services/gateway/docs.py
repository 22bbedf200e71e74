"""The routes that tell of all routes: the OpenAPI document, and a page made of it."""

from collections.abc import Sequence

import msgspec
from aiohttp import web

from octavo.services.gateway import page
from octavo.services.gateway.openapi import describe
from octavo.services.gateway.route import Route

GROUP = "Documentation"


class DocsRoutes:
    """Handlers, and the two texts that they answer."""

    def __init__(self, routes: Sequence[Route]) -> None:
        """Make the texts: of these routes and our own."""
        document = describe([*routes, *self.table()])
        self._document = msgspec.json.encode(document)
        self._page = page.render(document).encode()

    def table(self) -> list[Route]:
        return [
            Route(
                method="GET",
                path="/openapi.json",
                handler=self.document,
                group=GROUP,
                summary="This API as an OpenAPI 3.1 document",
            ),
            Route(
                method="GET",
                path="/docs",
                handler=self.docs,
                group=GROUP,
                summary="This page",
                media_type="text/html",
            ),
        ]

    async def document(self, request: web.Request) -> web.Response:
        return web.Response(body=self._document, content_type="application/json")

    async def docs(self, request: web.Request) -> web.Response:
        headers = {"Content-Security-Policy": page.POLICY, "X-Content-Type-Options": "nosniff"}
        return web.Response(body=self._page, content_type="text/html", charset="utf-8", headers=headers)
