"""/metrics of a whole server: what it says of requests that are known, and what becomes of it when processes die."""

import asyncio
import time

import psutil  # type: ignore[import-untyped]  # it has no type information
from benchmarks.streams import DEFAULT_VOCAB, shared_prefix_prompts
from prometheus_client.parser import text_string_to_metric_families
from tests.tools.load_client import completion_body, run_streams
from tests.tools.server import Server, running, wait_until

NUM_STREAMS, NUM_TOKENS = 20, 50
FLAGS = ("--device", "sim", "--sim-step-ms", "10", "--gateways", "2", "--tokenizers", "2")
PROCESSES = {"executor": 1, "scheduler": 1, "tokenizer": 2, "gateway": 2}


def values(server: Server, name: str, **labels: str) -> list[float]:
    """All samples of a name with these labels among theirs."""
    families = text_string_to_metric_families(server.get("/metrics"))
    samples = [sample for family in families for sample in family.samples if sample.name == name]
    return [sample.value for sample in samples if labels.items() <= sample.labels.items()]


def stream(server: Server, prompts: list[list[int]]) -> float:
    """Run a stream for each prompt; returns how long they took together."""
    bodies = [completion_body(prompt, NUM_TOKENS) for prompt in prompts]
    began = time.monotonic()
    streams = asyncio.run(run_streams(server.host, server.port, bodies, timeout_s=120.0))
    assert [each.error for each in streams if each.error] == []
    return time.monotonic() - began


def test_metrics_of_a_server_are_right_and_outlive_its_processes() -> None:
    prompts = shared_prefix_prompts(NUM_STREAMS, DEFAULT_VOCAB)
    num_prompt_tokens = sum(map(len, prompts))
    with running(*FLAGS) as server:
        took = stream(server, prompts)
        wait_until(lambda: server.metric("vllm:request_success_total") == NUM_STREAMS, "all requests are counted")
        assert values(server, "vllm:request_success_total", finished_reason="length") == [NUM_STREAMS]
        assert server.metric("vllm:generation_tokens_total") == NUM_STREAMS * NUM_TOKENS
        assert server.metric("vllm:prompt_tokens_total") == num_prompt_tokens
        assert 0 < server.metric("vllm:prompt_tokens_cached_total") < num_prompt_tokens
        for name in ("e2e_request_latency_seconds", "time_to_first_token_seconds"):
            wait_until(
                lambda name=name: server.metric(f"vllm:{name}_count") == NUM_STREAMS, "gateways know of each other"
            )
        num_gaps = server.metric("vllm:inter_token_latency_seconds_count")
        assert 0 < num_gaps <= NUM_STREAMS * (NUM_TOKENS - 1)
        phases = [server.metric(f"vllm:request_{phase}_time_seconds_sum") for phase in ("queue", "prefill", "decode")]
        assert NUM_STREAMS * 0.4 < sum(phases) < server.metric("vllm:e2e_request_latency_seconds_sum")
        assert server.metric("vllm:e2e_request_latency_seconds_sum") < NUM_STREAMS * took
        for role, count in PROCESSES.items():
            assert len(values(server, "octavo:process_cpu_seconds_total", role=role)) == count
            resident = sum(process.memory_info().rss for process in server.services(role))
            shown = sum(values(server, "octavo:process_resident_memory_bytes", role=role))
            assert 0.8 * resident < shown < 1.25 * resident
        for role in ("scheduler", "executor"):
            wait_until(
                lambda role=role: sum(values(server, "octavo:steps_total", role=role)) >= NUM_TOKENS,
                "a pulse tells of the last steps",
            )
        assert values(server, "octavo:process_restarts_total") == [0] * 6
        _kill(server, "tokenizer", "executor")
        stream(server, prompts)
        wait_until(lambda: server.metric("vllm:request_success_total") == 2 * NUM_STREAMS, "the counters go on")
        assert server.metric("vllm:generation_tokens_total") == 2 * NUM_STREAMS * NUM_TOKENS
        _kill(server, "scheduler")
        stream(server, prompts)
        wait_until(lambda: server.metric("vllm:request_success_total") == NUM_STREAMS, "its successor begins at 0")


def test_a_server_that_computes_logs_its_traffic(sim_server: Server) -> None:
    stream(sim_server, shared_prefix_prompts(1, DEFAULT_VOCAB))
    wait_until(lambda: "traffic" in sim_server.errors, "the traffic is logged", 30.0)


def _kill(server: Server, *roles: str) -> None:
    """Kill one process of each role, and wait until its successor says that it is one."""
    for role in roles:
        victim: psutil.Process = server.services(role)[0]
        before = sum(values(server, "octavo:process_restarts_total", role=role))
        victim.kill()
        wait_until(
            lambda role=role, before=before: (
                sum(values(server, "octavo:process_restarts_total", role=role)) > before
                and len(values(server, "octavo:process_restarts_total", role=role)) == PROCESSES[role]
            ),
            f"the {role} is started again",
        )
    wait_until(lambda: len(server.services()) == 6 and server.is_ready, "all serve again")
