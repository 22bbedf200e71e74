"""Attention over pages on a GPU against the formula in float64 on the same inputs; see tests/tools/paged.py."""

import math
from typing import Any

import pytest
import torch
from tests.tools.paged import FP8, FP8_TOLERANCE, Paged, attend, close
from torch import Tensor

pytestmark = pytest.mark.gpu
PAGE = 64
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
LENGTHS = [1, 63, 64, 65, 128, 700, 2, 1500]
SHAPES = [(8, 4, 128), (2, 3, 64), (3, 3, 64), (1, 8, 256), (4, 1, 128), (1, 16, 64), (2, 7, 128)]
ODD_SHAPES = [(2, 4, 80), (4, 2, 96), (2, 1, 112), (3, 3, 120), (2, 2, 192), (2, 4, 16), (2, 2, 8), (1, 20, 64)]


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


def decode(paged: Paged, q: Tensor, lengths: list[int], is_balanced: bool, scale: float, **how: Any) -> Tensor:
    from octavo.kernels.gpu.decode_attention import decode_attention, scratch_size
    from octavo.kernels.gpu.work_list import plan_work

    heads, dim, kv_heads = q.shape[1], q.shape[2], paged.keys.shape[1]
    out = torch.full_like(q, math.nan)
    scratch = torch.full((scratch_size(len(q), heads, kv_heads, dim),), math.nan, device=q.device)
    positions = torch.tensor(lengths, device=q.device).int() - 1
    work = None
    if is_balanced:
        work = plan_work(paged.slots, positions, paged.tables, kv_heads, paged.keys.shape[2], 100, how.get("window"))
    for _ in range(2):  # the second time with counters as the first has left them
        out.fill_(math.nan)
        decode_attention(
            q, paged.key_boxes, paged.value_boxes, paged.tables, paged.slots, positions, scratch, out, kv_heads, scale,
            k_scale=paged.scales[0], v_scale=paged.scales[1], work=work, **how,
        )  # fmt: skip
    return out


def check_decode(
    lengths: list[int],
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    is_balanced: bool,
    kv_dtype: torch.dtype | None = None,
    **how: Any,
) -> None:
    kv_heads, group, dim = shape
    if dim > 128 and dtype == torch.float32:
        pytest.skip("two pages of float32 do not fit into shared memory")
    is_fp8 = kv_dtype == FP8
    paged = Paged(lengths, kv_heads, dim, kv_dtype or dtype, scales=(0.5, 3.0) if is_fp8 else (1.0, 1.0))
    q = torch.randn(len(lengths), kv_heads * group, dim, device="cuda").to(dtype)
    out = decode(paged, q, lengths, is_balanced, 0.1, **how)
    for request in range(min(len(lengths), 8)):
        keys, values = paged.dense[0][request], paged.dense[1][request]
        expected = attend(q[request : request + 1].double(), keys, values, 0.1, **how)
        close(out[request : request + 1], expected, FP8_TOLERANCE if is_fp8 else 0.0)
    assert not out.isnan().any()


@pytest.mark.parametrize("is_balanced", [True, False], ids=["balanced", "even"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("window, softcap", [(None, None), (100, None), (64, 30.0), (None, 20.0)])
@pytest.mark.parametrize("lengths", [LENGTHS, LENGTHS[-1:], LENGTHS * 12], ids=["eight", "one", "many"])
def test_decode_attention(
    lengths: list[int],
    window: int | None,
    softcap: float | None,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    is_balanced: bool,
) -> None:
    check_decode(lengths, shape, dtype, is_balanced, window=window, softcap=softcap)


@pytest.mark.parametrize("is_balanced", [True, False], ids=["balanced", "even"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", ODD_SHAPES)
def test_decode_attention_of_heads_of_any_size(
    shape: tuple[int, int, int], dtype: torch.dtype, is_balanced: bool
) -> None:
    check_decode(LENGTHS, shape, dtype, is_balanced)


@pytest.mark.parametrize("is_balanced", [True, False], ids=["balanced", "even"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 4, 80), (2, 4, 16)])
@pytest.mark.parametrize("window", [None, 100])
def test_decode_attention_over_a_cache_in_fp8(
    window: int | None, shape: tuple[int, int, int], dtype: torch.dtype, is_balanced: bool
) -> None:
    check_decode(LENGTHS, shape, dtype, is_balanced, FP8, window=window)


def biases(heads: int, kind: str) -> dict[str, Tensor]:
    """Sinks, slopes or both; the sinks outweigh all keys in some heads, and are nothing beside them in others."""
    sinks, slopes = torch.linspace(-20, 20, heads, device="cuda"), torch.rand(heads, device="cuda") / 2
    return {name: each for name, each in (("sinks", sinks), ("slopes", slopes)) if name in kind}


@pytest.mark.parametrize("is_balanced", [True, False], ids=["balanced", "even"])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(8, 4, 128), (2, 3, 64), (2, 4, 80)])
@pytest.mark.parametrize("window, softcap", [(None, None), (100, 30.0)])
@pytest.mark.parametrize("kind", ["sinks", "slopes", "sinks and slopes"])
def test_decode_attention_with_sinks_and_slopes(
    kind: str,
    window: int | None,
    softcap: float | None,
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    is_balanced: bool,
) -> None:
    how = biases(shape[0] * shape[1], kind)
    check_decode(LENGTHS, shape, dtype, is_balanced, window=window, softcap=softcap, **how)


def test_what_ends_last_joins_the_parts_every_time() -> None:
    lengths = [20_000, 3, 900, 7000]
    paged = Paged(lengths, 2, 64, torch.bfloat16)
    q = torch.randn(len(lengths), 8, 64, device="cuda").bfloat16()
    first = decode(paged, q, lengths, True, 0.1)
    for _ in range(300):
        assert torch.equal(decode(paged, q, lengths, True, 0.1), first)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize("lengths", [[1], [2], [64], [65], [66], [5000], [1, 64, 65, 700, 129, 2, 90, 3000]], ids=str)
@pytest.mark.parametrize(
    "shape, how",
    [
        ((8, 4, 128), {}),
        ((8, 2, 128), {"window": 100}),
        ((2, 3, 64), {"window": 64, "softcap": 30.0}),
        ((1, 8, 80), {"softcap": 20.0}),
        ((4, 2, 128), {"has_sinks": True, "has_slopes": True}),
        ((3, 4, 128), {}),
        ((2, 16, 64), {"has_norm": False, "window": 70}),
    ],
    ids=str,
)
def test_few_requests_from_the_product(
    shape: tuple[int, int, int], how: dict[str, Any], lengths: list[int], dtype: torch.dtype
) -> None:
    check_few(lengths, shape, dtype, **how)


def check_few(
    lengths: list[int],
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    has_norm: bool = True,
    has_sinks: bool = False,
    has_slopes: bool = False,
    device: str = "cuda",
    page: int = PAGE,
    **how: Any,
) -> None:
    """Against norm and RoPE in float64, and attention over what lies in the cache and the new token."""
    from octavo.kernels import rms_norm, rope
    from octavo.kernels.gpu.decode_attention import scratch_size
    from octavo.kernels.gpu.decode_few import decode_few
    from octavo.kernels.gpu.qkv import Projection

    kv_heads, group, dim = shape
    heads = kv_heads * group
    paged = Paged(lengths, kv_heads, dim, dtype, page, device=device)
    qkv = torch.randn(len(lengths), (heads + 2 * kv_heads) * dim, device=device).to(dtype)
    angles = torch.rand(max(lengths), dim // 2, device=device) * 6
    cos, sin = (each[:, None].to(dtype) for each in rope.tables(angles, 1.0, False))
    weights = [torch.rand(dim, device=device).to(dtype) + 0.5 for _ in range(2)] if has_norm else [None, None]
    sinks = torch.randn(heads, device=device) if has_sinks else None
    slopes = torch.rand(heads, device=device) if has_slopes else None
    positions = torch.tensor(lengths, device=device).int() - 1
    blocks = paged.tables[paged.slots.long(), positions.long() // page].long()
    for cache in (paged.keys, paged.values):  # the new token's place holds something else so far
        cache[blocks, :, positions.long() % page] = 60
    out = torch.full((len(lengths), heads, dim), math.nan, dtype=dtype, device=device)
    scratch = torch.full((scratch_size(len(lengths), heads, kv_heads, dim),), math.nan, device=device)
    projection = Projection(qkv, heads, paged.keys, paged.values, cos, sin, False, *weights, 1e-5)
    decode_few(
        projection, paged.key_boxes, paged.value_boxes, paged.tables, paged.slots, positions, scratch, out, 0.1,
        how.get("window"), how.get("softcap"), sinks, slopes,
    )  # fmt: skip

    q, k, v = qkv.view(len(lengths), -1, dim).double().split([heads, kv_heads, kv_heads], 1)
    turned = []
    for part, weight in ((q, weights[0]), (k, weights[1])):
        normed = part if weight is None else rms_norm.reference(part, weight.double(), 1e-5)
        turned.append(rope.reference(normed.float(), angles[positions.long()], 1.0, False))
    for request, length in enumerate(lengths):
        one = slice(request, request + 1)
        kept = [paged.keys, paged.values]
        new = [each[blocks[request], :, int(positions[request]) % page].double()[None] for each in kept]
        for ours, theirs in zip(new, (turned[1][one], v[one]), strict=True):
            close(ours.to(dtype), theirs.double())
        dense = [torch.cat([each[request][: length - 1], ours]) for each, ours in zip(paged.dense, new, strict=True)]
        expected = attend(turned[0][one].double(), *dense, 0.1, sinks=sinks, slopes=slopes, **how)
        close(out[one], expected)


@pytest.mark.parametrize("is_sparse", [False, True])
@pytest.mark.parametrize("lengths", [[], [700], [1, 64, 65, 3000] * 20], ids=["nobody", "one", "many"])
def test_rows_that_do_not_decode_after_all_are_left_alone(lengths: list[int], is_sparse: bool) -> None:
    from octavo.kernels.gpu.decode_attention import decode_attention, scratch_size
    from octavo.kernels.gpu.work_list import plan_work

    paged = Paged(lengths or [1], 2, 64, torch.bfloat16)
    num_rows = len(lengths) + 30
    q = torch.randn(num_rows, 4, 64, device="cuda").bfloat16()
    slots = torch.full((num_rows,), 10**6, device="cuda").int()
    slots[: len(lengths)] = paged.slots[: len(lengths)]
    positions = torch.tensor([length - 1 for length in lengths] + [-1] * 30, device="cuda").int()
    out = torch.full_like(q, 7.0)
    scratch = torch.full((scratch_size(num_rows, 4, 2, 64),), math.nan, device="cuda")
    work = plan_work(slots, positions, paged.tables, 2, PAGE, 200, is_sparse=is_sparse)
    decode_attention(
        q, paged.key_boxes, paged.value_boxes, paged.tables, slots, positions, scratch, out, 2, 0.1, work=work
    )
    assert (out[len(lengths) :] == 7.0).all()
    for request in range(min(len(lengths), 4)):
        keys, values = paged.dense[0][request], paged.dense[1][request]
        one = slice(request, request + 1)
        close(out[one], attend(q[one].double(), keys, values, 0.1, None, None))


def check_prefill(
    shape: tuple[int, int, int], dtype: torch.dtype, kv_dtype: torch.dtype | None = None, **how: Any
) -> None:
    from octavo.kernels.gpu.chunks import TILE, Chunks
    from octavo.kernels.gpu.prefill_attention import prefill_attention

    kv_heads, group, dim = shape
    if dtype == torch.float32 and dim > 128:
        pytest.skip("two pages of float32 do not fit into shared memory")
    is_fp8 = kv_dtype == FP8
    lengths, totals = [1, 128, 129, 500, 64, 3, 900], [1, 128, 300, 563, 129, 800, 900]
    paged = Paged(totals, kv_heads, dim, kv_dtype or dtype, scales=(0.5, 3.0) if is_fp8 else (1.0, 1.0))
    first = 5  # rows of decoding requests, which must stay as they are
    q = torch.randn(first + sum(lengths), kv_heads * group, dim, device="cuda").to(dtype)
    out = torch.full_like(q, math.nan)
    rows = [first + sum(lengths[:index]) for index in range(len(lengths))]
    tiles = [(index, start) for index, length in enumerate(lengths) for start in range(0, length, TILE)]
    behind = [(1000, 7)] * 3  # there are no such tiles
    columns = [rows, lengths, totals, *map(list, zip(*tiles, *behind, strict=True)), [len(tiles)]]
    on_device = [torch.tensor(each, dtype=torch.int32, device="cuda") for each in columns]
    chunks = Chunks(*on_device[:3], paged.slots, *on_device[3:])
    prefill_attention(
        q, paged.key_boxes, paged.value_boxes, paged.tables, chunks, out, kv_heads, 0.1,
        k_scale=paged.scales[0], v_scale=paged.scales[1], **how,
    )  # fmt: skip
    assert out[:first].isnan().all()
    for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        some = slice(row, row + length)
        expected = attend(q[some].double(), paged.dense[0][index], paged.dense[1][index], 0.1, **how)
        close(out[some], expected, FP8_TOLERANCE if is_fp8 else 0.0)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, *ODD_SHAPES])
@pytest.mark.parametrize("window, softcap", [(None, None), (100, None), (64, 30.0)])
def test_prefill_attention(
    window: int | None, softcap: float | None, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    check_prefill(shape, dtype, window=window, softcap=softcap)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [*SHAPES, (2, 4, 80), (2, 4, 16)])
@pytest.mark.parametrize("window", [None, 100])
def test_prefill_attention_over_a_cache_in_fp8(
    window: int | None, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    check_prefill(shape, dtype, FP8, window=window)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(8, 4, 128), (2, 3, 64), (2, 4, 80)])
@pytest.mark.parametrize("window, softcap", [(None, None), (100, 30.0)])
@pytest.mark.parametrize("kind", ["sinks", "slopes", "sinks and slopes"])
def test_prefill_attention_with_sinks_and_slopes(
    kind: str, window: int | None, softcap: float | None, shape: tuple[int, int, int], dtype: torch.dtype
) -> None:
    check_prefill(shape, dtype, window=window, softcap=softcap, **biases(shape[0] * shape[1], kind))


def test_pages_beyond_two_to_the_31_elements() -> None:
    """What split_qkv writes and attention reads where no int32 counts the elements, and page clearing there."""
    from octavo.kernels.gpu.decode_attention import page_boxes
    from octavo.kernels.gpu.pages import begin_pages
    from octavo.kernels.gpu.qkv import Projection, split_qkv
    from octavo.services.executor.cache import KvCache
    from octavo.services.executor.models.spec import Attention, Decoder, Layer, Mlp, Norm

    kv_heads, dim, length, tokens = 8, 128, 150, 3
    num_blocks = 2**31 // (kv_heads * PAGE * dim) + 10
    attention = Attention(heads=kv_heads, kv_heads=kv_heads, head_dim=dim, rope=None, scale=1.0)
    spec = Decoder(8, 8, (Layer(attention, Mlp(8)),), Norm())
    cache = KvCache(spec, num_blocks, PAGE, torch.bfloat16, torch.device("cuda"))
    keys, values = cache.keys[0], cache.values[0]
    assert keys.numel() > 2**31
    for each in (keys, values):
        each.fill_(math.nan)
    blocks = torch.arange(num_blocks - 3, num_blocks, device="cuda")
    nothing = torch.zeros(0, dtype=torch.int32, device="cuda")
    begin_pages(nothing[:, None], nothing, nothing, nothing, cache.bits, blocks.int())
    assert not keys[-4:-1].any() and not values[-4:-1].any() and keys[:-4].isnan().all()

    tables, slots = blocks.int()[None], torch.zeros(length, device="cuda").int()
    positions = torch.arange(length, device="cuda").int()
    qkv = torch.randn(length, 3 * kv_heads * dim, device="cuda").bfloat16()
    ones = torch.ones(length, 1, dim, dtype=torch.bfloat16, device="cuda")
    q = split_qkv(Projection(qkv, kv_heads, keys, values, ones, 0 * ones, False), tables, slots, positions)
    paged = Paged([1], kv_heads, dim, torch.bfloat16)
    paged.keys, paged.values, paged.tables, paged.slots = keys, values, tables, slots[:tokens]
    paged.key_boxes, paged.value_boxes = page_boxes(keys), page_boxes(values)
    heads = qkv.view(length, 3, kv_heads, dim).double()
    lengths = [length, length - 1, length - 70]
    for is_balanced in (True, False):
        out = decode(paged, q[[each - 1 for each in lengths]], lengths, is_balanced, 0.1)
        for row, each in enumerate(lengths):
            close(out[row : row + 1], attend(heads[each - 1 : each, 0], heads[:each, 1], heads[:each, 2], 0.1))
    out = prefill_one(paged, q)
    close(out, attend(heads[:, 0], heads[:, 1], heads[:, 2], 0.1))


def prefill_one(paged: Paged, q: Tensor) -> Tensor:
    """One whole prompt, of slot 0."""
    from octavo.kernels.gpu.chunks import TILE, Chunks
    from octavo.kernels.gpu.prefill_attention import prefill_attention

    starts = list(range(0, len(q), TILE))
    columns = [[0], [len(q)], [len(q)], [0], [0] * len(starts), starts, [len(starts)]]
    chunks = Chunks(*(torch.tensor(each, dtype=torch.int32, device="cuda") for each in columns))
    out = torch.full_like(q, math.nan)
    prefill_attention(q, paged.key_boxes, paged.value_boxes, paged.tables, chunks, out, paged.keys.shape[1], 0.1)
    return out


def test_a_cache_with_more_rows_than_can_be_named_is_refused() -> None:
    from octavo.kernels.gpu.decode_attention import page_boxes

    too_many = torch.empty(1, device="cuda").expand(2**31 // PAGE, 1, PAGE, 16)
    with pytest.raises(ValueError, match="2147483648 rows.*--num-kv-blocks"):
        page_boxes(too_many)
