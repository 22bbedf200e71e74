"""The Triton kernels on a GPU, all but attention, against the formulas in float64 on the same inputs."""

import math

import pytest
import torch
from tests.tools.paged import FP8, close

pytestmark = pytest.mark.gpu
PAGE = 64
DTYPES = [torch.bfloat16, torch.float16, torch.float32]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "dim, turned, is_interleaved",
    [(128, 128, False), (64, 32, False), (64, 64, True), (80, 80, False), (96, 24, False), (192, 192, True)],
)
@pytest.mark.parametrize("heads, kv_heads", [(32, 8), (9, 3), (4, 1)])
@pytest.mark.parametrize("has_norm", [True, False])
@pytest.mark.parametrize("tokens", [37, 1024])  # of so many a program takes all heads
def test_split_qkv(
    tokens: int,
    has_norm: bool,
    heads: int,
    kv_heads: int,
    dim: int,
    turned: int,
    is_interleaved: bool,
    dtype: torch.dtype,
) -> None:
    from octavo.kernels import rms_norm, rope
    from octavo.kernels.gpu.qkv import MANY_TOKENS, Projection, split_qkv

    assert 37 < MANY_TOKENS <= 1024
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * dim, device="cuda").to(dtype)
    angles = torch.rand(200, turned // 2, device="cuda") * 6
    cos, sin = (each[:, None].to(dtype) for each in rope.tables(angles, 1.0, is_interleaved))
    positions = torch.randint(0, 200, (tokens,), device="cuda").int()
    slots = torch.randperm(tokens, device="cuda").int()
    tables = torch.randperm(tokens * 4, device="cuda").int().view(tokens, 4)
    caches = [torch.full((tokens * 4, kv_heads, PAGE, dim), math.nan, dtype=dtype, device="cuda") for _ in range(2)]
    weights = [torch.rand(dim, device="cuda").to(dtype) + 0.5 for _ in range(2)] if has_norm else [None, None]
    projection = Projection(qkv, heads, *caches, cos, sin, is_interleaved, *weights, 1e-5)
    q = split_qkv(projection, tables, slots, positions)

    split = qkv.view(tokens, -1, dim).double().split([heads, kv_heads, kv_heads], 1)
    turned_angles = angles[positions.long()]
    expected = []
    for part, weight in zip(split[:2], weights, strict=True):
        normed = part if weight is None else rms_norm.reference(part, weight.double(), 1e-5)
        expected.append(rope.reference(normed.float(), turned_angles, 1.0, is_interleaved).double())
    close(q, expected[0])
    blocks, offsets = tables[slots.long(), positions.long() // PAGE].long(), positions.long() % PAGE
    close(caches[0][blocks, :, offsets], expected[1])
    assert torch.equal(caches[1][blocks, :, offsets], qkv.view(tokens, -1, dim)[:, heads + kv_heads :])
    assert [int((~cache.isnan()).sum()) for cache in caches] == [tokens * kv_heads * dim] * 2


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim", [16, 80, 128])
@pytest.mark.parametrize("k_scale, v_scale", [(1.0, 1.0), (0.25, 4.0)])
@pytest.mark.parametrize("tokens", [37, 1024])
def test_split_qkv_into_a_cache_in_fp8(
    tokens: int, k_scale: float, v_scale: float, dim: int, dtype: torch.dtype
) -> None:
    from octavo.kernels.gpu.qkv import Projection, split_qkv

    kv_heads = 3
    qkv = torch.randn(tokens, 3 * kv_heads * dim, device="cuda").to(dtype)
    heads = qkv.view(tokens, 3 * kv_heads, dim)
    heads[3, :, 5], heads[4, :, 6] = 5000.0, -5000.0
    heads[5, 2 * kv_heads :, 7] = math.nan  # of values: in keys RoPE would bring it to a second place
    cos, sin = torch.ones(200, 1, dim, dtype=dtype, device="cuda"), torch.zeros(200, 1, dim, dtype=dtype, device="cuda")
    positions, slots = torch.randint(0, 200, (tokens,)).int().cuda(), torch.randperm(tokens).int().cuda()
    tables = torch.randperm(tokens * 4).int().cuda().view(tokens, 4)
    caches = [torch.zeros(tokens * 4, kv_heads, PAGE, dim, device="cuda").to(FP8) for _ in range(2)]
    projection = Projection(qkv, kv_heads, *caches, cos, sin, False, k_scale=k_scale, v_scale=v_scale)
    split_qkv(projection, tables, slots, positions)
    blocks, offsets = tables[slots.long(), positions.long() // PAGE].long(), positions.long() % PAGE
    for cache, first, scale in ((caches[0], kv_heads, k_scale), (caches[1], 2 * kv_heads, v_scale)):
        expected = (heads[:, first : first + kv_heads].float() / scale).clamp(-448, 448).to(FP8).float()
        torch.testing.assert_close(cache.float()[blocks, :, offsets], expected, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rows, size", [(1, 4096), (7, 577), (300, 1024), (64, 12288)])
def test_rms_norm_and_gated(rows: int, size: int, dtype: torch.dtype) -> None:
    from octavo.kernels import activation, rms_norm

    x, weight = torch.randn(rows, 2 * size, device="cuda").to(dtype), torch.rand(size, device="cuda").to(dtype)
    close(rms_norm.rms_norm(x[:, :size], weight, 1e-6), rms_norm.reference(x[:, :size], weight, 1e-6).double())
    for act in ("silu", "gelu_pytorch_tanh"):
        close(activation.gated(x, act), activation.reference(x.double(), act).double())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outputs, inputs", [(4096, 1024), (1, 128), (1027, 3072), (300, 12288), (5000, 640)])
def test_one_row_linear(outputs: int, inputs: int, dtype: torch.dtype) -> None:
    from octavo.kernels import activation, rms_norm
    from octavo.kernels.gpu.linear import one_row_linear

    weight, x = (torch.randn(size, inputs, device="cuda").to(dtype) for size in (2 * outputs, 1))
    residual, norm_weight = (torch.rand(1, size, device="cuda").to(dtype) for size in (outputs, inputs))
    weight /= 10
    half, wide = weight[:outputs].contiguous(), weight.double().T
    close(one_row_linear(x, half), x.double() @ wide[:, :outputs])
    close(one_row_linear(x, half, residual), x.double() @ wide[:, :outputs] + residual)
    for its_weight in (norm_weight[0], None):
        normed = rms_norm.reference(x.double(), None if its_weight is None else its_weight.double(), 1e-6).double()
        close(one_row_linear(x, half, None, (its_weight, 1e-6)), normed @ wide[:, :outputs])
        gated = activation.reference(normed @ wide, "silu").double()
        close(one_row_linear(x, weight, None, (its_weight, 1e-6), "silu"), gated)
    gated = activation.reference(x.double() @ wide, "gelu_pytorch_tanh").double()
    close(one_row_linear(x, weight, None, None, "gelu"), gated)


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize("size", [(1024, 2048), (2048, 6144), (4096, 1024), (4096, 12_288), (1, 512), (1003, 1024)])
@pytest.mark.parametrize("rows", [2, 15, 16, 17, 32])
def test_few_rows_linear(rows: int, size: tuple[int, int], dtype: torch.dtype) -> None:
    from octavo.kernels.gpu.few_rows import few_rows_linear, tile_of

    outputs, inputs = size
    if tile_of(rows, outputs, inputs) is None:
        assert rows > 16
        pytest.skip("the library is faster")
    shapes = (rows + 40, inputs), (outputs + 40, inputs), (rows, outputs)
    x, weight, residual = (torch.randn(shape, device="cuda").to(dtype) for shape in shapes)
    x[rows:] = weight[outputs:] = math.nan  # what lies behind them
    x, weight = x[:rows], weight[:outputs] / math.sqrt(inputs)
    product = x.double() @ weight.double().T
    close(few_rows_linear(x, weight), product)
    close(few_rows_linear(x, weight, residual), product + residual)


@pytest.mark.parametrize(
    "rows, outputs, inputs, is_for_it",
    [
        (16, 1024, 3072, True),
        (32, 1024, 3072, True),
        (1, 1024, 3072, False),  # one row has a kernel of its own
        (33, 1024, 3072, False),
        (8, 6144, 4096, False),  # so many outputs that the library is faster
        (8, 1024, 4672, False),  # not to be cut for four warps
    ],
)
def test_few_rows_linear_fits_what_has_few_outputs(rows: int, outputs: int, inputs: int, is_for_it: bool) -> None:
    from octavo.kernels.gpu.few_rows import fits

    x, weight = (torch.empty(count, inputs, dtype=torch.bfloat16, device="cuda") for count in (rows, outputs))
    assert fits(x, weight) == is_for_it
    assert not fits(x.float(), weight.float())
    assert not fits(x, weight.T.contiguous().T)


@pytest.mark.parametrize("dtype", DTYPES[:2])
@pytest.mark.parametrize(
    "rows, size, inputs",
    [(1000, 3080, 1024), (1024, 200, 520), (1024, 12_288, 4096), (8192, 3080, 1032), (8192, 3072, 1024), (1, 8, 8)],
)
def test_gated_linear(rows: int, size: int, inputs: int, dtype: torch.dtype) -> None:
    from octavo.kernels.gpu.gated_linear import gated_linear

    x, weight = (torch.randn(count, inputs, device="cuda").to(dtype) for count in (rows, 2 * size))
    weight /= math.sqrt(inputs)
    product = x.double() @ weight.double().T
    gate, up = product.chunk(2, 1)
    close(gated_linear(x, weight, "silu"), torch.nn.functional.silu(gate) * up)
    close(gated_linear(x, weight, "gelu"), torch.nn.functional.gelu(gate, approximate="tanh") * up)


def test_gated_linear_takes_nothing_from_behind_its_tensors() -> None:
    from octavo.kernels.gpu.gated_linear import gated_linear

    x, weight = (torch.randn(count + 300, 520, device="cuda").bfloat16() for count in (1000, 400))
    x[1000:] = weight[400:] = math.nan
    assert not gated_linear(x[:1000], weight[:400], "silu").isnan().any()


@pytest.mark.parametrize(
    "rows, size, inputs, is_for_it",
    [
        (8192, 12_288, 4096, True),
        (1024, 12_288, 4096, True),
        (1000, 12_288, 4096, True),  # as many tiles
        (512, 12_288, 4096, False),  # three waves
        (8192, 1024, 1024, True),
        (8192, 1032, 1024, False),  # a wave that is nearly empty
        (8192, 12_284, 4096, False),
        (8192, 12_288, 4100, False),
    ],
)
def test_gated_linear_fits_many_tiles_that_leave_no_multiprocessor_idle(
    rows: int, size: int, inputs: int, is_for_it: bool
) -> None:
    from octavo.kernels.gpu.gated_linear import IS_OTHER_GPU, fits

    x, weight = (torch.empty(count, inputs, dtype=torch.bfloat16, device="cuda") for count in (rows, 2 * size))
    assert fits(x, weight) == (is_for_it and not IS_OTHER_GPU)
    assert not fits(x.float(), weight.float())
    assert not fits(x.T.contiguous().T, weight)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab, size", [(50, 16), (1000, 577), (151_936, 4096), (600_000, 4096)])
def test_gather(vocab: int, size: int, dtype: torch.dtype) -> None:
    from octavo.kernels.gpu.embedding import gather

    if vocab * size * dtype.itemsize > 6 * 2**30:
        pytest.skip("a table of more than 6 GiB")
    table = torch.randn(vocab, size, device="cuda", dtype=dtype)
    last = torch.randint(0, vocab, (9,), device="cuda").int()
    last[3] = vocab - 1
    slots = torch.randint(0, 9, (70,), device="cuda").int()
    assert torch.equal(gather(table, last, slots), table[last[slots.long()].long()])
    token_ids = torch.randint(0, vocab, (70,), device="cuda").int()
    token_ids[::3] = -1
    expected = torch.where(token_ids < 0, last[slots.long()], token_ids).long()
    assert torch.equal(gather(table, last, slots, token_ids), table[expected])
