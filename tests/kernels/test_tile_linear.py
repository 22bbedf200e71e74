"""A linear layer on matrix tiles against the product in float64."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from octavo.kernels.linear import can_tile, pack_tiles, reference, tile_linear
from octavo.services.executor.models.linear import Linear

ROWS = [1, 2, 3, 8, 15, 16, 17, 31, 32, 33, 48, 64, 100]
SHAPES = [(32, 32), (576, 960), (1536, 576), (64, 8224)]  # inputs, outputs

needs_tiles = pytest.mark.skipif(
    not can_tile(torch.empty(32, 32, dtype=torch.bfloat16)),
    reason="needs numba and a CPU with matrix tiles of bfloat16",
)


@pytest.fixture
def poisoned() -> Iterator[None]:
    """New tensors are full of NaN."""
    assert torch.utils.deterministic.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def rows_before_nan(rows: int, inputs: int) -> Tensor:
    x = torch.full((rows + 16, inputs), torch.nan, dtype=torch.bfloat16)
    x[:rows] = torch.randn(rows, inputs)
    return x[:rows]


def close(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected, rtol=1e-2, atol=1e-2)


@needs_tiles
@pytest.mark.parametrize("inputs, outputs", SHAPES)
@pytest.mark.parametrize("rows", ROWS)
def test_tile_linear_is_its_reference(poisoned: None, rows: int, inputs: int, outputs: int) -> None:
    assert torch.empty(1).isnan().all() and torch.empty(0, dtype=torch.bfloat16).new_empty(1).isnan().all()
    x, weight = rows_before_nan(rows, inputs), (torch.randn(outputs, inputs) * 0.05).bfloat16()
    bias, residual = torch.randn(outputs).bfloat16(), torch.randn(rows, outputs).bfloat16()
    tiles = pack_tiles(weight)
    close(tile_linear(x, tiles, None, None), reference(x, weight, None, None))
    close(tile_linear(x, tiles, bias, None), reference(x, weight, bias, None))
    close(tile_linear(x, tiles, None, residual), reference(x, weight, None, residual))
    close(tile_linear(x, tiles, bias, residual), reference(x, weight, bias, residual))


@needs_tiles
def test_a_row_does_not_depend_on_the_others() -> None:
    x, tiles = torch.randn(100, 576).bfloat16(), pack_tiles(torch.randn(960, 576).bfloat16())
    together = tile_linear(x, tiles, None, None)
    for rows in ROWS:
        assert torch.equal(tile_linear(x[-rows:], tiles, None, None), together[-rows:])


@needs_tiles
def test_sums_are_rounded_once_and_what_is_not_finite_stays_so() -> None:
    x, weight = torch.ones(2, 32).bfloat16(), torch.zeros(32, 32).bfloat16()
    weight[:, 0], weight[:, 1], weight[1, 2], weight[2, 2] = 256.0, 1.0, torch.nan, torch.inf
    y = tile_linear(x, pack_tiles(weight), torch.full((32,), 1.0).bfloat16(), torch.full((2, 32), -257.0).bfloat16())
    # -257 is -256 in bfloat16; 256 + 1 + 1 - 256 in float32 is 2, and 0 if sums were rounded on the way
    assert y[0, 0] == 2 and y[0, 1].isnan() and y[0, 2] == torch.inf


@needs_tiles
def test_no_rows_give_no_rows_and_strided_rows_their_product() -> None:
    x, weight = torch.randn(6, 64).bfloat16(), torch.randn(64, 64).bfloat16()
    tiles = pack_tiles(weight)
    assert tile_linear(x[:0], tiles, None, None).shape == (0, 64)
    assert torch.equal(tile_linear(x[::2], tiles, None, None), tile_linear(x, tiles, None, None)[::2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("inputs, outputs", [(64, 96), (64, 48), (40, 96)])
@pytest.mark.parametrize("rows", [1, 2, 40])
def test_a_layer_is_its_product_whatever_fits(rows: int, inputs: int, outputs: int, dtype: torch.dtype) -> None:
    x, weight = torch.randn(rows, inputs).to(dtype), (torch.randn(outputs, inputs) * 0.1).to(dtype)
    bias, residual = torch.randn(outputs).to(dtype), torch.randn(rows, outputs).to(dtype)
    for packed in (False, True):
        close(Linear(weight, bias, packed)(x, residual), reference(x, weight, bias, residual))
        close(Linear(weight, None, packed)(x), reference(x, weight, None, None))
