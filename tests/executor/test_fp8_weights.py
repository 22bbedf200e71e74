"""FP8 checkpoints: read and computed as transformers computes their dequantized weights; and quantizing on load."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tools.run_decoder import logits_of
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from octavo.services.executor.fp8_weights import check_device, settle
from octavo.services.executor.load import load_engine
from octavo.services.executor.models.families import build_spec
from octavo.services.executor.weights import check_weights, dummy_weights, read_weights
from octavo.shared.config import Config
from octavo.shared.errors import ConfigError, ModelError
from octavo.shared.model_files import locate, read_config
from octavo.shared.process import Stopwatch

FP8 = torch.float8_e4m3fn
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 192,  # a block and a half
    "intermediate_size": 320,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 64,
    "pad_token_id": None,
    "bos_token_id": None,
    "eos_token_id": None,
}
FP8_BLOCKS = {"quant_method": "fp8", "weight_block_size": [128, 128]}
Q_PROJ = "model.layers.0.self_attn.q_proj.weight"
OUR_Q = "layers.0.attn.q.weight"


def by_tensor(weight: Tensor) -> Tensor:
    return weight.abs().max() / 448


def by_channel(weight: Tensor) -> Tensor:
    return (weight.abs().amax(1, keepdim=True) / 448).bfloat16()


def by_block(weight: Tensor) -> Tensor:
    rows = [torch.stack([b.abs().max() for b in a.split(128, 1)]) for a in weight.split(128, 0)]
    return torch.stack(rows) / 448


def compressed(strategy: str) -> dict[str, Any]:
    weights = {"num_bits": 8, "type": "float", "strategy": strategy, "symmetric": True}
    groups = {"group_0": {"targets": ["Linear"], "weights": weights}}
    return {"quant_method": "compressed-tensors", "format": "float-quantized", "config_groups": groups}


FORMS: dict[str, tuple[dict[str, Any], Callable[[Tensor], Tensor], str]] = {
    "tensor": ({"quant_method": "fp8", "activation_scheme": "static"}, by_tensor, "weight_scale"),
    "block": (FP8_BLOCKS, by_block, "weight_scale_inv"),
    "compressed channel": (compressed("channel"), by_channel, "weight_scale"),
    "compressed tensor": (compressed("tensor"), lambda weight: by_tensor(weight)[None], "weight_scale"),
}


def spread(scale: Tensor, weight: Tensor) -> Tensor:
    """A scale for each number of the weight."""
    if scale.numel() == 1 or len(scale) == len(weight):
        return scale.float().reshape(-1, 1).expand_as(weight)
    return scale.float().repeat_interleave(128, 0).repeat_interleave(128, 1)[: weight.shape[0], : weight.shape[1]]


def write_checkpoint(folder: Path, form: str, model_type: str = "llama") -> torch.nn.Module:
    """A tiny FP8 checkpoint, and transformers' model with the numbers that it stands for, in float32."""
    quantization, scale_of, suffix = FORMS[form]
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING[model_type](**SIZES), attn_implementation="eager")
    for parameter in model.float().eval().parameters():
        torch.nn.init.normal_(parameter, std=0.15)
    model.save_pretrained(folder)
    stored = load_file(folder / "model.safetensors")
    meant = dict(stored)
    for name in [name for name in stored if "_proj.weight" in name]:
        scale = scale_of(stored[name])
        stored[name] = (stored[name] / spread(scale, stored[name])).to(FP8)
        meant[name] = stored[name].float() * spread(scale, stored[name])
        stored[name.replace("weight", suffix)] = scale
        stored[name.replace("weight", "input_scale")] = torch.tensor(0.5)
    save_file(stored, folder / "model.safetensors")
    model.load_state_dict(meant, strict=False)
    config = json.loads((folder / "config.json").read_text()) | {"quantization_config": quantization}
    (folder / "config.json").write_text(json.dumps(config))
    return model


def read(folder: Path, dense: torch.dtype | None) -> tuple[Any, dict[str, Tensor]]:
    files = locate(str(folder))
    config = read_config(files)
    family, spec = build_spec(config)
    weights = check_weights(spec, read_weights(files, family, config, torch.float32))
    return spec, dict(settle(weights, None, dense))


@pytest.mark.parametrize("model_type", ["llama", "phi3"])
@pytest.mark.parametrize("form", FORMS)
def test_logits_are_those_of_the_dequantized_weights(form: str, model_type: str, tmp_path: Path) -> None:
    theirs = write_checkpoint(tmp_path, form, model_type)
    token_ids = torch.randint(0, 96, (24,), generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        expected = theirs(token_ids[None]).logits[0]

    logits = logits_of(*read(tmp_path, dense=torch.float32), token_ids.tolist())

    assert (expected - logits).abs().max() / expected.abs().max() < 2e-5


@pytest.mark.parametrize("form", ["tensor", "compressed channel", "compressed tensor"])
def test_one_scale_a_tensor_or_channel_is_kept_as_it_is(form: str, tmp_path: Path) -> None:
    theirs = write_checkpoint(tmp_path, form)
    stored = load_file(tmp_path / "model.safetensors")[Q_PROJ]

    _, weights = read(tmp_path, dense=None)

    assert torch.equal(weights[OUR_Q].view(torch.uint8), stored.view(torch.uint8))
    scale = weights[f"{OUR_Q}_scale"]
    assert scale.shape == (128,)
    assert torch.equal(weights[OUR_Q].float() * scale[:, None], theirs.state_dict()[Q_PROJ])


def test_blocks_become_channels_within_the_stated_error(tmp_path: Path) -> None:
    theirs = write_checkpoint(tmp_path, "block")

    _, weights = read(tmp_path, dense=None)

    meant = theirs.state_dict()[Q_PROJ]
    found = weights[OUR_Q].float() * weights[f"{OUR_Q}_scale"][:, None]
    assert 0.02 < (found - meant).norm() / meant.norm() < 0.03


def test_scales_may_lie_in_another_file(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "block")
    _, expected = read(tmp_path, dense=torch.float32)
    stored = load_file(tmp_path / "model.safetensors")
    (tmp_path / "model.safetensors").unlink()
    parts = {"a": [name for name in stored if "scale" not in name], "b": [name for name in stored if "scale" in name]}
    for part, names in parts.items():
        save_file({name: stored[name] for name in names}, tmp_path / f"{part}.safetensors")
    places = {name: f"{part}.safetensors" for part, names in parts.items() for name in names}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))

    _, weights = read(tmp_path, dense=torch.float32)

    assert torch.equal(weights[OUR_Q], expected[OUR_Q])


@pytest.mark.parametrize(
    ("scale", "message"),
    [(None, "q_proj.weight is in FP8 and has no scale"), (torch.ones(3), r"\(128, 192\), and its scales are \(3,\)")],
)
def test_a_scale_that_is_missing_or_fits_nothing_is_named(scale: Tensor | None, message: str, tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "tensor")
    stored = load_file(tmp_path / "model.safetensors")
    del stored[Q_PROJ.replace("weight", "weight_scale")]
    if scale is not None:
        stored[Q_PROJ.replace("weight", "weight_scale")] = scale
    save_file(stored, tmp_path / "model.safetensors")

    with pytest.raises(ModelError, match=message):
        read(tmp_path, dense=None)


@pytest.mark.parametrize(
    ("quantization", "message"),
    [
        ({"quant_method": "gptq"}, "by 'gptq', which is not supported; supported: fp8, and compressed-tensors"),
        ({"quant_method": "fp8", "weight_block_size": [64, 128]}, r"blocks of \[64, 128\]; supported: \[128, 128\]"),
        (compressed("group"), "as float of 8 bits by group, which is not supported"),
    ],
)
def test_other_quantizations_are_refused(quantization: dict[str, Any], message: str) -> None:
    config = CONFIG_MAPPING["llama"](**SIZES).to_dict() | {"quantization_config": quantization}
    with pytest.raises(ModelError, match=message):
        build_spec(config)


def test_only_the_layers_linear_weights_are_quantized_on_load() -> None:
    _, spec = build_spec(CONFIG_MAPPING["qwen3"](**SIZES).to_dict())
    dense = dict(dummy_weights(spec, seed=0, dtype=torch.bfloat16))

    settled = dict(settle(dense.items(), "fp8", None))

    linear = ["attn.q", "attn.k", "attn.v", "attn.o", "mlp.gate", "mlp.up", "mlp.down"]
    assert {name for name in settled if settled[name].dtype == FP8} == {
        f"layers.{i}.{name}.weight" for i in (0, 1) for name in linear
    }
    for name in dense.keys() - {name for name in settled if settled[name].dtype == FP8}:
        assert settled[name] is dense[name]


def test_a_shape_without_a_product_of_fp8_stays_dense() -> None:
    weight = torch.randn(24, 100)
    assert dict(settle([(OUR_Q, weight)], "fp8", None)) == {OUR_Q: weight}


def test_a_cpu_serves_the_checkpoint_but_does_not_quantize(tmp_path: Path) -> None:
    write_checkpoint(tmp_path, "block")
    config = Config(model=str(tmp_path), device="cpu", dtype="float32", num_kv_blocks=8, max_model_len=64)
    assert load_engine(config, Stopwatch()).info.dtype == "float32"

    asked = Config(model=str(tmp_path), device="cpu", dtype="float32", quantization="fp8")
    with pytest.raises(ConfigError, match="--quantization fp8 needs --device cuda"):
        load_engine(asked, Stopwatch())


def test_a_gpu_takes_bfloat16_alone() -> None:
    check_device("fp8", True, torch.bfloat16, {})
    for quantization, config in (("fp8", {}), (None, {"quantization_config": FP8_BLOCKS})):
        with pytest.raises(ConfigError, match="not float16: set --dtype bfloat16"):
            check_device(quantization, True, torch.float16, config)
