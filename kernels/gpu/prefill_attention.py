"""Triton: causal attention of chunks of new tokens over pages; see `octavo.kernels.prefill_attention` for the maths.

One program computes 64 of a tile's tokens for one head. Keys and values come a page at a time by the tensor
memory accelerator. Pages that all of a tile's tokens see whole need no mask and are most of the work. What lies in a
page behind a request's end must be a number, as for `decode_attention`, which tells of FP8 and of boxes, too.

source: Dao 2023 (FlashAttention-2), arXiv 2307.08691
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from octavo.kernels.gpu import prefill_hopper
from octavo.kernels.gpu.chunks import TILE, Chunks
from octavo.kernels.gpu.decode_attention import LOG2_E, NEVER, PER_LOG2, load_page
from octavo.kernels.gpu.overlap import OVERLAP, begin

ROWS = 64  # tokens of a program
PER_TILE = TILE // ROWS


def prefill_attention(
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
    slopes: Tensor | None = None,
    k_scale: float = 1.0,
    v_scale: float = 1.0,
) -> None:
    """Fills the chunks' rows of `out`; q and out: [tokens, heads, head_dim], contiguous. See `decode_attention`."""
    if slopes is None and prefill_hopper.fits(q, keys):
        prefill_hopper.prefill_hopper(q, keys, values, tables, chunks, out, kv_heads, scale, window, softcap, sinks)
        return
    heads, head_dim = q.shape[1:]
    _, page, box = keys.block_shape
    _prefill[(len(chunks.tile_chunks) * PER_TILE, heads)](
        q, keys, values, tables, chunks.rows, chunks.lengths, chunks.totals, chunks.slots, chunks.tile_chunks,
        chunks.tile_starts, chunks.num_tiles, out, sinks, slopes, scale * k_scale * LOG2_E, v_scale,
        (softcap or 0.0) * LOG2_E, tables.stride(0), HEADS=heads, KV_HEADS=kv_heads, DIM=head_dim, BOX=box, PAGE=page,
        ROWS=ROWS, PER_TILE=PER_TILE, WINDOW=window or 0, SOFTCAP=softcap is not None, FP8=keys.base.itemsize == 1,
        STAGES=3 if box * q.itemsize <= 256 else 2, num_warps=4 if box <= 128 else 8, **OVERLAP,
    )  # fmt: skip


@triton.jit
def _prefill(
    q_ptr, keys, values, tables_ptr, rows_ptr, lengths_ptr, totals_ptr, slots_ptr, tile_chunks_ptr, tile_starts_ptr,
    num_tiles_ptr, out_ptr, sinks_ptr, slopes_ptr, scale, v_scale, softcap, table_stride,
    HEADS: tl.constexpr, KV_HEADS: tl.constexpr, DIM: tl.constexpr, BOX: tl.constexpr, PAGE: tl.constexpr,
    ROWS: tl.constexpr, PER_TILE: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, FP8: tl.constexpr,
    STAGES: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid: parts of tiles, heads. scale and softcap are in units of log2. A sink is a key without a value."""
    begin(OVERLAP)
    tile, head = tl.program_id(0) // PER_TILE, tl.program_id(1)
    kv_head = head // (HEADS // KV_HEADS)
    if tile >= tl.load(num_tiles_ptr):
        return
    chunk = tl.load(tile_chunks_ptr + tile)
    start = tl.load(tile_starts_ptr + tile) + tl.program_id(0) % PER_TILE * ROWS
    length, total = tl.load(lengths_ptr + chunk), tl.load(totals_ptr + chunk)
    if start >= length:
        return
    table = tables_ptr + tl.load(slots_ptr + chunk).to(tl.int64) * table_stride

    token, dim, offset = tl.arange(0, ROWS), tl.arange(0, BOX), tl.arange(0, PAGE)
    is_live = (start + token < length)[:, None] & (dim < DIM)[None, :]
    first = ((tl.load(rows_ptr + chunk) + start).to(tl.int64) * HEADS + head) * DIM
    place = token[:, None] * (HEADS * DIM) + dim[None, :]  # from the first
    q = tl.load(q_ptr + first + place, mask=is_live, other=0.0).to(tl.float16 if FP8 else q_ptr.dtype.element_ty)
    least = total - length + start
    position, end = least + token, tl.minimum(least + ROWS, total)

    peak, sums_of_weights = tl.full([ROWS], NEVER, tl.float32), tl.zeros([ROWS], tl.float32)
    if sinks_ptr is not None:
        peak = tl.zeros([ROWS], tl.float32) + tl.load(sinks_ptr + head) * PER_LOG2
        sums_of_weights += 1.0
    slope = tl.load(slopes_ptr + head) * PER_LOG2 if slopes_ptr is not None else None
    sums = tl.zeros([ROWS, BOX], tl.float32)
    low = tl.maximum(least - WINDOW + 1, 0) // PAGE if WINDOW else 0
    # Pages up to here are seen whole by all tokens, but for those that a window cuts.
    whole_low = tl.cdiv(tl.maximum(end - WINDOW, 0), PAGE) if WINDOW else 0
    whole_high = tl.maximum((least + 1) // PAGE, low)
    if WINDOW:
        for page in range(low, tl.minimum(whole_low, whole_high)):
            peak, sums_of_weights, sums = _attend_page(
                q, keys, values, tl.load(table + page), kv_head, position, page * PAGE + offset,
                peak, sums_of_weights, sums, slope, scale, softcap, KV_HEADS, PAGE, WINDOW, SOFTCAP, FP8, True,
            )  # fmt: skip
        low = tl.minimum(tl.maximum(low, whole_low), whole_high)
    block = tl.load(table + low, mask=low < whole_high, other=0)
    for page in tl.range(low, whole_high, num_stages=STAGES):
        next_block = tl.load(table + page + 1, mask=page + 1 < whole_high, other=0)
        peak, sums_of_weights, sums = _attend_page(
            q, keys, values, block, kv_head, position, page * PAGE + offset,
            peak, sums_of_weights, sums, slope, scale, softcap, KV_HEADS, PAGE, WINDOW, SOFTCAP, FP8, False,
        )  # fmt: skip
        block = next_block
    for page in range(whole_high, tl.cdiv(end, PAGE)):
        peak, sums_of_weights, sums = _attend_page(
            q, keys, values, tl.load(table + page), kv_head, position, page * PAGE + offset,
            peak, sums_of_weights, sums, slope, scale, softcap, KV_HEADS, PAGE, WINDOW, SOFTCAP, FP8, True,
        )  # fmt: skip
    sums = sums * (v_scale / tl.where(sums_of_weights > 0, sums_of_weights, 1.0))[:, None]
    tl.store(out_ptr + first + place, sums.to(out_ptr.dtype.element_ty), mask=is_live)


@triton.jit
def _attend_page(
    q, keys, values, block, kv_head, position, others, peak, sums_of_weights, sums, slope, scale, softcap,
    KV_HEADS: tl.constexpr, PAGE: tl.constexpr, WINDOW: tl.constexpr, SOFTCAP: tl.constexpr, FP8: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """The running softmax over one more page. position: of the tokens; others: of the page's."""
    k = load_page(keys, block * KV_HEADS + kv_head, 0)
    scores = tl.dot(q, (k.to(tl.float16) if FP8 else k).T, input_precision="ieee")
    v = load_page(values, block * KV_HEADS + kv_head, 0)
    if SOFTCAP:
        scores = softcap * (1.0 - 2.0 / (1.0 + tl.exp2(scores * (2.0 * PER_LOG2) * scale / softcap)))
    else:
        scores = scores * scale
    if slope is not None:
        scores += slope * (others[None, :] - position[:, None]).to(tl.float32)
    if MASKED:
        seen = others[None, :] <= position[:, None]
        if WINDOW:
            seen = seen & (others[None, :] > position[:, None] - WINDOW)
        scores = tl.where(seen, scores, NEVER)
    new_peak = tl.maximum(peak, tl.max(scores, 1))
    weights = tl.exp2(scores - new_peak[:, None])
    shrink = tl.exp2(peak - new_peak)
    sums_of_weights = sums_of_weights * shrink + tl.sum(weights, 1)
    v = v.to(tl.float16) if FP8 else v
    sums = tl.dot(weights.to(v.dtype), v, sums * shrink[:, None], input_precision="ieee")
    return new_peak, sums_of_weights, sums
