"""What a scrape of /metrics shows, read as Prometheus reads it."""

import asyncio
import json
import re
import time
from collections.abc import Mapping
from pathlib import Path

from prometheus_client.parser import text_string_to_metric_families
from tests.gateway.harness import CHAT_BODY, MODEL, Running, read_until, running, until_ready
from tests.tools.fake_tokenizer import DEADLINE_S, DONE, FakeTokenizer, text

from octavo.shared.histogram import BOUNDS, Histogram, HistogramCounts
from octavo.shared.messages import TO_GATEWAY, Generate, Stats
from octavo.shared.pulse import HttpCounts, Pulse

ENGINE = {"model_name": MODEL, "engine": "0"}
HERE = ENGINE | {"gateway": "0"}
DOCS = Path(__file__).parents[2] / "docs"
DASHBOARD, METRICS_PAGE = DOCS / "grafana" / "octavo.json", DOCS / "metrics.md"

# The names that dashboards and autoscalers made for vLLM read.
VLLM_NAMES = """
vllm:num_requests_running vllm:num_requests_waiting vllm:num_requests_waiting_by_reason vllm:kv_cache_usage_perc
vllm:prefix_cache_queries_total vllm:prefix_cache_hits_total vllm:num_preemptions_total vllm:prompt_tokens_total
vllm:prompt_tokens_cached_total vllm:prompt_tokens_by_source_total vllm:generation_tokens_total
vllm:request_success_total vllm:cache_config_info
vllm:time_to_first_token_seconds_bucket vllm:inter_token_latency_seconds_bucket
vllm:request_time_per_output_token_seconds_bucket vllm:e2e_request_latency_seconds_bucket
vllm:request_queue_time_seconds_bucket vllm:request_prefill_time_seconds_bucket
vllm:request_decode_time_seconds_bucket vllm:request_inference_time_seconds_bucket
vllm:request_prompt_tokens_bucket vllm:request_generation_tokens_bucket vllm:request_params_n_bucket
vllm:request_params_max_tokens_bucket vllm:iteration_tokens_total_bucket
"""

STATS = Stats(
    num_running=3,
    num_waiting=2,
    num_blocks=200,
    num_blocks_used=50,
    num_preemptions=4,
    prompt_tokens=1000,
    generation_tokens=500,
    prefix_queries=900,
    prefix_hits=300,
    num_positions=400,
    num_unfilled=12,
    block_size=16,
    prompt_tokens_cached=250,
    num_rejected=6,
    num_ended_by_stop=11,
    num_ended_by_abort=5,
    histograms=[HistogramCounts("vllm:request_queue_time_seconds", [2, 0, 1, *[0] * 18, 1], 9000.9)],
)
# What a scrape shows of them.
SHOWN: tuple[tuple[str, dict[str, str], float], ...] = (
    ("vllm:num_requests_running", {}, 3),
    ("vllm:num_requests_waiting", {}, 2),
    ("vllm:num_requests_waiting_by_reason", {"reason": "capacity"}, 2),
    ("vllm:num_requests_waiting_by_reason", {"reason": "deferred"}, 0),
    ("vllm:kv_cache_usage_perc", {}, 0.25),
    ("octavo:kv_cache_waste_perc", {}, 0.03),
    ("vllm:prefix_cache_queries_total", {}, 900),
    ("vllm:prefix_cache_hits_total", {}, 300),
    ("vllm:num_preemptions_total", {}, 4),
    ("vllm:prompt_tokens_total", {}, 1000),
    ("vllm:prompt_tokens_cached_total", {}, 250),
    ("vllm:prompt_tokens_by_source_total", {"source": "local_compute"}, 750),
    ("vllm:prompt_tokens_by_source_total", {"source": "local_cache_hit"}, 250),
    ("vllm:generation_tokens_total", {}, 500),
    ("vllm:admission_rejections_total", {"reason": "max_num_queued_reqs"}, 6),
    ("vllm:request_success_total", {"finished_reason": "stop"}, 11),
    ("vllm:request_success_total", {"finished_reason": "abort"}, 5),
    ("vllm:request_success_total", {"finished_reason": "length"}, 0),
    ("vllm:request_queue_time_seconds_bucket", {"le": "0.3"}, 2),
    ("vllm:request_queue_time_seconds_bucket", {"le": "0.5"}, 2),
    ("vllm:request_queue_time_seconds_bucket", {"le": "0.8"}, 3),
    ("vllm:request_queue_time_seconds_bucket", {"le": "7680.0"}, 3),
    ("vllm:request_queue_time_seconds_bucket", {"le": "+Inf"}, 4),
    ("vllm:request_queue_time_seconds_count", {}, 4),
    ("vllm:request_queue_time_seconds_sum", {}, 9000.9),
    ("vllm:request_decode_time_seconds_count", {}, 0),
)


class Scrape:
    """The samples of one answer."""

    def __init__(self, exposed: str) -> None:
        self.samples = [sample for family in text_string_to_metric_families(exposed) for sample in family.samples]

    def value(self, name: str, labels: Mapping[str, str]) -> float:
        """The one sample of a name with just these labels."""
        (value,) = [each.value for each in self.samples if each.name == name and each.labels == labels]
        return float(value)

    @property
    def names(self) -> set[str]:
        return {sample.name for sample in self.samples}


async def scrape(server: Running, wanted: str = "") -> Scrape:
    """What /metrics shows, as soon as it has a name."""
    async with asyncio.timeout(DEADLINE_S):
        while True:
            exposed = await (await server.client.get("/metrics")).text()
            if wanted in exposed:
                return Scrape(exposed)
            await asyncio.sleep(0.01)


def test_the_scheduler_s_counters_have_the_names_and_labels_of_vllm(tmp_path: Path) -> None:
    async def scenario() -> Scrape:
        async with running(tmp_path) as server:
            with FakeTokenizer(tmp_path) as tokenizer:
                tokenizer.stats = STATS
                await until_ready(server.client)
                return await scrape(server, "num_requests_running")

    shown = asyncio.run(scenario())
    assert set(VLLM_NAMES.split()) <= shown.names
    for name, labels, value in SHOWN:
        assert shown.value(name, ENGINE | labels) == value, name
    (info,) = [sample.labels for sample in shown.samples if sample.name == "vllm:cache_config_info"]
    assert (info["block_size"], info["num_gpu_blocks"], info["engine"]) == ("16", "200", "0")


def test_times_of_a_streamed_request_are_those_that_its_client_sees(tmp_path: Path) -> None:
    def script(generate: Generate) -> list[TO_GATEWAY]:
        return [text(generate, b"data: 1\n\n", token_ids=[1])]

    async def scenario() -> tuple[Scrape, float]:
        async with running(tmp_path) as server:
            with FakeTokenizer(tmp_path, script) as tokenizer:
                await until_ready(server.client)
                began = time.monotonic()
                body = CHAT_BODY | {"stream": True, "n": 2}
                response = await server.client.post("/v1/chat/completions", json=body)
                await read_until(response, b"\n\n")
                (generate,) = tokenizer.generates()
                await asyncio.sleep(0.06)
                tokenizer.say(text(generate, b"data: 2\n\n", token_ids=[2]))
                tokenizer.say(text(generate, b"data: 3\n\n", choice=1, token_ids=[3]))  # the first of its choice
                tokenizer.say(text(generate, DONE, is_last=True))  # brings no token
                await response.read()
                took = time.monotonic() - began
                return await scrape(server), took

    shown, took = asyncio.run(scenario())
    gap = "vllm:inter_token_latency_seconds"
    assert shown.value(f"{gap}_count", HERE) == 1
    assert shown.value(f"{gap}_bucket", HERE | {"le": "0.05"}) == 0
    assert 0.06 <= shown.value(f"{gap}_sum", HERE) < took
    assert 0 < shown.value("vllm:time_to_first_token_seconds_sum", HERE) < took - 0.06
    assert 0.06 < shown.value("vllm:e2e_request_latency_seconds_sum", HERE) <= took
    for name in ("time_to_first_token_seconds", "e2e_request_latency_seconds", "request_params_n"):
        assert shown.value(f"vllm:{name}_count", HERE) == 1
    assert shown.value("vllm:request_params_n_sum", HERE) == 2
    answered = {"route": "/v1/chat/completions", "status": "200", "gateway": "0"}
    assert shown.value("octavo:http_requests_total", answered) == 1
    assert shown.value("octavo:open_streams", {"gateway": "0"}) == 0


def test_a_value_on_a_bound_lies_below_it() -> None:
    histogram = Histogram("vllm:request_params_n")  # up to 1, 2, 5, 10, 20, and above
    for value in (1, 2, 3, 5, 20, 21):
        histogram.observe(value)
    assert histogram.counts() == HistogramCounts("vllm:request_params_n", [1, 1, 2, 0, 1, 1], 52.0)


def test_one_gateway_shows_what_all_have_counted_and_what_every_process_costs(tmp_path: Path) -> None:
    latency = HistogramCounts.empty("vllm:e2e_request_latency_seconds")
    latency.counts[0] = 7

    async def scenario() -> Scrape:
        async with running(tmp_path) as server:
            other = Pulse(tmp_path, "gateway", 1)
            other.beat(True, None, 0.5, HttpCounts([("/v1/models", 200, 8)], [latency], num_open=3))
            Pulse(tmp_path, "scheduler").beat(True, num_steps=1234, delay_s=0.25)
            Pulse(tmp_path, "tokenizer", 1).beat(True)
            return await scrape(server, 'role="gateway"')

    shown = asyncio.run(scenario())
    answers = {"route": "/v1/models", "status": "200", "gateway": "1"}
    assert shown.value("octavo:http_requests_total", answers) == 8
    assert shown.value("octavo:open_streams", {"gateway": "1"}) == 3
    assert shown.value("vllm:e2e_request_latency_seconds_count", ENGINE | {"gateway": "1"}) == 7
    assert shown.value("vllm:e2e_request_latency_seconds_count", HERE) == 0
    processes = {
        (sample.labels["role"], sample.labels["index"])
        for sample in shown.samples
        if sample.name == "octavo:process_cpu_seconds_total"
    }
    assert processes == {("gateway", "0"), ("gateway", "1"), ("scheduler", "0"), ("tokenizer", "1")}
    (steps,) = [sample for sample in shown.samples if sample.name == "octavo:steps_total"]
    assert (steps.labels["role"], steps.value) == ("scheduler", 1234)


def test_counters_that_came_late_do_not_replace_newer_ones(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with running(tmp_path) as server:
            with FakeTokenizer(tmp_path) as tokenizer, FakeTokenizer(tmp_path) as late:
                late.stats = Stats(generation_tokens=5, made_at_s=1.0)
                tokenizer.stats = Stats(generation_tokens=9, made_at_s=2.0)
                await scrape(server, "generation_tokens_total{" + f'engine="0",model_name="{MODEL}"' + "} 9.0")
                for _ in range(60):  # more than a heartbeat of each
                    assert (await scrape(server)).value("vllm:generation_tokens_total", ENGINE) == 9
                    await asyncio.sleep(0.02)

    asyncio.run(scenario())


def test_the_dashboard_asks_only_for_what_there_is(tmp_path: Path) -> None:
    async def scenario() -> Scrape:
        async with running(tmp_path) as server:
            with FakeTokenizer(tmp_path) as tokenizer:
                tokenizer.stats = Stats()
                await until_ready(server.client)
                Pulse(tmp_path, "scheduler").beat(True, num_steps=1, delay_s=0.1)
                await scrape(server, "num_requests_running")
                return await scrape(server, "http_requests_total")

    dashboard = json.loads(DASHBOARD.read_text())
    expressions = [target["expr"] for panel in dashboard["panels"] for target in panel.get("targets", [])]
    assert len(expressions) >= 20
    asked = {name for expression in expressions for name in re.findall(r"(?:vllm|octavo):\w+", expression)}
    assert asked - asyncio.run(scenario()).names == set()
    assert all("$model_name" in each or "octavo:" in each for each in expressions)
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == {"datasource", "model_name"}
    ids = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(ids)) == len(ids)


def test_every_metric_is_explained(tmp_path: Path) -> None:
    async def scenario() -> Scrape:
        async with running(tmp_path) as server:
            with FakeTokenizer(tmp_path) as tokenizer:
                tokenizer.stats = Stats()
                Pulse(tmp_path, "scheduler").beat(True, num_steps=1, delay_s=0.1)
                await scrape(server, "num_requests_running")
                return await scrape(server, "http_requests_total")

    explained = set(re.findall(r"`((?:vllm|octavo):\w+)`", METRICS_PAGE.read_text()))
    shown = {re.sub("_(bucket|count|sum)$", "", name) for name in asyncio.run(scenario()).names}
    assert shown == explained


def test_bounds_rise() -> None:
    for name, bounds in BOUNDS.items():
        assert list(bounds) == sorted(set(bounds)), name
