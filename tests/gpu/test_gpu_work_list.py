"""Work lists, and decode attention to what requests share; see tests/tools/paged.py."""

import math
from typing import Any

import pytest
import torch
from tests.tools.paged import FP8, FP8_TOLERANCE, Paged, attend, close

pytestmark = pytest.mark.gpu
PAGE = 64


@pytest.fixture(autouse=True)
def seed() -> None:
    torch.manual_seed(0)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "shape, how",
    [
        ((8, 4, 128), {}),
        ((2, 2, 64), {"has_sinks": True, "softcap": 20.0}),
        ((3, 3, 80), {}),  # five requests of an item
        ((4, 1, 64), {"kv_dtype": FP8}),
        ((1, 16, 64), {}),  # the queries of one fill a tile
    ],
    ids=str,
)
def test_what_requests_share_is_read_for_all_of_them(
    shape: tuple[int, int, int], how: dict[str, Any], dtype: torch.dtype
) -> None:
    lengths = [700, 641, 1500, 642, 2000, 641, 2, 64, 300, 257, 320] + [900] * 9
    shared = [(6, 10), (8, 0), (11, 4), (20, 14)]
    check_shared(lengths, shared, shape, dtype, **how)


def check_shared(
    lengths: list[int],
    shared: list[tuple[int, int]],
    shape: tuple[int, int, int],
    dtype: torch.dtype,
    kv_dtype: torch.dtype | None = None,
    has_sinks: bool = False,
    device: str = "cuda",
    page: int = PAGE,
    **how: Any,
) -> None:
    """shared: up to which request, and how many pages, those from the one before on have in common."""
    from octavo.kernels.gpu.decode_attention import decode_attention, scratch_size
    from octavo.kernels.gpu.work_list import most_together, plan_work

    (kv_heads, group, dim), is_fp8 = shape, kv_dtype == FP8
    heads, rows = kv_heads * group, len(lengths)
    paged = Paged(lengths, kv_heads, dim, kv_dtype or dtype, page, (0.5, 3.0) if is_fp8 else (1.0, 1.0), device)
    first = 0
    for end, pages in shared:
        paged.share(range(first, end), pages)
        first = end
    q = torch.randn(rows, heads, dim, device=device).to(dtype)
    sinks = torch.randn(heads, device=device) if has_sinks else None
    scratch = torch.full((scratch_size(rows, heads, kv_heads, dim),), math.nan, device=device)
    positions = torch.tensor(lengths, device=device).int() - 1
    together = most_together(heads, kv_heads)
    work = plan_work(paged.slots, positions, paged.tables, kv_heads, page, 100, together=together)
    assert (work.items[: int(work.num_items), 6].max() > 1) == (together > 1)
    for _ in range(2):  # the second time with counters as the first has left them
        out = torch.full_like(q, math.nan)
        decode_attention(
            q, paged.key_boxes, paged.value_boxes, paged.tables, paged.slots, positions, scratch, out, kv_heads, 0.1,
            sinks=sinks, k_scale=paged.scales[0], v_scale=paged.scales[1], work=work, **how,
        )  # fmt: skip
    for request in range(rows):
        one, dense = slice(request, request + 1), [each[request] for each in paged.dense]
        expected = attend(q[one].double(), *dense, 0.1, sinks=sinks, **how)
        close(out[one], expected, FP8_TOLERANCE if is_fp8 else 0.0)


@pytest.mark.parametrize("kv_heads", [1, 2, 8, 40])
@pytest.mark.parametrize("window", [None, 1000])
@pytest.mark.parametrize(
    "lengths",
    [[1], [32_768], [4096] * 32, [32_768] + [512] * 63, [500 + 7 * i for i in range(100)], [1] * 99 + [9000]],
    ids=["token", "long", "even", "one among many", "growing", "one among none"],
)
def test_a_work_list_names_every_page_once(lengths: list[int], window: int | None, kv_heads: int) -> None:
    check_work(lengths, window, kv_heads)


def check_work(
    lengths: list[int],
    window: int | None,
    kv_heads: int,
    together: int = 1,
    shared: list[tuple[int, int]] | None = None,
    device: str = "cuda",
) -> list[list[int]]:
    """Returns the items, after a look at what holds for every work list. shared: as for `check_shared`."""
    from octavo.kernels.gpu.work_list import MOST_PARTS, most_items, most_partials, most_parts, plan_work

    requests = len(lengths)
    positions = torch.tensor(lengths, device=device).int() - 1
    slots = torch.randperm(requests, device=device).int()
    tables = torch.arange(requests * -(-max(lengths) // PAGE), device=device).int().view(requests, -1)
    first = 0
    for end, pages in shared or []:
        tables[slots[first:end].long(), :pages] = tables[int(slots[first]), :pages].clone()
        first = end
    work = plan_work(slots, positions, tables, kv_heads, PAGE, 100, window, together=together)
    assert len(work.items) == most_items(requests, kv_heads, together) and not work.counters.any()
    items = work.items[: int(work.num_items)].tolist()
    pages: dict[int, list[int]] = {request: [] for request in range(requests)}
    parts: dict[int, list[int]] = {request: [] for request in range(requests)}
    for request, slot, length, low, high, part, members, _ in items:
        assert (slot, length) == (int(slots[request]), lengths[request]) and low < high and 1 <= members <= together
        for member in range(request, request + members):
            pages[member] += range(low, high)
            parts[member].append(part)
            others = tables[int(slots[member]), low:high]
            assert members == 1 or torch.equal(others, tables[int(slots[request]), low:high])
    place = 0
    for request, length in enumerate(lengths):
        first_page = max(0, length - window) // PAGE if window else 0
        if together > 1:  # what is shared may be smaller than what is not, and come behind it
            pages[request].sort()
            parts[request].sort()
        assert pages[request] == list(range(first_page, -(-length // PAGE)))
        assert parts[request] == list(range(len(parts[request])))
        assert work.parts[request].tolist() == [place, len(parts[request])]
        place += len(parts[request])
    assert place <= most_partials(requests, kv_heads, together)
    sizes = [high - low for _, _, _, low, high, *_ in items]
    # A unit is what a request has for itself, or what several share; of each the last item may be smaller.
    units = [(request, members > 1) for request, *_, members, _ in items]
    firsts = [sizes[units.index(unit)] for unit in dict.fromkeys(units)]
    assert firsts == sorted(firsts, reverse=True)
    assert max(map(units.count, units)) <= most_parts(kv_heads) <= MOST_PARTS
    # No program has much more to do than an equal share of the whole, but where a request would be cut too often.
    share = sum(sizes) * kv_heads / 264 if together == 1 else sum(sizes) / max(1, 264 // kv_heads)
    assert max(sizes) <= max(1.5 * share, max(map(len, pages.values())) / most_parts(kv_heads)) + 1
    return items


@pytest.mark.parametrize("kv_heads, together", [(1, 2), (8, 4), (8, 5), (40, 8)])
def test_a_work_list_names_what_requests_share_once_for_many(kv_heads: int, together: int) -> None:
    check_sharing(kv_heads, together)


def check_sharing(kv_heads: int, together: int, device: str = "cuda") -> None:
    def num_read(lengths: list[int], shared: list[tuple[int, int]] | None = None) -> int:
        items = check_work(lengths, None, kv_heads, together, shared, device)
        return sum(high - low for _, _, _, low, high, *_ in items)

    whole = 2 * together
    assert num_read([2200] * whole) == 35 * whole  # nothing in common
    assert num_read([2200] * whole, [(whole, 32)]) == 2 * 32 + 3 * whole
    assert num_read([2200] * whole, [(whole, 3)]) == 35 * whole  # too little
    # A page that is still being filled is nobody else's.
    assert num_read([2048] * whole, [(whole, 32)]) == 2 * 31 + whole
    assert num_read([2049] * whole, [(whole, 32)]) == 2 * 32 + whole
    # One that shares less than the others goes alone if that saves more; so do those of the next ones' bunch.
    some = [(together - 1, 30), (together, 5), (whole, 20)]
    if together > 2:
        assert num_read([2200] * whole, some) == 30 + 5 * (together - 1) + 35 + 20 + 15 * together
    assert num_read([2200] * (whole + 1), [(whole + 1, 32)]) == 2 * 32 + 3 * whole + 35
