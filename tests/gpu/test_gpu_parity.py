"""Whole models in 16 bits on the GPU against transformers: no more rounding errors than it makes itself.

The rule is FlashAttention's: the distance to the logits in float32 is at most twice that of transformers in the same
16 bits, with the same weights, for the largest error and for all errors together.
"""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from octavo.services.executor.models.families import build_spec
from octavo.services.executor.weights import check_weights, read_weights
from octavo.shared.model_files import locate, read_config

pytestmark = pytest.mark.gpu
COMMON: dict[str, Any] = {
    "vocab_size": 1000,
    "hidden_size": 1024,
    "intermediate_size": 3072,
    "num_hidden_layers": 4,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "max_position_embeddings": 2048,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
    "initializer_range": 0.05,
}
WINDOWS = {"sliding_window": 70, "layer_types": ["sliding_attention", "full_attention"] * 2, "head_dim": 256}
CASES: list[tuple[str, dict[str, Any]]] = [
    ("llama", {"head_dim": 64}),
    ("llama", {"head_dim": 128, "tie_word_embeddings": True}),
    ("qwen3", {"head_dim": 128}),
    ("gemma2", {**WINDOWS, "query_pre_attn_scalar": 256}),
    ("gemma3_text", {**WINDOWS, "query_pre_attn_scalar": 256, "num_key_value_heads": 1}),
]
LENGTHS, CHUNK, NUM_DECODED = [333, 64, 650, 131], 200, 40


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("model_type, sizes", CASES, ids=[f"{name}-{sizes['head_dim']}" for name, sizes in CASES])
def test_rounding_errors_are_at_most_twice_those_of_transformers(
    tmp_path: Path, model_type: str, sizes: dict[str, Any], dtype: torch.dtype
) -> None:
    from tests.tools.run_on_gpu import gpu_logits_of

    torch.manual_seed(1)
    config = CONFIG_MAPPING[model_type](**(COMMON | sizes))
    AutoModelForCausalLM.from_config(config).to(dtype).save_pretrained(tmp_path)
    files = locate(str(tmp_path))
    raw = read_config(files)
    family, spec = build_spec(raw)
    weights = dict(check_weights(spec, read_weights(files, family, raw, dtype)))
    requests = [torch.randint(0, 1000, (length,)).tolist() for length in LENGTHS]
    device = torch.device("cuda")

    together = gpu_logits_of(spec, weights, dtype, requests, CHUNK, NUM_DECODED, device)
    alone = gpu_logits_of(spec, weights, dtype, requests[:1], CHUNK, NUM_DECODED, device)
    rounded, exact = (logits_of_transformers(tmp_path, each, requests, device) for each in (dtype, torch.float32))

    check(together, rounded, exact)
    check(alone, rounded[:1], exact[:1])


def check(ours: list[Tensor], theirs: list[Tensor], exact: list[Tensor]) -> None:
    for our, their, right in zip(ours, theirs, exact, strict=True):
        assert our.shape == right.shape and not our.isnan().any()
        # Decoding and chunks are kernels of their own, so each has to hold the rule by itself.
        for rows in (slice(None, -NUM_DECODED), slice(-NUM_DECODED, None)):
            our_errors, their_errors = (our - right)[rows], (their - right)[rows]
            assert our_errors.norm() <= 2 * their_errors.norm()
            assert our_errors.abs().max() <= 2 * their_errors.abs().max()


@torch.inference_mode()
def logits_of_transformers(
    folder: Path, dtype: torch.dtype, requests: list[list[int]], device: torch.device
) -> list[Tensor]:
    # Loaded, not cast: a cast would round the frequencies of RoPE as well. Eager, as SDPA knows no softcap.
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype, attn_implementation="eager").eval().to(device)
    return [model(torch.tensor([each], device=device)).logits[0].float() for each in requests]
