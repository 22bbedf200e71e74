"""One step as the GPU engine sees it: what is uploaded, and how its rows attend over the paged cache.

Everything small that a step needs travels in one int32 buffer: from pinned memory to one place on the device, so that
a CUDA graph finds it there again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from octavo.kernels.fp8 import FP8
from octavo.kernels.gpu.chunks import TILE, Chunks
from octavo.kernels.gpu.decode_attention import decode_attention, page_boxes, scratch_size
from octavo.kernels.gpu.decode_few import decode_few
from octavo.kernels.gpu.prefill_attention import prefill_attention
from octavo.kernels.gpu.qkv import Projection, split_qkv
from octavo.kernels.gpu.work_list import WorkList, most_together, plan_work
from octavo.services.executor.batch import PromptPart
from octavo.services.executor.cache import KvCache, to_fp8, uniform_attention
from octavo.services.executor.models.decoder import Angles, AttentionLayer
from octavo.services.executor.models.spec import Decoder
from octavo.services.executor.slots import Slots
from octavo.shared.messages import Step, unpack

BALANCED_FROM = 9
"""Requests that are cut into items of equal work; fewer are all cut into as many parts, which starts sooner."""


@dataclass
class Plan:
    """A step on the host, in lists that will be int32 on the device. Rows are tokens: decoding slots', then chunks'."""

    table_slots: list[int] = field(default_factory=list)  # changes of block tables: slot, place in its table, block
    table_places: list[int] = field(default_factory=list)
    table_blocks: list[int] = field(default_factory=list)
    fresh_blocks: list[int] = field(default_factory=list)
    """To be zeroed, as the step begins to fill them and does not fill them whole: nothing of a former owner is read."""
    new_slots: list[int] = field(default_factory=list)
    new_states: list[int] = field(default_factory=list)  # of each of them a row of the sampler's state
    slots: list[int] = field(default_factory=list)  # [rows]
    positions: list[int] = field(default_factory=list)  # [rows]
    token_ids: list[int] = field(default_factory=list)  # [rows of chunks]
    num_decoding: int = 0
    chunk_rows: list[int] = field(default_factory=list)  # [chunks], as in `Chunks`
    chunk_lengths: list[int] = field(default_factory=list)
    chunk_totals: list[int] = field(default_factory=list)
    chunk_slots: list[int] = field(default_factory=list)
    tiles: list[tuple[int, int]] = field(default_factory=list)  # chunk, start
    sampled_rows: list[int] = field(default_factory=list)
    sampled_slots: list[int] = field(default_factory=list)
    prompt_parts: list[PromptPart] = field(default_factory=list)


def plan_step(step: Step, slots: Slots) -> Plan:
    """Apply a step to `slots`, and move every slot on by what the step computes."""
    slots.apply(step)
    plan = Plan()
    for new in step.new:
        plan.new_slots.append(new.slot)
        blocks = unpack(new.blocks).tolist()
        _change_table(plan, [new.slot] * len(blocks), range(len(blocks)), blocks)
    grown, grown_blocks = unpack(step.grown_slots).tolist(), unpack(step.grown_blocks).tolist()
    _change_table(plan, grown, [slots.num_blocks[slot] - 1 for slot in grown], grown_blocks)
    plan.fresh_blocks += grown_blocks
    num_computed = slots.num_computed
    # Side by side those that share a prefix: attention reads it once for several of them, see work_list.py.
    plan.slots = sorted(slots.decoding, key=slots.first_blocks.__getitem__)
    plan.positions = [num_computed[slot] for slot in plan.slots]
    for slot in plan.slots:
        num_computed[slot] += 1
    plan.num_decoding = len(plan.slots)
    plan.sampled_rows, plan.sampled_slots = list(range(plan.num_decoding)), list(plan.slots)
    for slot, length in zip(unpack(step.chunk_slots), unpack(step.chunk_lengths), strict=True):
        _add_chunk(plan, slots, slot, length)
    # The tiles with the most positions to attend to go first, so that none is left over at the end.
    plan.tiles.sort(key=lambda tile: tile[1] - plan.chunk_lengths[tile[0]] + plan.chunk_totals[tile[0]], reverse=True)
    return plan


def _change_table(plan: Plan, slots: Sequence[int], places: Sequence[int], blocks: Sequence[int]) -> None:
    plan.table_slots += slots
    plan.table_places += places
    plan.table_blocks += blocks


def _add_chunk(plan: Plan, slots: Slots, slot: int, length: int) -> None:
    start = slots.num_computed[slot]
    token_ids, is_last = slots.take_chunk(slot, length)
    if (behind := slots.prompt_behind(slot, start, length)) is not None:
        plan.prompt_parts.append(PromptPart(slot, len(plan.slots), *behind))
    plan.tiles += [(len(plan.chunk_rows), first) for first in range(0, length, TILE)]
    plan.chunk_rows.append(len(plan.slots))
    plan.chunk_lengths.append(length)
    plan.chunk_totals.append(start + length)
    plan.chunk_slots.append(slot)
    plan.token_ids += token_ids.tolist()
    plan.slots += [slot] * length
    plan.positions += range(start, start + length)
    last = (start + length) // slots.block_size
    if start <= last * slots.block_size < start + length:
        plan.fresh_blocks.append(int(slots.block_tables[slot, last]))
    if is_last:
        plan.sampled_rows.append(len(plan.slots) - 1)
        plan.sampled_slots.append(slot)
        slots.decoding[slot] = None


class GpuCache:
    """The KV cache of all layers with what the kernels need to read it, and the block tables of all slots."""

    def __init__(self, spec: Decoder, cache: KvCache, num_slots: int, max_blocks: int) -> None:
        attention = uniform_attention(spec)
        self.keys, self.values = cache.keys, cache.values
        self.kv_heads = attention.kv_heads
        self.key_boxes = [page_boxes(layer) for layer in cache.keys]
        self.value_boxes = [page_boxes(layer) for layer in cache.values]
        device = cache.keys[0].device
        # The last row belongs to no slot: rows that only fill up a graph's batch write to the null block.
        self.tables = torch.full((num_slots + 1, max_blocks), cache.null_block, dtype=torch.int32, device=device)
        most_heads = max(layer.attention.heads for layer in spec.layers)
        floats = scratch_size(num_slots, most_heads, attention.kv_heads, attention.head_dim)
        self.scratch = torch.empty(floats, dtype=torch.float32, device=device)


class GpuAttention:
    """Attention of one batch's rows over the paged cache.

    slots, positions: [rows] int32 on the device; the first `num_decoding` rows are one token each of a request.
    decoding: [num_decoding] int32, their positions, -1 for a row that does not decode after all; None: all do.
    """

    def __init__(
        self,
        cache: GpuCache,
        slots: Tensor,
        positions: Tensor,
        num_decoding: int,
        chunks: Chunks | None,
        decoding: Tensor | None = None,
    ) -> None:
        self._cache, self._slots, self._positions = cache, slots, positions
        self._num_decoding, self._chunks = num_decoding, chunks
        self._is_balanced = num_decoding >= BALANCED_FROM or chunks is not None
        self._is_sparse = decoding is not None
        self._decoding = positions[:num_decoding] if decoding is None else decoding
        self._work: dict[tuple[int | None, int], WorkList] = {}  # by window, and how many requests share items

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, attention: AttentionLayer) -> Tensor:
        cache = self._cache
        page = cache.keys[layer].shape[2]
        blocks = cache.tables[self._slots.long(), self._positions.long() // page].long()
        offsets = self._positions.long() % page
        keys, values = cache.keys[layer], cache.values[layer]
        if keys.dtype == FP8:
            k, v = (to_fp8(x, scale).view(torch.uint8) for x, scale in ((k, attention.k_scale), (v, attention.v_scale)))
            keys, values = keys.view(torch.uint8), values.view(torch.uint8)
        keys[blocks, :, offsets] = k
        values[blocks, :, offsets] = v
        return self._attend(layer, q.contiguous(), attention)

    def of_qkv(self, layer: int, qkv: Tensor, attention: AttentionLayer, angles: Angles) -> Tensor | None:
        spec, cache = attention.spec, self._cache
        q_norm, k_norm = attention.q_norm, attention.k_norm
        is_plain = spec.qk_norm == "" or (spec.qk_norm == "head" and spec.qk_norm_like.kind.startswith("rms"))
        if not is_plain or spec.rope is None or spec.clip_qkv or not qkv.is_contiguous():
            return None
        cos, sin = angles.table(spec.rope)
        projection = Projection(
            qkv, spec.heads, cache.keys[layer], cache.values[layer], cos, sin, spec.rope.interleaved,
            None if q_norm is None else q_norm.weight, None if k_norm is None else k_norm.weight,
            spec.qk_norm_like.eps, attention.k_scale, attention.v_scale,
        )  # fmt: skip
        if self._chunks is None and not self._is_balanced and cache.keys[layer].dtype == qkv.dtype:
            out = torch.empty(len(qkv), spec.heads, spec.head_dim, dtype=qkv.dtype, device=qkv.device)
            decode_few(
                projection, cache.key_boxes[layer], cache.value_boxes[layer], cache.tables, self._slots,
                self._positions, cache.scratch, out, spec.scale, spec.window, spec.softcap, attention.sinks,
                attention.slopes,
            )  # fmt: skip
            return out
        return self._attend(layer, split_qkv(projection, cache.tables, self._slots, self._positions), attention)

    def _attend(self, layer: int, q: Tensor, attention: AttentionLayer) -> Tensor:
        cache, decoding, spec = self._cache, self._num_decoding, attention.spec
        is_fp8 = cache.keys[layer].dtype == FP8
        k_scale, v_scale = (attention.k_scale, attention.v_scale) if is_fp8 else (1.0, 1.0)
        sinks, slopes = attention.sinks, attention.slopes
        keys, values, out = cache.key_boxes[layer], cache.value_boxes[layer], torch.empty_like(q)
        if decoding:
            decode_attention(
                q[:decoding], keys, values, cache.tables, self._slots, self._positions, cache.scratch, out,
                cache.kv_heads, spec.scale, spec.window, spec.softcap, sinks, slopes, k_scale, v_scale,
                self._work_list(attention) if self._is_balanced else None,
            )  # fmt: skip
        if self._chunks is not None:
            prefill_attention(
                q, keys, values, cache.tables, self._chunks, out, cache.kv_heads, spec.scale, spec.window, spec.softcap,
                sinks, slopes, k_scale, v_scale,
            )  # fmt: skip
        return out

    def _work_list(self, attention: AttentionLayer) -> WorkList:
        """Of the decoding rows; made once for all layers that are alike in this."""
        spec, cache = attention.spec, self._cache
        # A window begins elsewhere for each request, and slopes weigh a page by its distance from each.
        together = 1 if spec.window or attention.slopes is not None else most_together(spec.heads, cache.kv_heads)
        key = spec.window, together
        if key not in self._work:
            page, most = cache.keys[0].shape[2], len(cache.tables) - 1
            self._work[key] = plan_work(
                self._slots[: self._num_decoding], self._decoding, cache.tables, cache.kv_heads, page, most,
                spec.window, self._is_sparse, together,
            )  # fmt: skip
        return self._work[key]
