"""Every family against transformers: a tiny random model is saved, read by us, and gives the same logits."""

from pathlib import Path
from typing import Any

import pytest
import torch
from tests.tools.run_decoder import logits_of
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from octavo.services.executor.models.families import build_spec
from octavo.services.executor.models.families.registry import FAMILIES
from octavo.services.executor.weights import check_weights, read_weights
from octavo.shared.model_files import locate, read_config

NUM_TOKENS = 24
MAX_RELATIVE_ERROR = 2e-5

COMMON: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 64,
    "intermediate_size": 112,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
HYBRID = {"sliding_window": 5, "layer_types": ["sliding_attention", "full_attention"] * 2}
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 16,
}
YARN = {"rope_type": "yarn", "rope_theta": 500.0, "factor": 4.0, "original_max_position_embeddings": 16}
GRANITE = {
    "embedding_multiplier": 3.0,
    "residual_multiplier": 0.5,
    "attention_multiplier": 0.2,
    "logits_scaling": 4.0,
}
GEMMA3 = {"query_pre_attn_scalar": 20, **HYBRID}
VISION = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 28,
    "patch_size": 14,
}

# Tiny sizes for each family, on top of COMMON. More than one line where a family has more than one shape.
CASES: list[tuple[str, dict[str, Any]]] = [
    ("arcee", {}),
    ("bloom", {"n_head": 4, "n_layer": 3}),
    ("bloom", {"n_head": 6, "n_layer": 2, "hidden_size": 96}),
    ("cohere", {}),
    ("cohere2", HYBRID),
    ("ernie4_5", {"use_bias": True}),
    ("exaone4", {"sliding_window_pattern": 2, **HYBRID}),
    ("exaone4", {"sliding_window": None, "layer_types": ["full_attention"] * 4}),
    ("gemma", {"num_key_value_heads": 1}),
    ("gemma2", {"query_pre_attn_scalar": 20, "sliding_window": 5, "final_logit_softcapping": 3.0}),
    ("gemma3", {"text_config": {**COMMON, **GEMMA3}, "vision_config": VISION, "mm_tokens_per_image": 4}),
    ("gemma3_text", GEMMA3),
    ("glm", {"attention_bias": True}),
    ("glm4", {"attention_bias": True}),
    ("gpt2", {"n_embd": 64, "n_head": 4, "n_layer": 3, "n_positions": 64}),
    ("gpt_neox", {}),
    ("gpt_neox", {"use_parallel_residual": False}),
    ("granite", GRANITE),
    ("helium", {}),
    ("hunyuan_v1_dense", {}),
    (
        "hunyuan_v1_dense",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 1.0, "alpha": 50.0, "rope_theta": 500.0}},
    ),
    ("internlm3", {"qkv_bias": True, "bias": True}),
    ("llama", {"rope_parameters": LLAMA3}),
    ("llama", {"rope_parameters": {"rope_type": "linear", "rope_theta": 500.0, "factor": 2.0}}),
    ("llama", {"attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True}),
    ("mistral", {"sliding_window": 5}),
    ("mpt", {"d_model": 64, "n_heads": 4, "n_layers": 3, "max_seq_len": 64}),
    ("mpt", {"d_model": 96, "n_heads": 6, "n_layers": 2, "attn_config": {"clip_qkv": 1.5}}),
    ("nemotron", {}),
    ("olmo", {"clip_qkv": 1.5}),
    ("olmo2", {}),
    ("olmo3", HYBRID),
    ("opt", {"ffn_dim": 112, "word_embed_proj_dim": 64}),
    ("persimmon", {}),
    ("phi", {"partial_rotary_factor": 0.5}),
    ("phi", {"qk_layernorm": True}),
    ("phi3", {"sliding_window": 6}),
    ("qwen2", {"use_sliding_window": True, "sliding_window": 5, "max_window_layers": 2}),
    ("qwen3", {"rope_parameters": YARN}),
    ("qwen3", {"rope_parameters": {**YARN, "mscale": 0.7, "mscale_all_dim": 0.4, "truncate": False}}),
    ("seed_oss", {}),
    ("smollm3", {"no_rope_layers": [1, 1, 0, 1]}),
    ("stablelm", {"use_qkv_bias": True}),
    ("stablelm", {"use_parallel_residual": True}),
    ("starcoder2", {"sliding_window": 6}),
]


def test_every_family_has_a_line_of_tiny_sizes() -> None:
    assert {model_type for model_type, _ in CASES} == set(FAMILIES)


@pytest.mark.parametrize(("model_type", "sizes"), CASES, ids=[f"{name}-{i}" for i, (name, _) in enumerate(CASES)])
def test_the_logits_are_those_of_transformers(model_type: str, sizes: dict[str, Any], tmp_path: Path) -> None:
    theirs = make_tiny_model(model_type, sizes)
    theirs.save_pretrained(tmp_path)
    token_ids = torch.randint(0, COMMON["vocab_size"], (NUM_TOKENS,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = theirs(token_ids[None]).logits[0]  # [tokens, vocab]

    files = locate(str(tmp_path))
    config = read_config(files)
    family, spec = build_spec(config)
    weights = dict(check_weights(spec, read_weights(files, family, config, torch.float32)))
    logits = logits_of(spec, weights, token_ids.tolist())

    error = (expected - logits).abs().max() / expected.abs().max()
    assert error < MAX_RELATIVE_ERROR
    # As the engine asks for them: only of rows that are to be sampled.
    some = logits_of(spec, weights, token_ids.tolist(), needed=[NUM_TOKENS - 1, 3])
    assert (expected[[-1, 3]] - some).abs().max() < MAX_RELATIVE_ERROR * expected.abs().max()


def make_tiny_model(model_type: str, sizes: dict[str, Any]) -> PreTrainedModel:
    """A float32 model of transformers with every weight random, norms and biases included."""
    torch.manual_seed(0)
    common = {} if "text_config" in sizes else COMMON
    config = CONFIG_MAPPING[model_type](**(common | sizes))
    model: PreTrainedModel = AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval().float()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    return model
