"""Quantizing to e4m3 against the list of all its numbers, and products against float64."""

import pytest
import torch
from torch import Tensor

from octavo.kernels.fp8 import FP8, dequantize, linear_reference, quantize, quantize_gated, quantize_normed

# All finite numbers of e4m3 from zero up: 8 steps of 2^-9, then 8 in each power of two, without the last.
GRID = torch.tensor([m / 512 for m in range(8)] + [(8 + m) * 2.0**e for e in range(-9, 6) for m in range(8)])[:-1]


def round_to_grid(x: Tensor) -> Tensor:
    """The nearest number of the grid; of two the one whose last bit is zero."""
    distance = (x.abs().double()[..., None] - GRID.double()).abs()
    nearest = distance.amin(-1, keepdim=True) == distance
    even = nearest & (torch.arange(len(GRID)) % 2 == 0)
    index = torch.where(even.any(-1), even.int().argmax(-1), nearest.int().argmax(-1))
    return GRID[index] * x.sign()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_values_are_the_nearest_of_e4m3(dtype: torch.dtype) -> None:
    assert GRID[-1] == 448 and len(GRID) == 127
    x = (torch.randn(64, 48, generator=torch.Generator().manual_seed(0)) * 10).to(dtype)
    x[0] = torch.arange(48) * 18.67 / 2  # ties and small numbers beside a large one
    x[:, 0] = 448  # so that the scale is one

    values, scale = quantize(x)

    assert values.dtype == FP8 and torch.equal(scale, torch.ones(64))
    assert torch.equal(values.float(), round_to_grid(x.float()))


def test_a_row_of_zeros_or_of_tiny_numbers_stays_finite() -> None:
    x = torch.zeros(3, 16)
    x[1, 3], x[2, 5] = 1e-35, 3e38

    values, scale = quantize(x)

    assert scale.isfinite().all() and (scale > 0).all() and values.float().isfinite().all()
    assert torch.equal(dequantize(values, scale, torch.float32)[0], x[0])
    assert dequantize(values, scale, torch.float32)[2, 5] == pytest.approx(3e38)


def test_norm_and_activation_are_taken_along() -> None:
    x, weight = torch.randn(5, 64), torch.rand(64) + 0.5
    normed = x / (x.square().mean(1, keepdim=True) + 1e-6).sqrt() * weight
    gated = torch.nn.functional.silu(x[:, :32]) * x[:, 32:]
    for found, expected in ((quantize_normed(x, weight, 1e-6), normed), (quantize_gated(x, "silu"), gated)):
        close = dequantize(*found, torch.float32) - expected
        assert (close.abs() <= expected.abs() / 15 + expected.abs().amax(1, keepdim=True) / 448 / 512).all()


def test_the_reference_of_the_product() -> None:
    x, weight = torch.tensor([[2.0, 4.0]]), torch.tensor([[1.0, 0.5], [-3.0, 0.0]])
    y = linear_reference(quantize(x), quantize(weight), torch.tensor([1.0, 0.0]), torch.tensor([[10.0, 20.0]]))
    assert torch.allclose(y.float(), torch.tensor([[15.0, 14.0]]))
