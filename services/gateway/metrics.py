"""What /metrics shows: the scheduler's counters under vLLM's names, and the gateway's own."""

from collections.abc import Callable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from octavo.shared.messages import Stats

FIRST_TOKEN_BUCKETS_S = (0.001, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.25, 0.5, 1, 2.5, 5, 10, 20, 40, 80)
LATENCY_BUCKETS_S = (0.05, 0.1, 0.3, 0.5, 0.8, 1, 1.5, 2, 2.5, 5, 10, 15, 20, 30, 40, 50, 60, 120, 240, 480)

_COUNTERS: tuple[tuple[str, str, Callable[[Stats], int]], ...] = (
    ("prefix_cache_queries", "Prompt tokens looked up in the cache.", lambda stats: stats.prefix_queries),
    ("prefix_cache_hits", "Prompt tokens found in the cache.", lambda stats: stats.prefix_hits),
    ("num_preemptions", "Requests that lost their KV blocks to others.", lambda stats: stats.num_preemptions),
    ("prompt_tokens", "Prompt tokens computed.", lambda stats: stats.prompt_tokens),
    ("generation_tokens", "Tokens generated.", lambda stats: stats.generation_tokens),
)
_GAUGES: tuple[tuple[str, str, Callable[[Stats], float]], ...] = (
    ("vllm:num_requests_running", "Requests that are being computed.", lambda stats: stats.num_running),
    ("vllm:num_requests_waiting", "Requests that wait to be computed.", lambda stats: stats.num_waiting),
    ("vllm:kv_cache_usage_perc", "Share of the KV blocks in use, 0 to 1.", lambda stats: _usage(stats)),
    (
        "octavo:kv_cache_waste_perc",
        "Share of the used KV blocks that no token is for, 0 to 1.",
        lambda stats: _waste(stats),
    ),
)


class Metrics:
    """Owns a registry, so that nothing global is touched."""

    def __init__(self, model_name: str, stats: Callable[[], Stats | None], num_open: Callable[[], int]) -> None:
        """Set up.

        Args:
            model_name: the label of everything that concerns the model.
            stats: gives the newest counters of the scheduler; asked at every scrape.
            num_open: gives the number of open calls; asked at every scrape.
        """
        self._registry = CollectorRegistry()
        self._registry.register(_StatsCollector(model_name, stats))
        self.http_requests = Counter(
            "octavo:http_requests",
            "Answered HTTP requests; status 499: the client went away first.",
            ["route", "status"],
            registry=self._registry,
        )
        open_streams = Gauge("octavo:open_streams", "Calls that are not settled.", registry=self._registry)
        open_streams.set_function(num_open)
        self.time_to_first_token = Histogram(
            "vllm:time_to_first_token_seconds",
            "From a streamed request's headers to its first chunk.",
            ["model_name"],
            registry=self._registry,
            buckets=FIRST_TOKEN_BUCKETS_S,
        ).labels(model_name)
        self.latency = Histogram(
            "vllm:e2e_request_latency_seconds",
            "From a request's headers to the last byte of its answer.",
            ["model_name"],
            registry=self._registry,
            buckets=LATENCY_BUCKETS_S,
        ).labels(model_name)

    def text(self) -> bytes:
        """Everything in Prometheus' text format."""
        return generate_latest(self._registry)


class _StatsCollector:
    """Shows the scheduler's counters as they are at the scrape."""

    def __init__(self, model_name: str, stats: Callable[[], Stats | None]) -> None:
        self._model_name = model_name
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        stats = self._stats()
        if stats is None:
            return
        for name, text, value_of in _GAUGES:
            gauge = GaugeMetricFamily(name, text, labels=["model_name"])
            gauge.add_metric([self._model_name], value_of(stats))
            yield gauge
        for name, text, value_of in _COUNTERS:
            counter = CounterMetricFamily(f"vllm:{name}", text, labels=["model_name"])
            counter.add_metric([self._model_name], value_of(stats))
            yield counter


def _waste(stats: Stats) -> float:
    return stats.num_unfilled / stats.num_positions if stats.num_positions else 0.0


def _usage(stats: Stats) -> float:
    return stats.num_blocks_used / stats.num_blocks if stats.num_blocks else 0.0
