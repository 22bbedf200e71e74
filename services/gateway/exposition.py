"""How counters are shown to Prometheus: under vLLM's names where they mean the same. No state; see docs/metrics.md."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.utils import floatToGoString

from octavo.shared.config import Config
from octavo.shared.histogram import BOUNDS, HistogramCounts
from octavo.shared.messages import Stats
from octavo.shared.pulse import HttpCounts, Vitals

Sample = tuple[dict[str, str], float]

_OF_GATEWAYS = {
    "vllm:time_to_first_token_seconds": "From a streamed request's headers to its first chunk.",
    "vllm:inter_token_latency_seconds": "Between a streamed choice's chunks of new tokens.",
    "vllm:e2e_request_latency_seconds": "From a request's headers to the last byte of its answer.",
    "vllm:request_params_n": "Choices that requests ask for.",
}
_OF_SCHEDULER = {
    "vllm:request_queue_time_seconds": "From a request's arrival at the scheduler to its first step.",
    "vllm:request_prefill_time_seconds": "From a request's first step to its first token.",
    "vllm:request_decode_time_seconds": "From a request's first token to its last.",
    "vllm:request_inference_time_seconds": "From a request's first step to its last token.",
    "vllm:request_time_per_output_token_seconds": "A request's decode time for each token after its first.",
    "vllm:request_prompt_tokens": "Tokens of a finished request's prompt.",
    "vllm:request_generation_tokens": "Tokens of a finished request's completion.",
    "vllm:request_prefill_kv_computed_tokens": "Tokens of a finished request's prompt that no cache had.",
    "vllm:request_params_max_tokens": "Tokens that a finished request might have generated.",
    "vllm:iteration_tokens_total": "Tokens of a step: prompt tokens computed, and tokens generated.",
}


def of_scheduler(stats: Stats, labels: dict[str, str], config: Config) -> Iterator[Metric]:
    """The scheduler's counters, which are the model's."""
    yield from _gauges(stats, labels)
    yield from _counters(stats, labels)
    observed = {counts.name: counts for counts in stats.histograms}
    for name, text in _OF_SCHEDULER.items():
        yield _histogram(name, text, [(labels, observed.get(name) or HistogramCounts.empty(name))])
    info = {
        "engine": labels["engine"],
        "block_size": str(stats.block_size),
        "num_gpu_blocks": str(stats.num_blocks),
        "cache_dtype": config.kv_cache_dtype,
        "enable_prefix_caching": str(config.enable_prefix_caching),
        "gpu_memory_utilization": str(config.gpu_memory_utilization),
    }
    yield _gauge("vllm:cache_config_info", "The KV cache; always 1.", [(info, 1)])


def of_gateways(gateways: Mapping[int, HttpCounts], labels: dict[str, str]) -> Iterator[Metric]:
    """What each gateway has counted, by its index."""
    answers = [
        ({"route": route, "status": str(status), "gateway": str(index)}, float(count))
        for index, counts in gateways.items()
        for route, status, count in counts.requests
    ]
    yield _counter("octavo:http_requests", "Answered HTTP requests; status 499: the client went away first.", answers)
    num_open = [({"gateway": str(index)}, float(counts.num_open)) for index, counts in gateways.items()]
    yield _gauge("octavo:open_streams", "Calls that are not settled.", num_open)
    for name, text in _OF_GATEWAYS.items():
        rows = [
            (labels | {"gateway": str(index)}, histogram)
            for index, counts in gateways.items()
            for histogram in counts.histograms
            if histogram.name == name
        ]
        yield _histogram(name, text, rows)


def of_processes(pulses: Sequence[Vitals]) -> Iterator[Metric]:
    """What every process says of itself."""
    rows = [({"role": each.role, "index": str(each.index), "host": each.host}, each) for each in pulses]
    cpu_s, restarts = [(key, each.cpu_s) for key, each in rows], [(key, each.num_restarts) for key, each in rows]
    yield _counter("octavo:process_cpu_seconds", "User and system time of the process.", cpu_s)
    yield _counter("octavo:process_restarts", "Processes in its place that ended without being told to.", restarts)
    resident = [(key, each.resident_bytes) for key, each in rows]
    yield _gauge("octavo:process_resident_memory_bytes", "Resident memory of the process.", resident)
    started = [(key, each.started_s) for key, each in rows]
    yield _gauge("octavo:process_start_time_seconds", "When the process began, in seconds since 1970.", started)
    steps = [(key, each.num_steps) for key, each in rows if each.num_steps is not None]
    yield _counter("octavo:steps", "Steps that the scheduler has planned, or the executor begun.", steps)
    delays = [(key, each.delay_s) for key, each in rows if each.delay_s is not None]
    yield _gauge("octavo:loop_delay_seconds", "The longest that the loop kept others waiting in half a second.", delays)


def _gauges(stats: Stats, labels: dict[str, str]) -> Iterator[Metric]:
    usage = _share(stats.num_blocks_used, stats.num_blocks)
    waste = _share(stats.num_unfilled, stats.num_positions)
    for name, text, value in (
        ("vllm:num_requests_running", "Requests that are being computed.", float(stats.num_running)),
        ("vllm:num_requests_waiting", "Requests that wait to be computed.", stats.num_waiting),
        ("vllm:kv_cache_usage_perc", "Share of the KV blocks in use, 0 to 1.", usage),
        ("octavo:kv_cache_waste_perc", "Share of the used KV blocks that no token is for, 0 to 1.", waste),
    ):
        yield _gauge(name, text, [(labels, value)])
    reasons = {"capacity": stats.num_waiting - stats.num_deferred, "deferred": stats.num_deferred}
    yield _gauge(
        "vllm:num_requests_waiting_by_reason",
        "Requests that wait for a slot or KV blocks (capacity), or for an executor (deferred).",
        [(labels | {"reason": reason}, count) for reason, count in reasons.items()],
    )


def _counters(stats: Stats, labels: dict[str, str]) -> Iterator[Metric]:
    for name, text, count in (
        ("prefix_cache_queries", "Tokens looked up in the prefix cache.", stats.prefix_queries),
        ("prefix_cache_hits", "Tokens found in the prefix cache.", stats.prefix_hits),
        ("num_preemptions", "Requests that lost their KV blocks to others.", stats.num_preemptions),
        ("prompt_tokens", "Prompt tokens of the requests that have begun.", stats.prompt_tokens),
        ("prompt_tokens_cached", "Of these, those that the prefix cache had.", stats.prompt_tokens_cached),
        ("generation_tokens", "Tokens generated.", stats.generation_tokens),
    ):
        yield _counter(f"vllm:{name}", text, [(labels, count)])
    sources = {
        "local_compute": stats.prompt_tokens - stats.prompt_tokens_cached,
        "local_cache_hit": stats.prompt_tokens_cached,
    }
    yield _counter(
        "vllm:prompt_tokens_by_source",
        "Prompt tokens by where their KV came from.",
        [(labels | {"source": source}, count) for source, count in sources.items()],
    )
    ends = {
        "stop": stats.num_ended_by_stop,
        "length": stats.num_ended_by_length,
        "abort": stats.num_ended_by_abort,
        "error": stats.num_ended_by_error,
    }
    yield _counter(
        "vllm:request_success",
        "Requests that are over; abort: cancelled, error: could not go on.",
        [(labels | {"finished_reason": reason}, count) for reason, count in ends.items()],
    )
    yield _counter(
        "vllm:admission_rejections",
        "Requests answered with 429 because too many wait.",
        [(labels | {"reason": "max_num_queued_reqs"}, stats.num_rejected)],
    )


def _gauge(name: str, text: str, samples: Iterable[Sample]) -> Metric:
    family = GaugeMetricFamily(name, text)
    for labels, value in samples:
        family.add_sample(name, labels, value)
    return family


def _counter(name: str, text: str, samples: Iterable[Sample]) -> Metric:
    family = CounterMetricFamily(name, text)
    for labels, value in samples:
        family.add_sample(f"{name}_total", labels, value)
    return family


def _histogram(name: str, text: str, rows: Iterable[tuple[dict[str, str], HistogramCounts]]) -> Metric:
    family = HistogramMetricFamily(name, text)
    bounds = [*map(floatToGoString, BOUNDS[name]), "+Inf"]
    for labels, observed in rows:
        cumulative = list(accumulate(observed.counts))
        for bound, count in zip(bounds, cumulative, strict=True):
            family.add_sample(f"{name}_bucket", labels | {"le": bound}, count)
        family.add_sample(f"{name}_count", labels, cumulative[-1])
        family.add_sample(f"{name}_sum", labels, observed.sum)
    return family


def _share(part: int, whole: int) -> float:
    return part / whole if whole else 0.0
