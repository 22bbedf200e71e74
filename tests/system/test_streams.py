"""A thousand streams at once through the whole pipeline, every token compared with the oracle."""

import asyncio
import random

import pytest
from benchmarks.streams import DEFAULT_VOCAB, shared_prefix_prompts
from tests.tools.load_client import Stream, completion_body, run_streams
from tests.tools.server import Server, wait_until

from octavo.services.tokenizer.workshop import load_workshop
from octavo.shared.config import Config
from octavo.shared.oracle import expected_tokens

NUM_STREAMS = 1000
TIMEOUT_S = 240.0
MAX_MEMORY_BYTES = 1_500_000_000


@pytest.fixture(scope="module")
def server(sim_server: Server) -> Server:
    return sim_server


@pytest.fixture(scope="module")
def wanted() -> list[tuple[list[int], list[int]]]:
    """Prompts with the completions that the oracle says they have."""
    source = random.Random(1)
    prompts = shared_prefix_prompts(NUM_STREAMS, DEFAULT_VOCAB)
    return [(prompt, expected_tokens(prompt, source.randint(40, 64), DEFAULT_VOCAB)) for prompt in prompts]


@pytest.fixture(scope="module")
def streams(server: Server, wanted: list[tuple[list[int], list[int]]]) -> list[Stream]:
    bodies = [completion_body(prompt, len(tokens), stream_options={"include_usage": True}) for prompt, tokens in wanted]
    return asyncio.run(run_streams(server.host, server.port, bodies, TIMEOUT_S))


def test_a_thousand_streams_end_without_an_error(streams: list[Stream]) -> None:
    assert [stream.error for stream in streams if stream.error or stream.status != 200] == []


def test_no_stream_has_a_token_that_the_oracle_has_not(
    streams: list[Stream], wanted: list[tuple[list[int], list[int]]]
) -> None:
    assert [stream.token_ids for stream in streams] == [tokens for _, tokens in wanted]
    assert {tuple(stream.finish_reasons) for stream in streams} == {("length",)}


def test_every_streams_text_is_that_of_its_tokens(streams: list[Stream]) -> None:
    vocabulary = load_workshop(Config()).vocabulary
    assert vocabulary is not None
    decode = vocabulary._tokenizer.decode
    assert [stream.text for stream in streams] == [decode(stream.token_ids) for stream in streams]


def test_usage_counts_the_tokens_of_prompt_and_completion(
    streams: list[Stream], wanted: list[tuple[list[int], list[int]]]
) -> None:
    usages = [stream.usage for stream in streams if stream.usage is not None]
    counts = [(usage.prompt_tokens, usage.completion_tokens) for usage in usages]
    assert counts == [(len(prompt), len(tokens)) for prompt, tokens in wanted]


def test_all_processes_together_stay_small(server: Server, streams: list[Stream]) -> None:
    processes = [server.process, *server.services()]
    assert sum(process.memory_full_info().uss for process in processes) < MAX_MEMORY_BYTES


def test_nothing_is_held_when_all_streams_have_ended(server: Server, streams: list[Stream]) -> None:
    wait_until(lambda: server.metric("vllm:num_requests_running") == 0, "no request runs")
    assert server.metric("vllm:num_requests_waiting") == 0
