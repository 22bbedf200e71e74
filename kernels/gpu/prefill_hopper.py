"""Gluon, for Hopper alone: as `octavo.kernels.gpu.prefill_attention`, with the softmax beside the products.

As many programs as multiprocessors go from item to item; an item is one head of a tile of 128 tokens. One warp
fetches, and two groups of four warps attend, each for 64 of the tokens. They go through the keys in blocks of two
pages, from the last to the first: the tensor cores get the scores of the next block and the sums with the weights of
this one; as soon as the scores are there, their softmax is computed, while the tensor cores are at the sums. Items are
in order of work, and dealt forth and back, so that all programs get about as much.

Keys and values lie in rings of STAGES stages of [KEYS, DIM], under a swizzle of 128 bytes: DIM / 64 columns of
[KEYS, 64], each filled in boxes of a page. Why there is no race:

1. A stage is read only between a wait for its `full` barrier and an arrival at its `empty` one, which is waited for
   before the stage is filled again, and needs arrivals of both groups.
2. A group arrives behind its wait for all products that read the stage (for keys all but the youngest, for values all),
   and behind a barrier of its four warps, since one thread arrives for all. So it is with the queries of an item.
3. Both sides count stages and phases alike, on from one item to the next: the k-th use of a stage waits for `full` with
   k & 1, and for `empty` with that turned round, which passes at once at first. No side can be two phases ahead.
4. What products that are under way hold in registers goes through the waits, so that nothing overwrites it before.

source: Shah et al. 2024 (FlashAttention-3), arXiv 2407.08608
"""

from torch import Tensor
from triton import constexpr_function
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia import hopper
from triton.experimental.gluon.language.nvidia.hopper import mbarrier, tma
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor as GluonDescriptor
from triton.language.core import _aggregate as aggregate
from triton.tools.tensor_descriptor import TensorDescriptor

from octavo.kernels.gpu.chunks import TILE, Chunks
from octavo.kernels.gpu.decode_attention import LOG2_E, NEVER, PER_LOG2
from octavo.kernels.gpu.hardware import NUM_SMS, capability
from octavo.kernels.gpu.overlap import OVERLAP, begin

thread_barrier = getattr(gl, "barrier", None) or gl.thread_barrier  # its name from Triton 3.7 on, and before
ROWS = gl.constexpr(TILE // 2)  # tokens of a group of warps
BOX = gl.constexpr(64)  # columns of 16 bits that a swizzle of 128 bytes spans
PAGE = gl.constexpr(64)
KEYS = gl.constexpr(128)  # of a block: two pages
LAYOUT = gl.NVMMASharedLayout(swizzle_byte_width=128, element_bitwidth=16, rank=2)
SHARED = gl.constexpr(LAYOUT)
BARRIER = gl.constexpr(mbarrier.MBarrierLayout())
FIRST, SECOND = gl.constexpr(0), gl.constexpr(1)  # half of a tile
IS_HOPPER = capability()[0] == 9


def fits(q: Tensor, keys: TensorDescriptor) -> bool:
    """Whether `prefill_hopper` is for these: 16 bits, whole boxes, and a GPU that has this generation's products."""
    _, page, box = keys.block_shape
    is_size = page == PAGE.value and box == q.shape[2] and box in (64, 128)
    return IS_HOPPER and is_size and q.itemsize == 2 and keys.base.dtype == q.dtype


def prefill_hopper(
    q: Tensor,
    keys: TensorDescriptor,
    values: TensorDescriptor,
    tables: Tensor,
    chunks: Chunks,
    out: Tensor,
    kv_heads: int,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> None:
    """See `prefill_attention`."""
    heads, head_dim = q.shape[1:]
    boxes = _boxes(q, heads * head_dim), _boxes(keys.base, head_dim), _boxes(values.base, head_dim)
    _prefill_items[(min(NUM_SMS, len(chunks.tile_chunks) * heads),)](
        *boxes, tables, chunks.rows, chunks.lengths, chunks.totals, chunks.slots, chunks.tile_chunks,
        chunks.tile_starts, chunks.num_tiles, out, sinks, scale * LOG2_E, (softcap or 0.0) * LOG2_E, tables.stride(0),
        HEADS=heads, KV_HEADS=kv_heads,
        DIM=head_dim, WINDOW=window or 0, SOFTCAP=softcap is not None, STAGES=3 if head_dim == 128 else 4, num_warps=4,
        **OVERLAP,
    )  # fmt: skip


def _boxes(x: Tensor, columns: int) -> GluonDescriptor:
    """x: contiguous, of 16 bits; read as rows of so many columns."""
    rows = x.view(-1, columns)
    return GluonDescriptor(rows, list(rows.shape), list(rows.stride()), [PAGE.value, BOX.value], LAYOUT)


@aggregate
class _Rings:
    """What the warps of a program hand to each other. q: [2, ROWS, DIM]; k and v: [STAGES, KEYS, DIM]; barriers."""

    q: gl.shared_memory_descriptor
    k: gl.shared_memory_descriptor
    v: gl.shared_memory_descriptor
    q_full: gl.shared_memory_descriptor
    k_full: gl.shared_memory_descriptor
    v_full: gl.shared_memory_descriptor
    q_empty: gl.shared_memory_descriptor
    k_empty: gl.shared_memory_descriptor
    v_empty: gl.shared_memory_descriptor

    @constexpr_function
    def __init__(self, q, k, v, q_full, k_full, v_full, q_empty, k_empty, v_empty):
        self.q, self.k, self.v = q, k, v
        self.q_full, self.k_full, self.v_full = q_full, k_full, v_full
        self.q_empty, self.k_empty, self.v_empty = q_empty, k_empty, v_empty


@aggregate
class _Tiles:
    """As in `Chunks`; num: how many tiles there are."""

    rows: gl.tensor
    lengths: gl.tensor
    totals: gl.tensor
    chunks: gl.tensor
    starts: gl.tensor
    num: gl.tensor

    @constexpr_function
    def __init__(self, rows, lengths, totals, chunks, starts, num):
        self.rows, self.lengths, self.totals, self.chunks, self.starts = rows, lengths, totals, chunks, starts
        self.num = num


@gluon.jit(do_not_specialize=["table_stride"])
def _prefill_items(
    q_boxes, k_boxes, v_boxes, tables_ptr, rows_ptr, lengths_ptr, totals_ptr, slots_ptr, tile_chunks_ptr,
    tile_starts_ptr, num_tiles_ptr, out_ptr, sinks_ptr, scale, softcap, table_stride,
    HEADS: gl.constexpr, KV_HEADS: gl.constexpr, DIM: gl.constexpr, WINDOW: gl.constexpr, SOFTCAP: gl.constexpr,
    STAGES: gl.constexpr, OVERLAP: gl.constexpr,
):  # fmt: skip
    """Grid: as many programs as multiprocessors. scale and softcap are in units of log2."""
    begin(OVERLAP)
    rings = _Rings(
        gl.allocate_shared_memory(q_boxes.dtype, [2, ROWS, DIM], SHARED),
        gl.allocate_shared_memory(k_boxes.dtype, [STAGES, KEYS, DIM], SHARED),
        gl.allocate_shared_memory(v_boxes.dtype, [STAGES, KEYS, DIM], SHARED),
        _barriers(2, 1), _barriers(STAGES, 1), _barriers(STAGES, 1),
        _barriers(2, 1), _barriers(STAGES, 2), _barriers(STAGES, 2),
    )  # fmt: skip
    hopper.fence_async_shared()
    thread_barrier()
    tiles = _Tiles(rows_ptr, lengths_ptr, totals_ptr, tile_chunks_ptr, tile_starts_ptr, gl.load(num_tiles_ptr))
    gl.warp_specialize(
        [
            (_attend, (rings, tiles, out_ptr, sinks_ptr, scale, softcap, HEADS, WINDOW, SOFTCAP, STAGES, FIRST)),
            (_attend, (rings, tiles, out_ptr, sinks_ptr, scale, softcap, HEADS, WINDOW, SOFTCAP, STAGES, SECOND)),
            (
                _fetch,
                (rings, tiles, q_boxes, k_boxes, v_boxes, tables_ptr, slots_ptr, table_stride, HEADS, KV_HEADS, WINDOW,
                 STAGES),
            ),
        ],
        worker_num_warps=[4, 1],
        worker_num_regs=[240, 24],  # of a thread of the second group, and of the warp that fetches
    )  # fmt: skip


@gluon.jit
def _barriers(NUM: gl.constexpr, ARRIVALS: gl.constexpr):
    barriers = gl.allocate_shared_memory(gl.int64, [NUM, 1], BARRIER)
    for i in gl.static_range(NUM):
        mbarrier.init(barriers.index(i), count=ARRIVALS)
    return barriers


@gluon.jit
def _item(tiles, turn, HEADS: gl.constexpr):
    """A program's item of a turn: chunk, head, first row, rows from it on (0: no item), its position, the request's."""
    programs, own = gl.num_programs(0), gl.program_id(0)
    item = turn * programs + gl.where((turn & 1) == 0, own, programs - 1 - own)
    is_item = item < tiles.num * HEADS
    tile = gl.where(is_item, item // HEADS, 0)
    chunk, start = gl.load(tiles.chunks + tile), gl.load(tiles.starts + tile)
    length, total = gl.load(tiles.lengths + chunk), gl.load(tiles.totals + chunk)
    rows_left = gl.where(is_item, length - start, 0)
    return chunk, item % HEADS, gl.load(tiles.rows + chunk) + start, rows_left, total - length + start, total


@gluon.jit
def _blocks(least, total, WINDOW: gl.constexpr):
    """Of a tile, low <= whole_low <= whole_high <= last: those in [whole_low, whole_high) are seen whole by all."""
    end = gl.minimum(least + 2 * ROWS, total)
    last = (end - 1) // KEYS
    low = gl.maximum(least - WINDOW + 1, 0) // KEYS if WINDOW else 0 * last
    whole_high = gl.minimum(gl.maximum((least + 1) // KEYS, low), last)
    cut = (gl.maximum(end - WINDOW, 0) + KEYS - 1) // KEYS if WINDOW else 0 * last
    return low, gl.minimum(gl.maximum(cut, low), whole_high), whole_high, last


@gluon.jit
def _next(stage, phase, STAGES: gl.constexpr):
    """The stage after this one, and its phase."""
    stage += 1
    if stage == STAGES:
        stage = 0
        phase ^= 1
    return stage, phase


@gluon.jit
def _fetch(
    rings, tiles, q_boxes, k_boxes, v_boxes, tables_ptr, slots_ptr, table_stride,
    HEADS: gl.constexpr, KV_HEADS: gl.constexpr, WINDOW: gl.constexpr, STAGES: gl.constexpr,
):  # fmt: skip
    """In the order of use: of an item the last keys, the queries, then keys and the values of the block behind them."""
    DIM: gl.constexpr = rings.q.shape[2]
    programs = gl.num_programs(0)
    stage = 0 * programs  # of the next keys
    phase = stage + 1  # for which an empty one is waited
    q_phase = stage + 1
    for turn in range((tiles.num * HEADS + programs - 1) // programs):
        chunk, head, first_row, rows_left, least, total = _item(tiles, turn, HEADS)
        if rows_left > 0:
            kv_head = head // (HEADS // KV_HEADS)
            table = tables_ptr + gl.load(slots_ptr + chunk).to(gl.int64) * table_stride
            low, _, _, last = _blocks(least, total, WINDOW)
            low_page = gl.maximum(least - WINDOW + 1, 0) // PAGE if WINDOW else 0 * last
            last_page = (gl.minimum(least + 2 * ROWS, total) - 1) // PAGE
            first, second = _page_rows(table, last, low_page, last_page, kv_head, KV_HEADS)
            mbarrier.wait(rings.k_empty.index(stage), phase)
            _fill(k_boxes, rings.k, rings.k_full, stage, first, second)
            for half in gl.static_range(2):
                columns = rings.q.index(half)._reinterpret(rings.q.dtype, [DIM // BOX, ROWS, BOX], SHARED)
                mbarrier.wait(rings.q_empty.index(half), q_phase)
                mbarrier.expect(rings.q_full.index(half), ROWS * DIM * 2)
                for column in gl.static_range(DIM // BOX):
                    tma.async_copy_global_to_shared(
                        q_boxes, [first_row + half * ROWS, head * DIM + column * BOX], rings.q_full.index(half),
                        columns.index(column),
                    )  # fmt: skip
            q_phase ^= 1
            next_first, next_second = _page_rows(table, last - 1, low_page, last_page, kv_head, KV_HEADS)
            for step in range(last - low):
                # The pages' numbers are read one block ahead of their use.
                after_first, after_second = _page_rows(table, last - step - 2, low_page, last_page, kv_head, KV_HEADS)
                k_stage, k_phase = _next(stage, phase, STAGES)
                mbarrier.wait(rings.k_empty.index(k_stage), k_phase)
                _fill(k_boxes, rings.k, rings.k_full, k_stage, next_first, next_second)
                mbarrier.wait(rings.v_empty.index(stage), phase)
                _fill(v_boxes, rings.v, rings.v_full, stage, first, second)
                first, second, next_first, next_second = next_first, next_second, after_first, after_second
                stage, phase = k_stage, k_phase
            mbarrier.wait(rings.v_empty.index(stage), phase)
            _fill(v_boxes, rings.v, rings.v_full, stage, first, second)
            stage, phase = _next(stage, phase, STAGES)


@gluon.jit
def _page_rows(table, block, low_page, last_page, kv_head, KV_HEADS: gl.constexpr):
    """First rows of a block's two pages; of a page that no token sees, those of the nearest one that is seen."""
    first = gl.load(table + gl.minimum(gl.maximum(2 * block, low_page), last_page))
    second = gl.load(table + gl.minimum(gl.maximum(2 * block + 1, low_page), last_page))
    return (first * KV_HEADS + kv_head) * PAGE, (second * KV_HEADS + kv_head) * PAGE


@gluon.jit
def _fill(boxes, ring, full, stage, first, second):
    """A stage with two pages, whose rows begin at first and second."""
    DIM: gl.constexpr = ring.shape[2]
    pages = ring.index(stage)._reinterpret(ring.dtype, [DIM // BOX * KEYS // PAGE, PAGE, BOX], SHARED)
    barrier = full.index(stage)
    mbarrier.expect(barrier, KEYS * DIM * 2)
    for column in gl.static_range(DIM // BOX):
        tma.async_copy_global_to_shared(boxes, [first, column * BOX], barrier, pages.index(2 * column))
        tma.async_copy_global_to_shared(boxes, [second, column * BOX], barrier, pages.index(2 * column + 1))


@gluon.jit
def _attend(
    rings, tiles, out_ptr, sinks_ptr, scale, softcap,
    HEADS: gl.constexpr, WINDOW: gl.constexpr, SOFTCAP: gl.constexpr, STAGES: gl.constexpr, HALF: gl.constexpr,
):  # fmt: skip
    """A half of each item's tokens."""
    DIM: gl.constexpr = rings.q.shape[2]
    scores_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    sums_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, DIM, 16])
    row_layout: gl.constexpr = gl.SliceLayout(1, scores_layout)
    PARTS: gl.constexpr = 3 if WINDOW else 2  # of the blocks: seen in part, whole, and in part because of the window
    programs = gl.num_programs(0)
    stage = 0 * programs + STAGES - 1  # of the keys last used
    phase = 0 * programs + 1
    q_phase = 0 * programs
    q = rings.q.index(HALF)
    nothing = gl.zeros([ROWS, KEYS], gl.float32, scores_layout)
    for turn in range((tiles.num * HEADS + programs - 1) // programs):
        chunk, head, first_row, rows_left, least, total = _item(tiles, turn, HEADS)
        if rows_left > 0:
            low, whole_low, whole_high, last = _blocks(least, total, WINDOW)
            position = least + HALF * ROWS + gl.arange(0, ROWS, row_layout)
            peak = gl.full([ROWS], NEVER, gl.float32, row_layout)
            total_weight = gl.zeros([ROWS], gl.float32, row_layout)
            if sinks_ptr is not None:  # a key without a value
                peak = gl.full([ROWS], gl.load(sinks_ptr + head).to(gl.float32) * PER_LOG2, gl.float32, row_layout)
                total_weight += 1.0
            sums = gl.zeros([ROWS, DIM], gl.float32, sums_layout)
            stage, phase = _next(stage, phase, STAGES)
            mbarrier.wait(rings.q_full.index(HALF), q_phase)
            mbarrier.wait(rings.k_full.index(stage), phase)
            k = rings.k.index(stage).permute((1, 0))
            scores = hopper.warpgroup_mma(q, k, nothing, use_acc=False, is_async=True)
            scores = hopper.warpgroup_mma_wait(0, deps=[scores])
            thread_barrier()
            mbarrier.arrive(rings.k_empty.index(stage), count=1)
            weights, shrink, peak, total_weight = _weigh(
                scores, peak, total_weight, position, last, scale, softcap, WINDOW, SOFTCAP, True
            )
            weights = gl.convert_layout(weights.to(rings.q.dtype), gl.DotOperandLayout(0, sums_layout, 2))
            for part in gl.static_range(PARTS):
                high = last if part == 0 else whole_high if part == 1 else whole_low
                end = whole_high if part == 0 else whole_low if part == 1 else low
                for block in range(high - 1, end - 1, -1):
                    sums, weights, peak, total_weight, stage, phase = _step(
                        rings, q, q_phase, block, sums, weights, peak, total_weight, stage, phase, position,
                        scale, softcap, WINDOW, SOFTCAP, part != 1, STAGES, HALF,
                    )  # fmt: skip
            thread_barrier()
            mbarrier.arrive(rings.q_empty.index(HALF), count=1)
            q_phase ^= 1
            mbarrier.wait(rings.v_full.index(stage), phase)
            sums = hopper.warpgroup_mma(weights, rings.v.index(stage), sums, is_async=True)
            sums = hopper.warpgroup_mma_wait(0, deps=[sums])
            thread_barrier()
            mbarrier.arrive(rings.v_empty.index(stage), count=1)
            _store(out_ptr, sums, total_weight, first_row + HALF * ROWS, rows_left - HALF * ROWS, head, HEADS)


@gluon.jit
def _step(
    rings, q, q_phase, block, sums, weights, peak, total_weight, stage, phase, position, scale, softcap,
    WINDOW: gl.constexpr, SOFTCAP: gl.constexpr, MASKED: gl.constexpr, STAGES: gl.constexpr, HALF: gl.constexpr,
):  # fmt: skip
    """The weights of `block`, and the sums with those of the block behind it, whose stage and phase are given."""
    scores_layout: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, KEYS, 16])
    k_stage, k_phase = _next(stage, phase, STAGES)
    nothing = gl.zeros([ROWS, KEYS], gl.float32, scores_layout)
    mbarrier.wait(rings.k_full.index(k_stage), k_phase)
    scores = hopper.warpgroup_mma(q, rings.k.index(k_stage).permute((1, 0)), nothing, use_acc=False, is_async=True)
    mbarrier.wait(rings.v_full.index(stage), phase)
    sums = hopper.warpgroup_mma(weights, rings.v.index(stage), sums, is_async=True)
    scores = hopper.warpgroup_mma_wait(1, deps=[scores])
    thread_barrier()
    mbarrier.arrive(rings.k_empty.index(k_stage), count=1)
    new, shrink, peak, total_weight = _weigh(
        scores, peak, total_weight, position, block, scale, softcap, WINDOW, SOFTCAP, MASKED
    )
    new = gl.convert_layout(new.to(weights.dtype), weights.type.layout)
    # Has long passed: the branch of this wait keeps the assembler from moving the softmax behind the next one.
    mbarrier.wait(rings.q_full.index(HALF), q_phase)
    sums, new, weights = hopper.warpgroup_mma_wait(0, deps=[sums, new, weights])
    thread_barrier()
    mbarrier.arrive(rings.v_empty.index(stage), count=1)
    sums = sums * gl.convert_layout(shrink, gl.SliceLayout(1, sums.type.layout))[:, None]
    return sums, new, peak, total_weight, k_stage, k_phase


@gluon.jit
def _weigh(
    scores, peak, total_weight, position, block, scale, softcap,
    WINDOW: gl.constexpr, SOFTCAP: gl.constexpr, MASKED: gl.constexpr,
):  # fmt: skip
    """Weights of one more block's keys, what earlier ones shrink by, and the running softmax with them."""
    others = block * KEYS + gl.arange(0, KEYS, gl.SliceLayout(0, scores.type.layout))
    if SOFTCAP:
        scores = softcap * (1.0 - 2.0 / (1.0 + gl.exp2(scores * (2.0 * PER_LOG2 * scale / softcap))))
    elif MASKED:
        scores = scores * scale
    if MASKED:
        seen = others[None, :] <= position[:, None]
        if WINDOW:
            seen = seen & (others[None, :] > position[:, None] - WINDOW)
        scores = gl.where(seen, scores, NEVER)
    if MASKED or SOFTCAP:
        new_peak = gl.maximum(peak, gl.max(scores, 1))
        weights = gl.exp2(scores - new_peak[:, None])
    else:
        # One instruction for scale and difference. Not for scores of NEVER, whose rounding would be beyond bounds.
        new_peak = gl.maximum(peak, gl.max(scores, 1) * scale)
        weights = gl.exp2(scores * scale - new_peak[:, None])
    shrink = gl.exp2(peak - new_peak)
    return weights, shrink, new_peak, total_weight * shrink + gl.sum(weights, 1)


@gluon.jit
def _store(out_ptr, sums, total_weight, first_row, rows_left, head, HEADS: gl.constexpr):
    """Writes the rows below rows_left."""
    DIM: gl.constexpr = sums.shape[1]
    token = gl.arange(0, ROWS, gl.SliceLayout(1, sums.type.layout))
    dim = gl.arange(0, DIM, gl.SliceLayout(0, sums.type.layout))
    divisor = gl.convert_layout(total_weight, gl.SliceLayout(1, sums.type.layout))
    sums = sums * (1.0 / gl.where(divisor > 0, divisor, 1.0))[:, None]
    row = out_ptr + (first_row.to(gl.int64) * HEADS + head) * DIM
    place = token[:, None] * (HEADS * DIM) + dim[None, :]
    gl.store(row + place, sums.to(out_ptr.dtype.element_ty), mask=(token < rows_left)[:, None] & (dim < DIM)[None, :])
