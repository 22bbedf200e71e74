"""Weights under our names: read from safetensors, made up, and checked against the spec."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from tests.tools.tiny_gguf import TINY_LLAMA, random_array, write_gguf

from octavo.services.executor.models.decoder import DecoderModel
from octavo.services.executor.models.families import build_spec
from octavo.services.executor.models.spec import Decoder, Norm
from octavo.services.executor.weights import check_weights, dummy_weights, expected_shapes, read_weights
from octavo.shared.errors import ModelError
from octavo.shared.model_files import ModelFiles, locate, read_config

STORIES = Path(__file__).parents[2].parent / "shared" / "data" / "stories260k"
CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "hidden_act": "silu",
    "hidden_size": 16,
    "intermediate_size": 24,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "num_key_value_heads": 1,
    "rms_norm_eps": 1e-5,
    "vocab_size": 6,
}
LAYER = "model.layers.0"
THEIR_SHAPES = {
    "model.embed_tokens.weight": (6, 16),
    f"{LAYER}.self_attn.q_proj.weight": (16, 16),
    f"{LAYER}.self_attn.k_proj.weight": (8, 16),
    f"{LAYER}.self_attn.v_proj.weight": (8, 16),
    f"{LAYER}.self_attn.o_proj.weight": (16, 16),
    f"{LAYER}.mlp.gate_proj.weight": (24, 16),
    f"{LAYER}.mlp.up_proj.weight": (24, 16),
    f"{LAYER}.mlp.down_proj.weight": (16, 24),
    f"{LAYER}.input_layernorm.weight": (16,),
    f"{LAYER}.post_attention_layernorm.weight": (16,),
    "model.norm.weight": (16,),
    "lm_head.weight": (6, 16),
}


@pytest.fixture
def theirs() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {name: torch.randn(shape, generator=generator) for name, shape in THEIR_SHAPES.items()}


@pytest.fixture
def spec() -> Decoder:
    return build_spec(CONFIG)[1]


def test_one_file_reads_under_our_names(theirs: dict[str, torch.Tensor], spec: Decoder, tmp_path: Path) -> None:
    save_file(theirs, tmp_path / "model.safetensors")

    weights = dict(check_weights(spec, read(tmp_path)))

    assert weights.keys() == expected_shapes(spec).keys()
    assert torch.equal(weights["layers.0.attn.q.weight"], theirs[f"{LAYER}.self_attn.q_proj.weight"])
    assert torch.equal(weights["head.weight"], theirs["lm_head.weight"])


def test_shards_are_read_as_one(theirs: dict[str, torch.Tensor], spec: Decoder, tmp_path: Path) -> None:
    names = list(theirs)
    save_file({name: theirs[name] for name in names[:5]}, tmp_path / "a.safetensors")
    save_file({name: theirs[name] for name in names[5:]}, tmp_path / "b.safetensors")
    places = dict.fromkeys(names[:5], "a.safetensors") | dict.fromkeys(names[5:], "b.safetensors")
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))

    weights = dict(check_weights(spec, read(tmp_path)))

    assert weights.keys() == expected_shapes(spec).keys()


def test_weights_come_as_stored_and_in_the_order_in_which_they_are_needed(
    theirs: dict[str, torch.Tensor], spec: Decoder, tmp_path: Path
) -> None:
    halves = {name: tensor.half() for name, tensor in reversed(theirs.items())}
    save_file(halves, tmp_path / "model.safetensors")

    weights = list(read(tmp_path, dtype=torch.bfloat16))

    assert [name for name, _ in weights] == list(expected_shapes(spec))
    assert {tensor.dtype for _, tensor in weights} == {torch.float16}


def test_buffers_of_old_checkpoints_are_passed_over(
    theirs: dict[str, torch.Tensor], spec: Decoder, tmp_path: Path
) -> None:
    junk = {f"{LAYER}.self_attn.rotary_emb.inv_freq": torch.zeros(4), "h.0.attn.masked_bias": torch.zeros(1)}
    save_file(theirs | junk, tmp_path / "model.safetensors")

    weights = dict(check_weights(spec, read(tmp_path)))

    assert weights.keys() == expected_shapes(spec).keys()


@pytest.mark.parametrize("names", [("attn.k", "attn.v"), ("k_proj.k", "v_proj.v"), ("k", "v")])
def test_scales_of_a_kv_cache_reach_the_attention(
    names: tuple[str, str], theirs: dict[str, torch.Tensor], spec: Decoder, tmp_path: Path
) -> None:
    scales = {f"{LAYER}.self_attn.{names[i]}_scale": torch.tensor(value) for i, value in enumerate((0.5, 0.125))}
    save_file(theirs | scales, tmp_path / "model.safetensors")

    model = DecoderModel(spec, dict(check_weights(spec, read(tmp_path))), torch.float32, max_positions=8)

    attention = model.layers[0].attention
    assert (attention.k_scale, attention.v_scale) == (0.5, 0.125)


def test_a_tied_model_has_no_head(theirs: dict[str, torch.Tensor], tmp_path: Path) -> None:
    save_file(theirs, tmp_path / "model.safetensors")
    tied = CONFIG | {"tie_word_embeddings": True}

    weights = dict(check_weights(build_spec(tied)[1], read(tmp_path, tied)))

    assert "head.weight" not in weights
    assert "head.weight" not in expected_shapes(build_spec(tied)[1])


def test_leftover_missing_and_misshapen_weights_are_named(
    theirs: dict[str, torch.Tensor], spec: Decoder, tmp_path: Path
) -> None:
    del theirs["model.norm.weight"]
    theirs["lm_head.weight"] = torch.zeros(6, 8)
    theirs["visual.patch.weight"] = torch.zeros(1)
    save_file(theirs, tmp_path / "model.safetensors")

    with pytest.raises(ModelError) as caught:
        dict(check_weights(spec, read(tmp_path)))

    assert str(caught.value) == (
        "the model's weights do not fit its config: norm.weight missing; visual.patch.weight not known; "
        "head.weight is (6, 8), not (6, 16) of a wrong shape"
    )


def test_a_long_list_of_missing_weights_is_cut(spec: Decoder) -> None:
    with pytest.raises(ModelError, match=r"embed\.weight, .* and 7 more missing"):
        dict(check_weights(spec, []))


@pytest.mark.parametrize("content", [None, b"", b"\xff" * 64])
def test_an_absent_or_broken_file_is_refused(content: bytes | None, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content or b"")
    if content is None:
        path.unlink()

    with pytest.raises(ModelError, match=r"cannot read .*model\.safetensors"):
        dict(read(tmp_path))


def test_dummy_weights_fill_the_spec_and_depend_on_the_seed_alone(spec: Decoder) -> None:
    weights = dict(check_weights(spec, dummy_weights(spec, seed=1, dtype=torch.bfloat16)))
    again = dict(dummy_weights(spec, seed=1, dtype=torch.bfloat16))
    others = dict(dummy_weights(spec, seed=2, dtype=torch.bfloat16))

    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert not torch.equal(weights["embed.weight"], others["embed.weight"])
    assert torch.equal(weights["norm.weight"], torch.ones(16, dtype=torch.bfloat16))


def test_a_dummy_norm_that_adds_one_is_zero() -> None:
    spec = Decoder(vocab=4, hidden=8, layers=(), norm=Norm("rms_plus_one"))

    weights = dict(dummy_weights(spec, seed=0, dtype=torch.float32))

    assert torch.equal(weights["norm.weight"], torch.zeros(8))


def test_a_gguf_file_reads_like_a_folder(tmp_path: Path) -> None:
    shapes = {"attn_q": 64, "attn_k": 32, "attn_v": 32, "attn_output": 64, "ffn_gate": 96, "ffn_up": 96}
    tensors = {f"blk.0.{name}.weight": random_array(rows, 64) for name, rows in shapes.items()}
    tensors |= {"blk.0.ffn_down.weight": random_array(64, 96), "token_embd.weight": random_array(4, 64)}
    norms = ("blk.0.attn_norm", "blk.0.ffn_norm", "output_norm")
    tensors |= {f"{name}.weight": random_array(64) for name in norms}
    files = locate(str(write_gguf(tmp_path / "m.gguf", TINY_LLAMA, tensors)))
    config = read_config(files)
    family, spec = build_spec(config)

    weights = dict(check_weights(spec, read_weights(files, family, config, torch.float32)))

    assert weights.keys() == expected_shapes(spec).keys()


@pytest.mark.skipif(not STORIES.is_dir(), reason=f"{STORIES} is not there")
def test_a_real_checkpoint_fits_its_config() -> None:
    files = locate(str(STORIES))
    config = read_config(files)
    family, spec = build_spec(config)

    weights = dict(check_weights(spec, read_weights(files, family, config, torch.float32)))

    assert sum(tensor.numel() for tensor in weights.values()) == 260_032


def read(folder: Path, config: dict[str, Any] = CONFIG, dtype: torch.dtype = torch.float32) -> Any:
    family, _ = build_spec(config)
    return read_weights(ModelFiles(folder, "folder"), family, config, dtype)
