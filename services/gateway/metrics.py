"""What a gateway counts of its HTTP requests, and the text of /metrics.

Several gateways may listen on one port, and a scrape reaches any of them: each shows the counts of all, under the
label `gateway`, those of the others as their pulse files say.
"""

from collections.abc import Iterator
from pathlib import Path

from aiohttp import web
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import Metric

from octavo.services.gateway import exposition, traces
from octavo.services.gateway.call import Call
from octavo.services.gateway.workers import Workers
from octavo.shared.config import Config
from octavo.shared.histogram import Histogram
from octavo.shared.openai import Options
from octavo.shared.pulse import HttpCounts, read_pulses


class Metrics:
    """Owns a registry, so that nothing global is touched."""

    def __init__(self, config: Config, folder: Path, index: int, workers: Workers) -> None:
        """Set up.

        Args:
            config: of the whole system.
            folder: where the pulses of all processes lie.
            index: which of several gateways this is.
            workers: know the newest counters of the scheduler; asked at every scrape.
        """
        self._config, self._folder, self._index, self._workers = config, folder, index, workers
        self._registry = CollectorRegistry()
        self._registry.register(self)
        self._answers: dict[tuple[str, int], int] = {}
        self._choices = Histogram("vllm:request_params_n")
        self._first_token = Histogram("vllm:time_to_first_token_seconds")
        self._latency = Histogram("vllm:e2e_request_latency_seconds")

    def note_request(self, request: web.Request, wanted: Options) -> None:
        """A request was read, and asks for something that is served."""
        self._choices.observe(wanted.n or 1)
        traces.note_request(request, wanted, self._config.model_names[0])

    def note_first_token(self, request: web.Request | None, seconds: float) -> None:
        """The first chunk of a streamed request has come, so long after its headers.

        request: None for one in the background, whose span does not wait for it.
        """
        self._first_token.observe(seconds)
        if request is not None:
            traces.note(request, {"gen_ai.latency.time_to_first_token": seconds})

    def note_end(self, request: web.Request | None, call: Call, seconds: float) -> None:
        """The last byte of a whole answer has been sent, or kept, so long after the request's headers. See above."""
        self._latency.observe(seconds)
        if request is not None:
            traces.note_end(request, call, seconds)

    def note_answer(self, route: str, status: int) -> None:
        """A request, of whatever kind, is over."""
        self._answers[route, status] = self._answers.get((route, status), 0) + 1

    def http_counts(self) -> HttpCounts:
        """All that this gateway has counted."""
        histograms = (self._first_token, self._workers.inter_token, self._latency, self._choices)
        return HttpCounts(
            [(route, status, count) for (route, status), count in self._answers.items()],
            [histogram.counts() for histogram in histograms],
            self._workers.num_open,
        )

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)

    def collect(self) -> Iterator[Metric]:
        """For the registry."""
        labels = {"model_name": self._config.model_names[0], "engine": "0"}
        pulses = list(read_pulses(self._folder))
        gateways = {each.index: each.http for each in pulses if each.http is not None}
        gateways[self._index] = self.http_counts()
        if self._workers.stats is not None:
            yield from exposition.of_scheduler(self._workers.stats, labels, self._config)
        yield from exposition.of_gateways(gateways, labels)
        yield from exposition.of_processes(pulses)
