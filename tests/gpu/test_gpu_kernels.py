"""The Triton kernels on a GPU against the formulas in float64 on the same inputs.

Blocks of others hold NaN. What lies behind a request's end in its own last page is a number, by contract, but large.
"""

import math

import pytest
import torch
from torch import Tensor

pytestmark = pytest.mark.gpu
PAGE = 64
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
# Relative error of the whole output: ||out - ref|| / ||ref||.
TOLERANCE = {torch.bfloat16: 6e-3, torch.float16: 1e-3, torch.float32: 5e-6}


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def close(out: Tensor, reference: Tensor) -> None:
    assert out.shape == reference.shape and not out.isnan().any()
    error = (out.double() - reference).norm() / reference.norm()
    assert error < TOLERANCE[out.dtype], f"relative error {error:.1e}"


class Paged:
    """Random keys and values of requests, in pages in random order."""

    def __init__(self, lengths: list[int], kv_heads: int, dim: int, dtype: torch.dtype, page: int = PAGE) -> None:
        from octavo.kernels.gpu.decode_attention import page_boxes

        most = -(-max(lengths) // page)
        blocks = torch.randperm(len(lengths) * most + 3)[: len(lengths) * most].view(len(lengths), most)
        self.slots = torch.randperm(len(lengths)).int()
        self.tables = torch.empty_like(blocks).int()
        self.tables[self.slots.long()] = blocks.int()
        shape = (len(lengths) * most + 3, kv_heads, page, dim)
        caches = [torch.full(shape, math.nan, dtype=dtype, device="cuda") for _ in range(2)]
        self.dense: list[list[Tensor]] = [[], []]
        for request, length in enumerate(lengths):
            for cache, dense in zip(caches, self.dense, strict=True):
                values = torch.randn(length, kv_heads, dim, device="cuda").to(dtype)
                dense.append(values.double())
                for start in range(0, length, page):
                    some = values[start : start + page].transpose(0, 1)
                    cache[int(blocks[request, start // page])] = 1e4
                    cache[int(blocks[request, start // page]), :, : some.shape[1]] = some
        self.keys, self.values = caches
        self.key_boxes, self.value_boxes = (page_boxes(cache) for cache in caches)
        self.tables, self.slots = self.tables.cuda(), self.slots.cuda()


def attend(q: Tensor, keys: Tensor, values: Tensor, scale: float, window: int | None, softcap: float | None) -> Tensor:
    """The last len(q) positions of one request; q [n, heads, dim], keys and values [length, kv_heads, dim], float64."""
    group = q.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    scores = torch.einsum("nhd,lhd->hnl", q, keys) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    own = torch.arange(len(keys) - len(q), len(keys), device=q.device)[:, None]
    others = torch.arange(len(keys), device=q.device)
    seen = others <= own
    if window is not None:
        seen &= others > own - window
    return torch.einsum("hnl,lhd->nhd", scores.masked_fill(~seen, -math.inf).softmax(-1), values)


LENGTHS = [1, 63, 64, 65, 128, 700, 2, 1500]
SHAPES = [(8, 4, 128), (2, 3, 64), (1, 8, 256), (4, 1, 128), (1, 16, 64), (2, 7, 128)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kv_heads, group, dim", SHAPES)
@pytest.mark.parametrize("window, softcap", [(None, None), (100, None), (64, 30.0), (None, 20.0)])
@pytest.mark.parametrize("lengths", [LENGTHS, LENGTHS[-1:], LENGTHS * 12], ids=["eight", "one", "many"])
def test_decode_attention(
    lengths: list[int],
    window: int | None,
    softcap: float | None,
    kv_heads: int,
    group: int,
    dim: int,
    dtype: torch.dtype,
) -> None:
    from octavo.kernels.gpu.decode_attention import decode_attention, scratch_size

    if dim == 256 and dtype == torch.float32:
        pytest.skip("two pages of float32 do not fit into shared memory")
    paged = Paged(lengths, kv_heads, dim, dtype)
    q = torch.randn(len(lengths), kv_heads * group, dim, device="cuda").to(dtype)
    out = torch.full_like(q, math.nan)
    scratch = torch.full((scratch_size(len(lengths), kv_heads * group, kv_heads, dim),), math.nan, device="cuda")
    positions = torch.tensor(lengths, device="cuda").int() - 1
    decode_attention(
        q, paged.key_boxes, paged.value_boxes, paged.tables, paged.slots, positions, scratch, out,
        kv_heads, 0.1, window, softcap,
    )  # fmt: skip
    for request in range(min(len(lengths), 8)):
        keys, values = paged.dense[0][request], paged.dense[1][request]
        close(out[request : request + 1], attend(q[request : request + 1].double(), keys, values, 0.1, window, softcap))
    assert not out.isnan().any()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kv_heads, group, dim", SHAPES)
@pytest.mark.parametrize("window, softcap", [(None, None), (100, None), (64, 30.0)])
def test_prefill_attention(
    window: int | None, softcap: float | None, kv_heads: int, group: int, dim: int, dtype: torch.dtype
) -> None:
    from octavo.kernels.gpu.prefill_attention import TILE, Chunks, prefill_attention

    if dtype == torch.float32 and dim == 256:
        pytest.skip("two pages of float32 do not fit into shared memory")
    lengths, totals = [1, 128, 129, 500, 64, 3, 900], [1, 128, 300, 563, 129, 800, 900]
    paged = Paged(totals, kv_heads, dim, dtype)
    first = 5  # rows of decoding requests, which must stay as they are
    q = torch.randn(first + sum(lengths), kv_heads * group, dim, device="cuda").to(dtype)
    out = torch.full_like(q, math.nan)
    rows = [first + sum(lengths[:index]) for index in range(len(lengths))]
    tiles = [(index, start) for index, length in enumerate(lengths) for start in range(0, length, TILE)]
    columns = [rows, lengths, totals, [each for each, _ in tiles], [each for _, each in tiles]]
    on_device = [torch.tensor(each, dtype=torch.int32, device="cuda") for each in columns]
    chunks = Chunks(*on_device[:3], paged.slots, *on_device[3:])
    prefill_attention(q, paged.key_boxes, paged.value_boxes, paged.tables, chunks, out, kv_heads, 0.1, window, softcap)
    assert out[:first].isnan().all()
    for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        some = slice(row, row + length)
        expected = attend(q[some].double(), paged.dense[0][index], paged.dense[1][index], 0.1, window, softcap)
        close(out[some], expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim, turned, is_interleaved", [(128, 128, False), (64, 32, False), (64, 64, True)])
@pytest.mark.parametrize("heads, kv_heads", [(32, 8), (9, 3), (4, 1)])
@pytest.mark.parametrize("has_norm", [True, False])
def test_split_qkv(
    has_norm: bool, heads: int, kv_heads: int, dim: int, turned: int, is_interleaved: bool, dtype: torch.dtype
) -> None:
    from octavo.kernels import rms_norm, rope
    from octavo.kernels.gpu.qkv import split_qkv

    tokens = 37
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * dim, device="cuda").to(dtype)
    angles = torch.rand(200, turned // 2, device="cuda") * 6
    cos, sin = (each[:, None].to(dtype) for each in rope.tables(angles, 1.0, is_interleaved))
    positions = torch.randint(0, 200, (tokens,), device="cuda").int()
    slots = torch.randperm(tokens, device="cuda").int()
    tables = torch.randperm(tokens * 4, device="cuda").int().view(tokens, 4)
    caches = [torch.full((tokens * 4, kv_heads, PAGE, dim), math.nan, dtype=dtype, device="cuda") for _ in range(2)]
    weights = [torch.rand(dim, device="cuda").to(dtype) + 0.5 for _ in range(2)] if has_norm else [None, None]
    q = split_qkv(qkv, *caches, tables, slots, positions, heads, cos, sin, is_interleaved, *weights, 1e-5)

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

    weight = torch.randn(outputs, inputs, device="cuda").to(dtype)
    x, residual = torch.randn(1, 2 * inputs, device="cuda").to(dtype), torch.randn(1, outputs, device="cuda").to(dtype)
    norm_weight = torch.rand(inputs, device="cuda").to(dtype)
    half, double = x[:, :inputs].contiguous(), x.double()
    close(one_row_linear(half, weight), half.double() @ weight.double().T)
    close(one_row_linear(half, weight, residual), half.double() @ weight.double().T + residual)
    for its_weight in (norm_weight, None):
        normed = rms_norm.reference(half.double(), None if its_weight is None else its_weight.double(), 1e-6).double()
        close(one_row_linear(half, weight, None, "norm", its_weight, 1e-6), normed @ weight.double().T)
    for kind, act in (("silu", "silu"), ("gelu", "gelu_pytorch_tanh")):
        gated = activation.reference(double, act).double()
        close(one_row_linear(x, weight, residual, kind), gated @ weight.double().T + residual)  # type: ignore[arg-type]  # a literal
