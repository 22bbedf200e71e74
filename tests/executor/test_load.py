"""What cannot be served here is refused with one sentence, before weights are read."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from octavo.services.executor.gpu.limits import check_supported, memory_for
from octavo.services.executor.load import load_engine
from octavo.services.executor.models.families import build_spec
from octavo.services.executor.source import choose_dtype, open_model
from octavo.shared.config import Config
from octavo.shared.errors import ConfigError, ModelError
from octavo.shared.model_files import locate
from octavo.shared.process import Stopwatch

BF16, F32, FP8 = torch.bfloat16, torch.float32, torch.float8_e4m3fn
LLAMA: dict[str, Any] = {
    "model_type": "llama", "vocab_size": 6, "hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1,
    "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 64, "max_position_embeddings": 64,
    "rms_norm_eps": 1e-5, "hidden_act": "silu",
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> str:
    (tmp_path / "config.json").write_text(json.dumps(LLAMA))
    return str(tmp_path)


def test_an_old_gpu_is_named(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: (8, 6))

    with pytest.raises(ConfigError, match=r"compute capability 9\.0 .*; torch finds compute capability 8\.6"):
        load_engine(Config(model=folder, device="cuda"), Stopwatch())


def test_no_gpu_at_all_is_told(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)

    with pytest.raises(ConfigError, match="torch finds no CUDA device"):
        load_engine(Config(model=folder, device="cuda"), Stopwatch())


def test_a_context_beyond_the_models_is_refused_before_weights_are_read(folder: str) -> None:
    with pytest.raises(ConfigError, match="--max-model-len 65: this model takes at most 64"):
        open_model(Config(max_model_len=65), locate(folder), "cuda")


@pytest.mark.parametrize("own", ["float8_e4m3fn", "int8", "torch.float64", "nonsense"])
def test_a_dtype_that_nothing_computes_in_is_named(own: str) -> None:
    with pytest.raises(ModelError, match=rf"dtype is {own.removeprefix('torch.')}; .* --dtype"):
        choose_dtype(Config(), {"torch_dtype": own}, "cuda")
    assert choose_dtype(Config(dtype="bfloat16"), {"torch_dtype": own}, "cuda") is torch.bfloat16


@pytest.mark.parametrize("own", ["float32", "float16", "bfloat16"])
def test_a_gpu_computes_in_the_models_dtype(own: str) -> None:
    assert choose_dtype(Config(), {"dtype": own}, "cuda") is getattr(torch, own)


@pytest.mark.parametrize("head_dim", [8, 16, 64, 80, 96, 112, 120, 128, 192, 256])
def test_heads_that_are_no_power_of_two_have_kernels(head_dim: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "cc")
    check_supported(build_spec(LLAMA | {"head_dim": head_dim})[1], BF16, BF16, 64)


@pytest.mark.parametrize(
    ("head_dim", "dtype", "kv_dtype", "problem"),
    [
        (
            320,
            BF16,
            BF16,
            "heads have 320 dimensions; in bfloat16 .* take at most 256: use --device cpu",
        ),
        (192, F32, F32, "take at most 128"),
        (100, BF16, BF16, "heads have 100 dimensions; .* multiples of 8: use --device cpu"),
        (120, BF16, FP8, "heads have 120 dimensions; .* multiples of 16: use --kv-cache-dtype auto"),
    ],
)
def test_heads_without_a_kernel_are_refused(
    head_dim: int, dtype: torch.dtype, kv_dtype: torch.dtype, problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "cc")
    with pytest.raises(ModelError, match=problem):
        check_supported(build_spec(LLAMA | {"head_dim": head_dim})[1], dtype, kv_dtype, 64)


@pytest.mark.parametrize("block_size, head_dim, most", [(8, 64, 128), (256, 64, 128), (128, 256, 64), (128, 192, 64)])
def test_a_block_size_without_a_kernel_is_named(
    block_size: int, head_dim: int, most: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CC", "cc")
    _, spec = build_spec(LLAMA | {"head_dim": head_dim})
    check_supported(spec, BF16, BF16, most)
    with pytest.raises(ConfigError, match=rf"--block-size {block_size}: .* {head_dim} .* take 16 to {most}"):
        check_supported(spec, BF16, BF16, block_size)


def test_a_window_of_nothing_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CC", "cc")
    _, spec = build_spec(LLAMA | {"model_type": "mistral", "sliding_window": -1})
    with pytest.raises(ModelError, match="a sliding window of -1 tokens"):
        check_supported(spec, BF16, BF16, 64)


def test_a_missing_c_compiler_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CC", raising=False)
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(ConfigError, match="install gcc"):
        check_supported(build_spec(LLAMA)[1], BF16, BF16, 64)


@pytest.mark.parametrize(
    "error, wanted",
    [
        (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.32 GiB. GPU 0 has"), r"2\.32 GiB"),
        (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"), "more"),
    ],
)
def test_running_out_of_memory_names_who_asked_and_the_flag(
    error: RuntimeError, wanted: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (2**29, 140 * 2**30))

    expected = rf"out of GPU memory for the weights: {wanted} was asked for when 0\.50 of 140\.0 GiB .*: lower --x"
    with pytest.raises(ConfigError, match=expected), memory_for("the weights", "lower --x"):
        raise error


def test_other_errors_are_not_taken_for_a_lack_of_memory() -> None:
    with pytest.raises(RuntimeError, match="illegal"), memory_for("the weights", "lower --x"):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")
