"""FP8 on a GPU: quantizing bit for bit as torch does, products against float64 of the same numbers, whole models."""

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from tests.tools.gpu_models import GEMMA3, SMALL
from tests.tools.pipeline import Pipeline
from torch import Tensor
from transformers import AutoModelForCausalLM
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from octavo.kernels import activation, fp8, rms_norm
from octavo.services.executor.load import load_engine
from octavo.services.executor.models.fp8_linear import Fp8Linear, many_rows_linear
from octavo.services.executor.models.norm import NormLayer
from octavo.services.executor.models.spec import Norm
from octavo.shared.config import Config
from octavo.shared.process import Stopwatch
from octavo.shared.sampling import SamplingParams

pytestmark = pytest.mark.gpu
SHAPES = [(6144, 4096), (4096, 12288), (24576, 4096), (48, 128), (1040, 640), (4096, 896)]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def close(out: Tensor, reference: Tensor, tolerance: float) -> None:
    assert out.shape == reference.shape and not out.isnan().any()
    error = (out.double() - reference.double()).norm() / reference.double().norm()
    assert error < tolerance, f"relative error {error:.1e}"


def randn(*shape: int) -> Tensor:
    return torch.randn(*shape, device="cuda").bfloat16()


def random_weight(outputs: int, inputs: int) -> fp8.Quantized:
    weight = fp8.quantize(randn(outputs, inputs) * torch.rand(outputs, 1, device="cuda").bfloat16())
    torch.cuda.synchronize()  # kernels of a step read weights before they wait for the kernel before
    return weight


def dense(quantized: fp8.Quantized) -> Tensor:
    return quantized[0].double() * quantized[1].double()[:, None]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("rows, size", [(1, 16), (3, 577), (40, 4096), (2, 12288), (5, 28672)])
def test_quantize_gives_torchs_bits(rows: int, size: int, dtype: torch.dtype) -> None:
    whole = torch.full((rows + 2, size + 24), math.nan, device="cuda", dtype=dtype)
    x = whole[1:-1, 8 : size + 8]
    x.copy_(torch.randn(rows, size, device="cuda") * torch.logspace(-3, 3, rows, device="cuda")[:, None])
    x[0, : size // 2] = 0
    x[-1, 0] = 100.0

    values, scale = fp8.quantize(x)

    expected = fp8.quantize_reference(x)
    assert torch.equal(scale, expected[1])
    assert torch.equal(values.view(torch.uint8), expected[0].view(torch.uint8))
    assert values.float().abs().amax() == 448


def test_a_row_of_zeros_has_a_scale() -> None:
    values, scale = fp8.quantize(torch.zeros(2, 256, device="cuda").bfloat16())
    assert not values.float().any() and scale.isfinite().all() and (scale > 0).all()


def test_all_of_e4m3_comes_back() -> None:
    codes = torch.arange(256, dtype=torch.uint8, device="cuda")
    codes = codes[(codes & 0x7F) != 0x7F]  # the two NaN; there are no infinities
    values, scale = fp8.quantize(codes.view(fp8.FP8).float()[None])
    assert scale == 1 and torch.equal(values.view(torch.uint8)[0], codes)


@pytest.mark.parametrize("rows, size", [(1, 128), (7, 577), (130, 4096), (33, 12288)])
def test_norm_and_activation_before_quantizing(rows: int, size: int) -> None:
    x, weight = randn(rows, 2 * size), randn(size)
    half = x[:, :size]
    cases = [
        (fp8.quantize_normed(half, weight, 1e-6), rms_norm.reference(half.double(), weight.double(), 1e-6)),
        (fp8.quantize_normed(half, None, 1e-6), rms_norm.reference(half.double(), None, 1e-6)),
        (fp8.quantize_gated(x, "silu"), activation.reference(x.double(), "silu")),
        (fp8.quantize_gated(x, "gelu_pytorch_tanh"), activation.reference(x.double(), "gelu_pytorch_tanh")),
        (fp8.quantize_gated(x, "relu"), activation.reference(x, "relu")),  # by torch, rounded in between
    ]
    for (values, scale), expected in cases:
        most = expected.double().abs().amax(1)
        assert torch.allclose(scale.double(), most / 448, rtol=1e-4)
        off = (dense((values, scale)) - expected.double()).abs()
        # Half a step: 1/16 of a number, or 2^-10 of the scale among the smallest.
        assert (off <= expected.double().abs() / 15.9 + scale.double()[:, None] / 1000).all()


@pytest.mark.parametrize("outputs, inputs", SHAPES)
def test_one_row_is_not_quantized(outputs: int, inputs: int) -> None:
    from octavo.kernels.gpu.linear import one_row_linear

    weight, double = random_weight(outputs, inputs), random_weight(2 * outputs, inputs)
    x, residual, norm_weight = randn(1, inputs), randn(1, outputs), randn(inputs)
    (values, scale), wide = weight, dense(weight).T
    close(one_row_linear(x, values, scale=scale), x.double() @ wide, 4e-3)
    close(one_row_linear(x, values, residual, scale=scale), x.double() @ wide + residual, 4e-3)
    normed = rms_norm.reference(x.double(), norm_weight.double(), 1e-6).double()
    close(one_row_linear(x, values, None, (norm_weight, 1e-6), scale=scale), normed @ wide, 4e-3)
    gated = activation.reference(normed @ dense(double).T, "silu").double()
    close(one_row_linear(x, double[0], None, (norm_weight, 1e-6), "silu", double[1]), gated, 4e-3)


@pytest.mark.parametrize("outputs, inputs", SHAPES)
@pytest.mark.parametrize("rows", [1, 2, 3, 15, 16, 17, 32, 33, 64])
def test_few_rows(rows: int, outputs: int, inputs: int) -> None:
    from octavo.kernels.gpu.fp8_linear import few_rows_linear

    weight, bias, residual = random_weight(outputs, inputs), randn(outputs), randn(rows, outputs)
    values, scale = fp8.quantize(randn(rows + 2, inputs))
    values[rows:], scale[rows:] = math.nan, math.nan
    x = values[:rows], scale[:rows]
    for its_bias, its_residual in ((None, None), (bias, residual)):
        out = few_rows_linear(x, weight, its_bias, its_residual, torch.bfloat16)
        close(out, fp8.linear_reference(x, weight, its_bias, its_residual), 3e-3)
    assert torch.equal(out, few_rows_linear(x, weight, bias, residual, torch.bfloat16))


@pytest.mark.parametrize("outputs, inputs", [*SHAPES, (48, 144)])
@pytest.mark.parametrize("rows", [1, 17, 100, 513])
def test_many_rows(rows: int, outputs: int, inputs: int) -> None:
    weight, bias, residual = random_weight(outputs, inputs), randn(outputs), randn(rows, outputs)
    x = fp8.quantize(randn(rows, inputs))
    # The tensor cores keep 14 bits of a sum of FP8 products, and cut off the rest at each 32 inputs.
    tolerance = 3e-3 + 1.5e-6 * inputs
    plain = many_rows_linear(x, weight, None, None, torch.bfloat16)
    close(plain, fp8.linear_reference(x, weight, None, None), tolerance)
    expected = fp8.linear_reference(x, weight, bias, residual)
    close(many_rows_linear(x, weight, bias, residual.clone(), torch.bfloat16), expected, tolerance)


@pytest.mark.parametrize("has_bias", [False, True])
@pytest.mark.parametrize("rows, tolerance", [(1, 6e-3), (2, 0.04), (16, 0.04), (17, 0.04), (300, 0.04)])
def test_a_layer_with_what_comes_before_it(rows: int, tolerance: float, has_bias: bool) -> None:
    outputs, inputs = 1024, 512
    values, scale = random_weight(outputs, inputs)
    bias = randn(outputs) if has_bias else None
    layer, wide = Fp8Linear(values, scale, bias), dense((values, scale)).T
    x, residual = randn(rows, 2 * inputs), randn(rows, outputs)
    half, offset = x[:, :inputs].contiguous(), bias.double() if bias is not None else 0.0
    for kind in ("rms", "layer"):
        weight = randn(inputs)
        norm = NormLayer(Norm(kind), weight, None)  # type: ignore[arg-type]  # a literal
        normed = half.double() - (half.double().mean(1, keepdim=True) if kind == "layer" else 0.0)
        normed = normed * torch.rsqrt(normed.square().mean(1, keepdim=True) + 1e-6) * weight.double()
        close(layer(half, norm=norm), normed @ wide + offset, tolerance)
    for act in ("silu", "gelu_pytorch_tanh", "relu2"):
        gated = activation.reference(x.double(), act)
        close(layer(x, residual.clone(), gate=act), gated @ wide + offset + residual, tolerance)


COMMON = {**SMALL, "initializer_range": 0.04}


@pytest.mark.parametrize("num_requests", [1, 9, 40], ids=lambda each: f"{each}-requests")
@pytest.mark.parametrize("model_type, changes", [("llama", {}), ("qwen3", {}), ("gemma3_text", GEMMA3), ("qwen2", {})])
def test_a_quantized_model_chooses_like_the_whole_one(
    model_type: str, changes: dict[str, Any], num_requests: int, tmp_path: Path
) -> None:
    torch.manual_seed(1)
    config = CONFIG_MAPPING[model_type](**{**COMMON, **changes})
    theirs = AutoModelForCausalLM.from_config(config).float().eval()
    theirs.save_pretrained(tmp_path)
    theirs.cuda()
    rng = random.Random(2)
    prompts = [[rng.randrange(1000) for _ in range(rng.randrange(1, 300))] for _ in range(num_requests)]
    settings = Config(
        model=str(tmp_path), device="cuda", dtype="bfloat16", quantization="fp8", max_num_seqs=64,
        max_num_batched_tokens=512, num_kv_blocks=512, max_model_len=1024,
    )  # fmt: skip
    pipeline = Pipeline(load_engine(settings, Stopwatch()))
    tokens = pipeline.generate(prompts, SamplingParams(max_tokens=40, temperature=0.0))

    lost = []
    for prompt, ours in zip(prompts, tokens, strict=True):
        with torch.inference_mode():
            logits = theirs(torch.tensor([prompt + ours], device="cuda")).logits[0, len(prompt) - 1 : -1]
        chosen = logits.gather(1, torch.tensor(ours, device="cuda")[:, None])[:, 0]
        lost.append((logits.amax(1) - chosen) / logits.std(1))
    # A random token loses about three standard deviations; torch with the same rounding loses 0.01 to 0.03.
    assert torch.cat(lost).mean() < 0.08


def test_a_checkpoint_that_carries_fp8_serves_like_one_quantized_on_load(tmp_path: Path) -> None:
    torch.manual_seed(1)
    model = AutoModelForCausalLM.from_config(CONFIG_MAPPING["qwen3"](**COMMON)).bfloat16()
    whole, carrying = tmp_path / "whole", tmp_path / "carrying"
    model.save_pretrained(whole)
    model.save_pretrained(carrying)
    stored = load_file(whole / "model.safetensors")
    for name in [name for name in stored if "_proj.weight" in name]:
        stored[name], scale = fp8.quantize_reference(stored[name])
        stored[f"{name}_scale"] = scale[:, None]
    save_file(stored, carrying / "model.safetensors")
    weights = {"num_bits": 8, "type": "float", "strategy": "channel"}
    quantization = {"quant_method": "compressed-tensors", "config_groups": {"group_0": {"weights": weights}}}
    config = json.loads((whole / "config.json").read_text()) | {"quantization_config": quantization}
    (carrying / "config.json").write_text(json.dumps(config))
    prompts = [[7] * 5, list(range(200)), [1, 2, 3]]
    tokens = []
    for folder, on_load in ((whole, "fp8"), (carrying, None)):
        settings = Config(
            model=str(folder), device="cuda", dtype="bfloat16", quantization=on_load, max_num_seqs=8,
            max_num_batched_tokens=256, num_kv_blocks=64, max_model_len=1024,
        )  # fmt: skip
        pipeline = Pipeline(load_engine(settings, Stopwatch()))
        tokens.append(pipeline.generate(prompts, SamplingParams(max_tokens=30, temperature=0.0)))

    assert tokens[0] == tokens[1]
