"""The routes for operators: health, version and metrics."""

from functools import partial
from typing import Literal

import msgspec
from aiohttp import web

import octavo
from octavo.services.gateway.metrics import Metrics
from octavo.services.gateway.route import Route
from octavo.services.gateway.workers import RETRY_AFTER_S, Workers
from octavo.shared.errors import Unavailable


class Status(msgspec.Struct, frozen=True):
    status: Literal["ready", "live"]


class Version(msgspec.Struct, frozen=True):
    version: str


class AdminRoutes:
    """Handlers and what they share."""

    def __init__(self, workers: Workers, metrics: Metrics) -> None:
        self._workers = workers
        self._metrics = metrics

    def table(self) -> list[Route]:
        get = partial(Route, method="GET", group="Operation")
        return [
            get(
                path="/health",
                handler=self.ready,
                summary="Whether requests are served now",
                answer=Status,
                errors=(503,),
            ),
            get(
                path="/readyz",
                handler=self.ready,
                summary="The same, under Kubernetes' name",
                answer=Status,
                errors=(503,),
            ),
            get(path="/livez", handler=self.live, summary="Whether this process turns", answer=Status),
            get(path="/version", handler=self.version, summary="Octavo's version", answer=Version),
            get(
                path="/metrics",
                handler=self.metrics,
                summary="Counters and histograms in Prometheus' text format",
                media_type="text/plain",
            ),
        ]

    async def ready(self, request: web.Request) -> web.Response:
        """200 while a live tokenizer says that it and all behind it can serve."""
        if not self._workers.is_ready:
            raise Unavailable("not ready", code="not_ready", retry_after_s=RETRY_AFTER_S)
        return _json(Status("ready"))

    async def live(self, request: web.Request) -> web.Response:
        """200 whenever the event loop turns."""
        return _json(Status("live"))

    async def version(self, request: web.Request) -> web.Response:
        return _json(Version(octavo.__version__))

    async def metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4"})


def _json(answer: msgspec.Struct) -> web.Response:
    return web.Response(body=msgspec.json.encode(answer), content_type="application/json")
