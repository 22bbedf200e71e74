"""The tensors of one step: which tokens, at which positions, written where, attending to what."""

from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.kernels.cache_write import cache_write
from octavo.kernels.decode_attention import decode_attention, length_bias
from octavo.kernels.prefill_attention import prefill_attention
from octavo.services.executor.cache import KvCache
from octavo.services.executor.models.spec import Attention
from octavo.services.executor.slots import Slots
from octavo.shared.messages import Step, unpack

# Decoding rows whose lengths differ by more than this factor are attended to in groups: a group is padded to its
# longest row, and each group is one more call a layer.
MAX_PADDING = 2


@dataclass(frozen=True)
class DecodeGroup:
    """Rows start..stop of the batch: one token each, of similar length."""

    start: int
    stop: int
    block_tables: Tensor  # [requests, blocks] int32
    lengths: Tensor  # [requests] int64
    max_length: int


@dataclass(frozen=True)
class Batch:
    """All rows of one step: first one for each decoding slot, then the chunks."""

    token_ids: Tensor  # [tokens] int64
    positions: Tensor  # [tokens] int64
    places: Tensor  # [tokens] int64, block * block_size + offset
    sampled_rows: Tensor  # [sampled] int64
    sampled_slots: list[int]
    decode_groups: list[DecodeGroup]
    num_decoding: int
    chunk_lengths: list[int]
    chunk_totals: list[int]  # positions of each chunk's request, up to and with the chunk
    chunk_tables: Tensor  # [chunks, blocks] int32


def build_batch(step: Step, slots: Slots, block_size: int) -> Batch:
    """The batch of a step whose changes `slots` already has; moves every slot on by what it computes."""
    decoding = list(slots.decoding)
    lengths = [slots.num_computed[slot] + 1 for slot in decoding]
    if lengths and max(lengths) > MAX_PADDING * min(lengths):
        order = sorted(range(len(decoding)), key=lengths.__getitem__)
        decoding, lengths = [decoding[i] for i in order], [lengths[i] for i in order]
    for slot in decoding:
        slots.num_computed[slot] += 1
    rows = torch.tensor(decoding, dtype=torch.int64)
    ids, positions, owners = [slots.last_tokens[rows]], [torch.tensor(lengths, dtype=torch.int64) - 1], [rows]
    sampled_rows, sampled_slots, num_rows = list(range(len(decoding))), list(decoding), len(decoding)
    chunk_slots, chunk_lengths = unpack(step.chunk_slots).tolist(), unpack(step.chunk_lengths).tolist()
    for slot, length in zip(chunk_slots, chunk_lengths, strict=True):
        start = slots.num_computed[slot]
        chunk, is_last = slots.take_chunk(slot, length)
        ids.append(chunk)
        positions.append(torch.arange(start, start + length))
        owners.append(torch.full((length,), slot))
        num_rows += length
        if is_last:
            sampled_rows.append(num_rows - 1)
            sampled_slots.append(slot)
            slots.decoding[slot] = None
    all_positions, all_owners = torch.cat(positions), torch.cat(owners)
    blocks = slots.block_tables[all_owners, all_positions // block_size]
    return Batch(
        token_ids=torch.cat(ids),
        positions=all_positions,
        places=blocks.long() * block_size + all_positions % block_size,
        sampled_rows=torch.tensor(sampled_rows, dtype=torch.int64),
        sampled_slots=sampled_slots,
        decode_groups=_group(decoding, lengths, slots.block_tables, block_size),
        num_decoding=len(decoding),
        chunk_lengths=chunk_lengths,
        chunk_totals=[slots.num_computed[slot] for slot in chunk_slots],
        chunk_tables=slots.block_tables[torch.tensor(chunk_slots, dtype=torch.int64)],
    )


def _group(
    decoding: list[int], lengths: list[int], block_tables: Tensor, block_size: int
) -> list[DecodeGroup]:
    """Neighbouring rows whose lengths differ by at most MAX_PADDING; rows are in order of length if they must be."""
    groups, start = [], 0
    while start < len(decoding):
        shortest = longest = lengths[start]
        stop = start + 1
        while stop < len(decoding):
            low, high = min(shortest, lengths[stop]), max(longest, lengths[stop])
            if high > MAX_PADDING * low:
                break
            shortest, longest, stop = low, high, stop + 1
        tables = block_tables[torch.tensor(decoding[start:stop]), : (longest + block_size - 1) // block_size]
        groups.append(DecodeGroup(start, stop, tables, torch.tensor(lengths[start:stop]), longest))
        start = stop
    return groups


class PagedAttention:
    """Attention of one batch over the paged cache; what layers share is computed once."""

    def __init__(self, batch: Batch, cache: KvCache) -> None:
        self._batch, self._cache = batch, cache
        self._biases: dict[tuple[int, int | None], Tensor] = {}

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, spec: Attention) -> Tensor:
        batch, keys, values = self._batch, self._cache.keys[layer], self._cache.values[layer]
        cache_write(k, v, keys, values, batch.places)
        outs = [
            decode_attention(
                q[group.start : group.stop], keys, values, group.block_tables, group.lengths, group.max_length,
                spec.scale, spec.window, spec.softcap, self._bias(group, spec.window, q.dtype),
            )
            for group in batch.decode_groups
        ]  # fmt: skip
        if batch.chunk_lengths:
            outs.append(
                prefill_attention(
                    q[batch.num_decoding :], keys, values, batch.chunk_tables, batch.chunk_lengths,
                    batch.chunk_totals, spec.scale, spec.window, spec.softcap,
                )
            )  # fmt: skip
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def _bias(self, group: DecodeGroup, window: int | None, dtype: torch.dtype) -> Tensor:
        known = self._biases.get((group.start, window))
        if known is None:
            positions = group.block_tables.shape[1] * self._cache.block_size
            known = self._biases[group.start, window] = length_bias(group.lengths, positions, window, dtype)
        return known
