"""The routes for operators: health, version and metrics."""

from aiohttp import web

import octavo
from octavo.services.gateway.metrics import Metrics
from octavo.services.gateway.workers import RETRY_AFTER_S, Workers
from octavo.shared.errors import Unavailable


class AdminRoutes:
    """Handlers and what they share."""

    def __init__(self, workers: Workers, metrics: Metrics) -> None:
        self._workers = workers
        self._metrics = metrics

    def table(self) -> list[web.RouteDef]:
        return [
            web.get("/health", self.ready),
            web.get("/readyz", self.ready),
            web.get("/livez", self.live),
            web.get("/version", self.version),
            web.get("/metrics", self.metrics),
        ]

    async def ready(self, request: web.Request) -> web.Response:
        """200 while a live tokenizer says that it and all behind it can serve."""
        if not self._workers.is_ready:
            raise Unavailable("not ready", code="not_ready", retry_after_s=RETRY_AFTER_S)
        return web.json_response({"status": "ready"})

    async def live(self, request: web.Request) -> web.Response:
        """200 whenever the event loop turns."""
        return web.json_response({"status": "live"})

    async def version(self, request: web.Request) -> web.Response:
        return web.json_response({"version": octavo.__version__})

    async def metrics(self, request: web.Request) -> web.Response:
        return web.Response(body=self._metrics.text(), headers={"Content-Type": "text/plain; version=0.0.4"})
