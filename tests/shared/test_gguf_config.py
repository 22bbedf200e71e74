"""The hyper-parameters of GGUF files under the names of config.json."""

from pathlib import Path

import pytest
from tests.tools.tiny_gguf import TINY_LLAMA, random_array, write_gguf

from octavo.shared.errors import ModelError
from octavo.shared.gguf_config import config_from_gguf
from octavo.shared.gguf_file import GgufFile

EMBED = {"token_embd.weight": random_array(4, 64)}
GEMMA3 = {key.replace("llama", "gemma3"): value for key, value in TINY_LLAMA.items() if key.startswith("llama")} | {
    "gemma3.attention.key_length": 32,
    "gemma3.attention.sliding_window": 512,
}


def test_a_llama_reads_as_its_config_would(tmp_path: Path) -> None:
    file = GgufFile(write_gguf(tmp_path / "m.gguf", TINY_LLAMA, EMBED))

    config = config_from_gguf(file)

    assert config == {
        "model_type": "llama",
        "attention_bias": False,
        "bos_token_id": 0,
        "eos_token_id": 1,
        "head_dim": 16,
        "hidden_act": "silu",
        "hidden_size": 64,
        "intermediate_size": 96,
        "max_position_embeddings": 128,
        "num_attention_heads": 4,
        "num_hidden_layers": 1,
        "num_key_value_heads": 2,
        "partial_rotary_factor": 1.0,
        "rms_norm_eps": 0.5,
        "rope_scaling": None,
        "rope_theta": 5000.0,
        "tie_word_embeddings": True,
        "vocab_size": 4,
    }


def test_a_head_of_its_own_is_not_tied(tmp_path: Path) -> None:
    tensors = EMBED | {"output.weight": random_array(4, 64)}
    file = GgufFile(write_gguf(tmp_path / "m.gguf", TINY_LLAMA, tensors))

    assert config_from_gguf(file)["tie_word_embeddings"] is False


def test_two_tokens_that_end_a_text_are_a_list(tmp_path: Path) -> None:
    metadata = TINY_LLAMA | {"tokenizer.ggml.eot_token_id": 3}
    file = GgufFile(write_gguf(tmp_path / "m.gguf", metadata, EMBED))

    assert config_from_gguf(file)["eos_token_id"] == [1, 3]


def test_a_table_of_rope_divisors_becomes_a_scaling(tmp_path: Path) -> None:
    tensors = EMBED | {"rope_freqs.weight": random_array(8) * 0 + 4}
    file = GgufFile(write_gguf(tmp_path / "m.gguf", TINY_LLAMA, tensors))

    assert config_from_gguf(file)["rope_scaling"] == {"rope_type": "table", "divisors": [4.0] * 8}


def test_gemma_3_gets_what_its_file_does_not_say(tmp_path: Path) -> None:
    file = GgufFile(write_gguf(tmp_path / "m.gguf", GEMMA3, EMBED, architecture="gemma3"))

    config = config_from_gguf(file)

    assert config["model_type"] == "gemma3_text"
    assert config["query_pre_attn_scalar"] == 32
    assert config["sliding_window_pattern"] == 6
    assert config["rope_local_base_freq"] == 10_000.0


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"llama.attention.head_count": [4, 2]}, "no single number for llama.attention.head_count"),
        ({"llama.expert_count": 8}, "holds a mixture of experts"),
        ({"split.count": 3}, "one of several parts"),
    ],
)
def test_what_cannot_be_served_is_refused(changes: dict[str, object], problem: str, tmp_path: Path) -> None:
    file = GgufFile(write_gguf(tmp_path / "m.gguf", TINY_LLAMA | changes, EMBED))

    with pytest.raises(ModelError, match=problem):
        config_from_gguf(file)


def test_a_missing_number_is_named(tmp_path: Path) -> None:
    metadata = {key: value for key, value in TINY_LLAMA.items() if key != "llama.block_count"}
    file = GgufFile(write_gguf(tmp_path / "m.gguf", metadata, EMBED))

    with pytest.raises(ModelError, match="has no llama.block_count"):
        config_from_gguf(file)


def test_an_unknown_architecture_is_refused_with_the_known_ones(tmp_path: Path) -> None:
    file = GgufFile(write_gguf(tmp_path / "m.gguf", {}, EMBED, architecture="rwkv7"))

    with pytest.raises(ModelError, match="'rwkv7'; supported in GGUF: llama, qwen2, qwen3, gemma3"):
        config_from_gguf(file)
