"""Configs: the older spelling of the Hub reads like transformers reads it; what cannot be said is refused."""

from typing import Any

import pytest
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from octavo.services.executor.models.families import build_spec
from octavo.services.executor.models.spec import LinearScaling
from octavo.shared.errors import ModelError

LLAMA: dict[str, Any] = {
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 64,
    "intermediate_size": 128,
    "max_position_embeddings": 2048,
    "num_attention_heads": 4,
    "num_hidden_layers": 8,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-5,
    "vocab_size": 128,
}
LLAMA3_SCALING = {
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 512,
}

# As files on the Hub are written: rope_theta at the top, layer kinds as a pattern, much left out.
OLD_CONFIGS: list[dict[str, Any]] = [
    LLAMA | {"rope_theta": 500_000.0, "rope_scaling": {"rope_type": "llama3", **LLAMA3_SCALING}},
    LLAMA | {"rope_scaling": {"type": "linear", "factor": 4.0}},
    LLAMA | {"rope_scaling": {"type": "yarn", "factor": 4.0}},
    LLAMA | {"model_type": "mistral", "sliding_window": None, "rope_theta": 1_000_000.0},
    LLAMA | {"model_type": "qwen2", "use_sliding_window": True, "sliding_window": 32, "max_window_layers": 3},
    LLAMA | {"model_type": "smollm3", "no_rope_layer_interval": 4},
    LLAMA | {"model_type": "glm", "head_dim": 16, "attention_bias": True},
    LLAMA | {"model_type": "gemma", "hidden_act": "gelu", "head_dim": 16},
    LLAMA
    | {
        "model_type": "gemma2",
        "hidden_activation": "gelu_pytorch_tanh",
        "head_dim": 16,
        "query_pre_attn_scalar": 16,
        "sliding_window": 32,
        "attn_logit_softcapping": 50.0,
        "final_logit_softcapping": 30.0,
    },
    {
        "model_type": "gemma3_text",
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 8,
        "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
        "sliding_window": 32,
    },
    LLAMA
    | {
        "model_type": "gemma3_text",
        "rope_theta": 500_000.0,
        "rope_local_base_freq": 5_000.0,
        "sliding_window_pattern": 3,
        "attn_logit_softcapping": None,
        "final_logit_softcapping": None,
    },
    LLAMA | {"model_type": "cohere", "layer_norm_eps": 1e-5, "logit_scale": 0.1},
    LLAMA
    | {
        "model_type": "cohere2",
        "layer_norm_eps": 1e-5,
        "logit_scale": 0.1,
        "sliding_window": 32,
        "sliding_window_pattern": 4,
    },
    LLAMA
    | {
        "model_type": "olmo3",
        "sliding_window": 32,
        "rope_theta": 500_000.0,
        "rope_scaling": {"rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 512},
    },
    LLAMA | {"model_type": "exaone4", "sliding_window": 32, "sliding_window_pattern": 4},
    LLAMA | {"model_type": "ernie4_5", "use_bias": False, "head_dim": 16},
    LLAMA | {"model_type": "nemotron", "norm_eps": 1e-5, "hidden_act": "relu2", "partial_rotary_factor": 0.5},
    LLAMA | {"model_type": "phi", "layer_norm_eps": 1e-5, "hidden_act": "gelu_new", "partial_rotary_factor": 0.25},
    LLAMA | {"model_type": "stablelm", "layer_norm_eps": 1e-5, "use_qkv_bias": True, "rope_theta": 5_000},
    LLAMA
    | {
        "model_type": "gpt_neox",
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-5,
        "rotary_emb_base": 5_000,
        "rotary_pct": 0.5,
        "use_parallel_residual": True,
    },
    {
        "model_type": "gpt2",
        "activation_function": "gelu_new",
        "layer_norm_epsilon": 1e-5,
        "n_embd": 64,
        "n_head": 4,
        "n_layer": 2,
        "n_positions": 128,
        "vocab_size": 128,
    },
]


@pytest.mark.parametrize(
    "config", OLD_CONFIGS, ids=[f"{config['model_type']}-{i}" for i, config in enumerate(OLD_CONFIGS)]
)
def test_an_old_config_means_what_transformers_takes_it_for(config: dict[str, Any]) -> None:
    theirs = CONFIG_MAPPING[config["model_type"]](**config).to_dict()

    _, spec = build_spec(config)

    assert spec == build_spec(theirs)[1]


def test_linear_scaling_of_gemma_3_stretches_only_the_full_layers() -> None:
    _, spec = build_spec(OLD_CONFIGS[9])

    scalings = [layer.attention.rope and layer.attention.rope.scaling for layer in spec.layers]

    assert scalings == [None] * 5 + [LinearScaling(8.0)] + [None] * 2


def test_an_unknown_model_type_is_refused_with_the_list_of_known_ones() -> None:
    with pytest.raises(ModelError, match=r"model_type 'mamba' is not supported; supported: .*llama.*qwen3"):
        build_spec({"model_type": "mamba"})


def test_a_missing_key_is_named() -> None:
    config = {key: value for key, value in LLAMA.items() if key != "num_hidden_layers"}

    with pytest.raises(ModelError, match="config.json has no 'num_hidden_layers', which a llama model needs"):
        build_spec(config)


@pytest.mark.parametrize("rope_type", ["dynamic", "longrope", "su"])
def test_an_unsupported_rope_type_is_refused(rope_type: str) -> None:
    with pytest.raises(ModelError, match=f"rope_type '{rope_type}' is not supported"):
        build_spec(LLAMA | {"rope_scaling": {"type": rope_type, "factor": 2.0}})


@pytest.mark.parametrize(
    ("config", "problem"),
    [
        (LLAMA | {"hidden_act": "xielu"}, "activation 'xielu' is not supported"),
        (LLAMA | {"quantization_config": {"quant_method": "awq"}}, "quantized by 'awq'"),
        (LLAMA | {"model_type": "cohere", "use_qk_norm": True}, "cohere with use_qk_norm=True"),
        (LLAMA | {"model_type": "gemma2", "layer_types": ["full_attention"]}, "layer_types must be 8"),
    ],
)
def test_what_no_spec_can_say_is_refused(config: dict[str, Any], problem: str) -> None:
    with pytest.raises(ModelError, match=problem):
        build_spec(
            config | {"attn_logit_softcapping": None, "query_pre_attn_scalar": 16, "final_logit_softcapping": None}
        )
