"""Several gateways on one port, and several tokenizers behind them."""

import asyncio

from benchmarks.streams import DEFAULT_VOCAB, shared_prefix_prompts
from tests.tools.load_client import completion_body, run_streams
from tests.tools.server import running

from octavo.shared.oracle import expected_tokens

NUM_TOKENS = 50


def test_a_server_that_says_it_is_ready_is_so_through_every_gateway() -> None:
    with running("--device", "sim", "--gateways", "3") as server:
        # Which gateway gets a connection is chance; one in a million times one of the three gets none of forty.
        assert [server.get("/readyz") for _ in range(40)] == ['{"status":"ready"}'] * 40


def test_a_hundred_streams_through_two_gateways_and_two_tokenizers_are_right() -> None:
    prompts = shared_prefix_prompts(100, DEFAULT_VOCAB)
    bodies = [completion_body(prompt, NUM_TOKENS) for prompt in prompts]
    with running("--device", "sim", "--gateways", "2", "--tokenizers", "2") as server:
        streams = asyncio.run(run_streams(server.host, server.port, bodies, timeout_s=180.0))
        assert len(server.services("gateway")) == len(server.services("tokenizer")) == 2
    assert [stream.error for stream in streams if stream.error] == []
    expected = [expected_tokens(prompt, NUM_TOKENS, DEFAULT_VOCAB) for prompt in prompts]
    assert [stream.token_ids for stream in streams] == expected
