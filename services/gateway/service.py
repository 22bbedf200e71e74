"""The gateway's main loop, its start and its orderly end."""

import asyncio
import time
from collections.abc import Callable
from pathlib import Path

from aiohttp import web

from octavo.services.gateway import app
from octavo.services.gateway.metrics import Metrics
from octavo.services.gateway.traces import Traces
from octavo.services.gateway.workers import Workers, shutting_down
from octavo.shared.config import Config
from octavo.shared.messages import TO_GATEWAY
from octavo.shared.pulse import Pulse
from octavo.shared.tls import Certificate
from octavo.shared.transport import Hub, gateway_endpoint, new_context

TICK_S = 0.2
DRAIN_S = 1.0  # for open streams to finish when the gateway is told to stop
LAST_WORDS_S = 0.5  # for their clients to take the error that ends the others
BACKLOG = 2048
MAX_OPEN_BEYOND_QUEUE = 4096  # calls that run, above those that the scheduler may queue


class Gateway:
    """One gateway process: an HTTP server, and the workers behind it."""

    def __init__(self, config: Config, folder: Path, index: int = 0) -> None:
        """Bind the socket that workers connect to.

        Args:
            config: of the whole system.
            folder: where the sockets between processes lie.
            index: which of several gateways this is.

        Raises:
            ConfigError: traces are wanted and cannot be made, or TLS cannot work with the files that the config names.
        """
        self._config = config
        self._certificate = Certificate(config)
        self._traces = Traces(config.otlp_endpoint, index) if config.otlp_endpoint else None
        self._context = new_context()
        hub: Hub[TO_GATEWAY] = Hub(self._context, gateway_endpoint(folder, index), TO_GATEWAY)
        self._pulse = Pulse(folder, "gateway", index)
        max_open = config.max_queued_requests + MAX_OPEN_BEYOND_QUEUE
        self._workers = Workers(hub, max_open, is_successor=self._pulse.num_restarts > 0)
        self._metrics = Metrics(config, folder, index, self._workers)
        self.app = app.build(config, self._workers, self._metrics, self._traces, folder)
        self._runner = app.runner(self.app, LAST_WORDS_S)

    async def run(self, should_stop: Callable[[], bool]) -> None:
        """Turn until told to stop; requests are served in between."""
        delay_s, was_ready = 0.0, False
        while not should_stop():
            now = time.monotonic()
            self._workers.tick(now)
            is_ready = self._workers.is_ready
            if self._pulse.is_due(now) or is_ready != was_ready:
                was_ready = is_ready
                self._pulse.beat(is_ready, None, delay_s, self._metrics.http_counts())
                self._certificate.refresh()
                delay_s = 0.0
            await asyncio.sleep(TICK_S)
            delay_s = max(delay_s, time.monotonic() - now - TICK_S)

    async def start(self) -> str:
        """Begin to listen; returns the address, as a URL."""
        self._workers.start()
        await self._runner.setup()
        config, tls = self._config, self._certificate.context
        site = web.TCPSite(
            self._runner, config.host, config.port, ssl_context=tls, reuse_port=True, backlog=BACKLOG
        )  # fmt: skip
        await site.start()
        host = f"[{config.host}]" if ":" in config.host else config.host
        return f"http{'' if tls is None else 's'}://{host}:{self._runner.addresses[0][1]}"

    async def stop(self) -> None:
        """Refuse new calls, let open streams finish for DRAIN_S, end the rest with an error, and close."""
        self._workers.stop_accepting()
        for site in self._runner.sites:
            await site.stop()
        deadline = time.monotonic() + DRAIN_S
        while self._workers.num_open and time.monotonic() < deadline:
            await asyncio.sleep(TICK_S / 10)
        self._workers.fail_all(shutting_down())
        await self._runner.cleanup()
        self._workers.close()
        self._context.term()
        if self._traces is not None:
            self._traces.close()
        self._pulse.end()
