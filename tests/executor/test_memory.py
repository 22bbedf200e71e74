"""Memory by arithmetic: most goes to KV, and what does not fit is told with its flags."""

import pytest

from octavo.services.executor.memory import (
    GIB,
    RESERVE_BYTES,
    check_weights_fit,
    context_limit,
    longest_request,
    plan_gpu,
    step_bytes,
)
from octavo.services.executor.models.families import build_spec
from octavo.shared.config import Config
from octavo.shared.errors import ConfigError

QWEN3_8B = {
    "model_type": "qwen3", "vocab_size": 151_936, "hidden_size": 4096, "intermediate_size": 12_288,
    "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
    "max_position_embeddings": 40_960, "rms_norm_eps": 1e-6, "hidden_act": "silu",
}  # fmt: skip
BLOCK = 36 * 2 * 8 * 128 * 64 * 2
TOTAL, FREE, WEIGHTS = 140 * GIB, 124 * GIB, 15 * GIB


def test_kv_gets_nearly_all_that_weights_and_steps_leave() -> None:
    _, spec = build_spec(QWEN3_8B)
    steps = step_bytes(spec, 2, num_tokens=8192, num_slots=1024, graph_rows=1024)

    plan = plan_gpu(Config(), TOTAL, FREE, WEIGHTS, steps, BLOCK)

    assert plan.kv + BLOCK <= FREE - steps  # with the null block
    assert plan.kv >= 0.95 * (FREE - steps)
    assert steps < 0.05 * FREE


def test_a_step_is_planned_for_what_its_tensors_need() -> None:
    """The MLP's product of gate and up beside the residual stream is more than all of attention."""
    _, spec = build_spec(QWEN3_8B)
    needed = 8192 * (4096 + 4096 + 3 * 12_288) * 2 + 1024 * 151_936 * 2

    planned = step_bytes(spec, 2, num_tokens=8192, num_slots=1024, graph_rows=0) - RESERVE_BYTES

    assert needed <= planned <= 2.5 * needed


def test_a_share_of_the_gpu_is_left_alone_when_asked() -> None:
    whole = plan_gpu(Config(), TOTAL, FREE, WEIGHTS, GIB, BLOCK)
    share = plan_gpu(Config(gpu_memory_utilization=0.5), TOTAL, FREE, WEIGHTS, GIB, BLOCK)

    assert whole.kv - share.kv == pytest.approx(TOTAL / 2, abs=2 * BLOCK)


@pytest.mark.parametrize(
    "config, free, flags",
    [
        (Config(), 2 * GIB, ["--max-num-batched-tokens", "--max-num-seqs"]),
        (Config(gpu_memory_utilization=0.1), FREE, ["--gpu-memory-utilization leaves 126.0"]),
        (Config(num_kv_blocks=100_000), FREE, ["100000 KV blocks of 9.0 MiB", "--num-kv-blocks"]),
    ],
)
def test_too_little_memory_for_kv_names_who_takes_it_and_the_flags(config: Config, free: int, flags: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        plan_gpu(config, TOTAL, free, WEIGHTS, 3 * GIB, BLOCK)

    for words in ["weights take 15.0", "steps up to 3.0", *flags]:
        assert words in str(caught.value)


def test_weights_that_are_too_large_are_refused_before_they_are_read() -> None:
    check_weights_fit(15 * GIB, "bfloat16", FREE, TOTAL)
    with pytest.raises(ConfigError, match=r"the weights take 150\.0 GiB as float32; .* 124\.0 GiB are free"):
        check_weights_fit(150 * GIB, "float32", FREE, TOTAL)


def test_a_context_beyond_the_blocks_names_what_gives_more() -> None:
    assert longest_request(Config(), 1000, 10, 16, "raise --x") == 160
    assert longest_request(Config(max_model_len=100), 1000, 10, 16, "raise --x") == 100
    with pytest.raises(ConfigError, match="--max-model-len 161 needs 11 KV blocks .* 10: lower it, or raise --x"):
        longest_request(Config(max_model_len=161), 1000, 10, 16, "raise --x")
    with pytest.raises(ConfigError, match="--max-model-len 1001: this model takes at most 1000"):
        longest_request(Config(max_model_len=1001), 1000, 10_000, 16, "raise --x")


@pytest.mark.parametrize("name", ["max_position_embeddings", "n_positions", "max_seq_len", "seq_length"])
def test_a_config_says_in_its_own_words_how_long_a_context_may_be(name: str) -> None:
    assert context_limit({name: 2048}, 100) == 2048
    assert context_limit({name: None}, 100) == 100
