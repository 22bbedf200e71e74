"""The Triton kernels in Triton's interpreter against the references; `test_interpreter` runs this file by itself.

The interpreter multiplies bfloat16 wrongly and knows no dependent launches: float32 and float16 only, and no overlap.
Blocks of others hold NaN. What lies behind a request's end in its own last page is a number, by contract, but large.
"""

import math
from typing import Any

import pytest
import torch
from tests.gpu.test_gpu_attention import check_few
from tests.gpu.test_gpu_sampler import check_masked_rows
from tests.gpu.test_gpu_work_list import check_shared, check_sharing, check_work
from torch import Tensor

from octavo.kernels import activation, cache_write, decode_attention, linear, rms_norm, rope
from octavo.kernels.gpu import activation as gpu_activation
from octavo.kernels.gpu import decode_attention as gpu_decode
from octavo.kernels.gpu import embedding as gpu_embedding
from octavo.kernels.gpu import few_rows as gpu_few_rows
from octavo.kernels.gpu import gated_linear as gpu_gated_linear
from octavo.kernels.gpu import linear as gpu_linear
from octavo.kernels.gpu import prefill_attention as gpu_prefill
from octavo.kernels.gpu import qkv as gpu_qkv
from octavo.kernels.gpu import rms_norm as gpu_rms_norm
from octavo.kernels.gpu import sampling as gpu_sampling
from octavo.kernels.gpu.linear import Gate
from octavo.kernels.gpu.pages import begin_pages
from octavo.kernels.gpu.sampler_state import COLUMNS
from octavo.services.executor.gpu.sampler import state_row
from octavo.shared.sampling import SamplingParams

pytestmark = [
    pytest.mark.filterwarnings("ignore:overflow encountered in exp:RuntimeWarning"),  # of 1 / (1 + exp(1000))
    pytest.mark.filterwarnings("ignore:Conversion of an array:DeprecationWarning"),  # Triton 3.6's own
]
DTYPES = FP32, FP16 = torch.float32, torch.float16
# Relative error of the whole output: ||out - ref|| / ||ref||.
TOLERANCE = {torch.float32: 5e-6, torch.float16: 1e-3}
PAGE = 16


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def close(out: Tensor, reference: Tensor) -> None:
    assert out.shape == reference.shape and not out.isnan().any()
    error = (out.double() - reference.double()).norm() / reference.double().norm()
    assert error < TOLERANCE[out.dtype], f"relative error {error:.1e}"


class Paged:
    """Random keys and values of requests, in pages in random order."""

    def __init__(self, lengths: list[int], kv_heads: int, dim: int, dtype: torch.dtype) -> None:
        most = -(-max(lengths) // PAGE)
        blocks = torch.randperm(len(lengths) * most + 1)[: len(lengths) * most].view(-1, most).int()
        self.slots = torch.randperm(len(lengths)).int()
        self.tables = torch.zeros_like(blocks)
        self.tables[self.slots.long()] = blocks
        self.blocks = blocks  # [requests, most]
        self.caches = [torch.full((len(blocks) * most + 1, kv_heads, PAGE, dim), math.nan, dtype=dtype) for _ in "kv"]
        for cache in self.caches:
            for row, length in zip(blocks.tolist(), lengths, strict=True):
                for index in range(-(-length // PAGE)):
                    inside = min(PAGE, length - index * PAGE)
                    cache[row[index]] = 1e4 if dtype == torch.float32 else 100.0
                    cache[row[index], :, :inside] = torch.randn(kv_heads, inside, dim)
        self.boxes = [gpu_decode.page_boxes(cache) for cache in self.caches]


@pytest.mark.parametrize(
    "dtype, lengths, kv_heads, group, dim, window, softcap",
    [
        (FP32, [1, 15, 16, 17, 50], 2, 3, 32, None, None),  # 16 programs a request, most without a page
        (FP16, [300], 1, 17, 16, 20, None),
        (FP32, [40, 33], 2, 1, 32, 16, 30.0),
        (FP32, [17, 80], 3, 2, 16, None, None),  # kv heads that are no power of two
        (FP16, [1, 15, 16, 33], 34, 1, 16, None, None),  # one program a request: nothing to combine
    ],
)
def test_decode_attention(
    dtype: torch.dtype,
    lengths: list[int],
    kv_heads: int,
    group: int,
    dim: int,
    window: int | None,
    softcap: float | None,
) -> None:
    paged, heads = Paged(lengths, kv_heads, dim, dtype), kv_heads * group
    q = torch.randn(len(lengths), heads, dim).to(dtype)
    out = torch.full_like(q, math.nan)
    scratch = torch.full((gpu_decode.scratch_size(len(lengths), heads, kv_heads, dim),), math.nan)
    ends = torch.tensor(lengths).int()
    gpu_decode.decode_attention(
        q, *paged.boxes, paged.tables, paged.slots, ends - 1, scratch, out, kv_heads, 0.3, window, softcap
    )
    close(out, decode_attention.reference(q, *paged.caches, paged.blocks, ends, 0.3, window, softcap))


@pytest.mark.parametrize(
    "dtype, shape, how",
    [
        (FP32, (1, 4, 32), {"has_sinks": True}),
        (FP16, (2, 3, 16), {"softcap": 20.0}),  # five requests of an item
        (FP32, (2, 16, 16), {}),  # the queries of one fill a tile
    ],
    ids=str,
)
def test_decode_attention_to_what_requests_share(
    dtype: torch.dtype, shape: tuple[int, int, int], how: dict[str, Any]
) -> None:
    lengths, shared = [97, 81, 150, 81, 2, 70, 90, 80], [(4, 5), (5, 0), (8, 4)]
    check_shared(lengths, shared, shape, dtype, device="cpu", page=PAGE, **how)


def test_work_lists() -> None:
    check_work([500 + 70 * i for i in range(20)], None, 8, device="cpu")
    check_work([1, 9000, 64, 65], 1000, 2, device="cpu")
    check_sharing(8, 4, device="cpu")
    check_sharing(2, 5, device="cpu")


@pytest.mark.parametrize("dtype, window, softcap", [(FP32, None, None), (FP16, 20, None), (FP32, 70, 30.0)])
def test_prefill_attention(dtype: torch.dtype, window: int | None, softcap: float | None) -> None:
    kv_heads, heads, dim, first = 1, 2, 32, 3  # the first rows are of decoding requests, and stay as they are
    lengths, totals = [1, 65, 30], [17, 65, 130]
    paged = Paged(totals, kv_heads, dim, dtype)
    q = torch.randn(first + sum(lengths), heads, dim).to(dtype)
    out = torch.full_like(q, math.nan)
    rows = [first + sum(lengths[:index]) for index in range(len(lengths))]
    tiles = [(index, start) for index, length in enumerate(lengths) for start in range(0, length, gpu_prefill.TILE)]
    behind = [(5, 7)] * 3  # there are no such tiles
    columns = [rows, lengths, totals, *map(list, zip(*tiles, *behind, strict=True)), [len(tiles)]]
    as_int32 = [torch.tensor(each).int() for each in columns]
    chunks = gpu_prefill.Chunks(*as_int32[:3], paged.slots, *as_int32[3:])
    gpu_prefill.prefill_attention(q, *paged.boxes, paged.tables, chunks, out, kv_heads, 0.3, window, softcap)

    assert out[:first].isnan().all()
    # A chunk of n tokens is n requests of one token each.
    owners = torch.tensor([index for index, length in enumerate(lengths) for _ in range(length)])
    ends = torch.cat([torch.arange(end - n, end) + 1 for n, end in zip(lengths, totals, strict=True)])
    expected = decode_attention.reference(q[first:], *paged.caches, paged.blocks[owners], ends, 0.3, window, softcap)
    close(out[first:], expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [31, 64, 5000])
def test_masked_rows(vocab: int, dtype: torch.dtype) -> None:
    check_masked_rows(vocab, dtype, "cpu")


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("dim, turned, is_interleaved", [(32, 32, False), (32, 16, False), (16, 16, True)])
@pytest.mark.parametrize("has_norm", [True, False])
@pytest.mark.parametrize("is_many", [True, False])
def test_split_qkv(
    is_many: bool, has_norm: bool, dim: int, turned: int, is_interleaved: bool, dtype: torch.dtype,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    tokens, heads, kv_heads = 4, 6, 3
    monkeypatch.setattr(gpu_qkv, "MANY_TOKENS", tokens if is_many else tokens + 1)
    qkv = torch.randn(tokens, (heads + 2 * kv_heads) * dim).to(dtype)
    angles = torch.rand(40, turned // 2) * 6
    cos, sin = (each[:, None].to(dtype) for each in rope.tables(angles, 1.0, is_interleaved))
    positions, slots = torch.tensor([0, 15, 16, 39]).int(), torch.randperm(tokens).int()
    tables = torch.randperm(tokens * 3).int().view(tokens, 3)
    caches = [torch.full((tokens * 3, kv_heads, PAGE, dim), math.nan, dtype=dtype) for _ in "kv"]
    weights = [torch.rand(dim).to(dtype) + 0.5 for _ in "qk"] if has_norm else [None, None]
    projection = gpu_qkv.Projection(qkv, heads, *caches, cos, sin, is_interleaved, *weights, 1e-5)
    q = gpu_qkv.split_qkv(projection, tables, slots, positions)

    parts = qkv.view(tokens, -1, dim).float().split([heads, kv_heads, kv_heads], 1)
    turned_parts = []
    for part, weight in zip(parts, weights, strict=False):
        normed = part if weight is None else rms_norm.reference(part, weight.float(), 1e-5)
        turned_parts.append(rope.reference(normed, angles[positions.long()], 1.0, is_interleaved))
    expected = [torch.full_like(cache, math.nan, dtype=torch.float32) for cache in caches]
    places = tables[slots.long(), positions.long() // PAGE].long() * PAGE + positions.long() % PAGE
    cache_write.reference(turned_parts[1], parts[2], *expected, places)
    close(q, turned_parts[0])
    for ours, theirs in zip(caches, expected, strict=True):
        assert torch.equal(ours.isnan(), theirs.isnan())
        close(ours.nan_to_num(), theirs.nan_to_num())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("has_weight", [True, False])
@pytest.mark.parametrize("size", [1, 77, 512])
def test_rms_norm(size: int, has_weight: bool, dtype: torch.dtype) -> None:
    x, weight = torch.randn(3, 2 * size).to(dtype)[:, :size], torch.rand(size).to(dtype) if has_weight else None
    close(gpu_rms_norm.rms_norm(x, weight, 1e-6), rms_norm.reference(x.float(), weight, 1e-6))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [3, 1024, 1025])
@pytest.mark.parametrize("act", ["silu", "gelu_pytorch_tanh"])
def test_gated(act: str, size: int, dtype: torch.dtype) -> None:
    x = torch.randn(3, 2 * size).to(dtype) * 3
    close(gpu_activation.gated(x, act != "silu"), activation.reference(x.float(), act))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("outputs, inputs", [(3, 128), (7, 384), (11, 1024)])
def test_one_row_linear(outputs: int, inputs: int, dtype: torch.dtype) -> None:
    weight, residual = torch.randn(2 * outputs, inputs).to(dtype), torch.randn(1, outputs).to(dtype)
    x, norm_weight = torch.randn(1, inputs).to(dtype), torch.rand(inputs).to(dtype)
    half, wide = weight[:outputs].contiguous(), weight.float()
    one_row = gpu_linear.one_row_linear
    close(one_row(x, half, residual), linear.reference(x.float(), wide[:outputs], None, residual))
    for its_weight in (norm_weight, None):
        normed = rms_norm.reference(x.float(), its_weight, 1e-6)
        close(one_row(x, half, None, (its_weight, 1e-6)), linear.reference(normed, wide[:outputs], None, None))
        for gate, act in (("silu", "silu"), ("gelu", "gelu_pytorch_tanh")):
            gated = activation.reference(linear.reference(normed, wide, None, None), act)
            close(one_row(x, weight, None, (its_weight, 1e-6), gate), gated)


def test_one_row_linear_of_several_outputs_a_program() -> None:
    weight, x = torch.randn(2 * 2 * gpu_linear.NUM_SMS + 3, 128), torch.randn(1, 128)
    close(gpu_linear.one_row_linear(x, weight), linear.reference(x, weight, None, None))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "rows, outputs, inputs", [(2, 3, 128), (7, 16, 256), (16, 17, 640), (17, 33, 128), (32, 8, 256)]
)
@pytest.mark.parametrize("tile", [(8, 4, 32, 3), (16, 8, 16, 2)])
def test_few_rows_linear(
    tile: gpu_few_rows.Tile, rows: int, outputs: int, inputs: int, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(gpu_few_rows.TILES, (outputs, inputs), (tile, tile))
    x, weight, residual = torch.randn(rows + 1, inputs), torch.randn(outputs + 1, inputs), torch.randn(rows, outputs)
    x[-1] = weight[-1] = math.nan  # what lies behind them
    x, weight, residual = x[:-1].to(dtype), weight[:-1].to(dtype), residual.to(dtype)
    few_rows_linear = gpu_few_rows.few_rows_linear
    close(few_rows_linear(x, weight), linear.reference(x.float(), weight.float(), None, None))
    close(few_rows_linear(x, weight, residual), linear.reference(x.float(), weight.float(), None, residual.float()))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    "rows, size, inputs, gate, act",
    [
        (1, 8, 64, "silu", "silu"),
        (129, 136, 72, "gelu", "gelu_pytorch_tanh"),
        (2200, 1000, 8, "silu", "silu"),  # more than one group of rows, and programs of two tiles
    ],
)
def test_gated_linear(rows: int, size: int, inputs: int, gate: Gate, act: str, dtype: torch.dtype) -> None:
    x, weight = torch.randn(rows, inputs).to(dtype), torch.randn(2 * size, inputs).to(dtype)
    expected = activation.reference(linear.reference(x.float(), weight.float(), None, None), act)
    close(gpu_gated_linear.gated_linear(x, weight, gate), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1, 4096, 9000])
def test_greedy_takes_the_first_of_the_most_likely(vocab: int, dtype: torch.dtype) -> None:
    logits = torch.randn(3, vocab + 5).to(dtype)[:, :vocab]
    logits[:, vocab // 3] = logits[:, vocab // 2] = 100.0
    out, slots, last = torch.full((3,), -1).int(), torch.tensor([3, 0, 1]).int(), torch.full((4,), -1).int()
    positions, state = torch.zeros(3).int(), torch.zeros(5, COLUMNS).int()  # temperature 0
    gpu_sampling.sample(logits, state, slots, positions, out, last)
    assert out.tolist() == [vocab // 3] * 3
    assert last.tolist() == [vocab // 3, vocab // 3, -1, vocab // 3]


def test_slots_that_are_held_are_left_alone_until_they_are_asked_for() -> None:
    logits, positions = torch.randn(3, 5000), torch.zeros(3).int()
    slots, state = torch.tensor([2, 0, 1]).int(), torch.zeros(4, COLUMNS).int()
    params = SamplingParams(1, temperature=0.0, biases={1: 1.0})
    state[0] = torch.tensor(state_row(params), dtype=torch.int32)
    out, last = torch.full((3,), -1).int(), torch.full((4,), -1).int()
    best = logits.argmax(-1).tolist()
    gpu_sampling.sample(logits, state, slots, positions, out, last)
    assert out.tolist() == [best[0], -1, best[2]]
    assert last.tolist() == [-1, best[2], best[0], -1]
    gpu_sampling.sample(logits[1:2], state, slots[1:2], positions, out[1:2], last, with_held=True)
    assert out.tolist() == best
    assert last.tolist() == [best[1], best[2], best[0], -1]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("size", [16, 1030])
def test_gather_takes_known_tokens_and_the_last_ones_of_slots(size: int, dtype: torch.dtype) -> None:
    table, last, slots = (
        torch.randn(50, size).to(dtype),
        torch.tensor([7, 49, 0]).int(),
        torch.tensor([1, 0, 2, 1]).int(),
    )
    assert torch.equal(gpu_embedding.gather(table, last, slots), table[[49, 7, 0, 49]])
    token_ids = torch.tensor([-1, 3, 0, -1]).int()
    assert torch.equal(gpu_embedding.gather(table, last, slots, token_ids), table[[49, 3, 0, 49]])


@pytest.mark.parametrize("lengths", [[1], [17], [1, 16, 17, 70]], ids=str)
@pytest.mark.parametrize("how", [{}, {"window": 20, "softcap": 30.0}, {"has_sinks": True, "has_slopes": True}], ids=str)
def test_few_requests_from_the_product(lengths: list[int], how: dict[str, Any]) -> None:
    check_few(lengths, (2, 2, 16), torch.float32, device="cpu", page=16, **how)


@pytest.mark.parametrize("num_fresh", [0, 1, 3])
@pytest.mark.parametrize("num_entries", [0, 2, 300])
def test_begin_pages(num_fresh: int, num_entries: int) -> None:
    tables = torch.randint(0, 99, (40, 10)).int()
    entries = torch.randperm(400)[:num_entries]
    slots, places, blocks = (entries // 10).int(), (entries % 10).int(), torch.randint(100, 200, (num_entries,)).int()
    cache = torch.randint(1, 99, (3, 2, 7, 2, 16, 140)).short()
    fresh = torch.randperm(7)[:num_fresh].int()
    expected_tables, expected = tables.clone(), cache.clone()
    expected_tables[slots.long(), places.long()] = blocks
    expected[:, :, fresh.long()] = 0
    begin_pages(tables, slots, places, blocks, cache, fresh)
    assert torch.equal(tables, expected_tables) and torch.equal(cache, expected)
