"""The tensors of one step: which tokens, at which positions, written where, attending to what."""

from dataclasses import dataclass, field

import torch
from torch import Tensor

from octavo.kernels.cache_write import cache_write
from octavo.kernels.decode_attention import decode_attention
from octavo.kernels.prefill_attention import prefill_attention
from octavo.services.executor.cache import KvCache
from octavo.services.executor.models.decoder import Angles, AttentionLayer
from octavo.services.executor.slots import Slots
from octavo.shared.messages import Step, unpack


@dataclass(frozen=True)
class PromptPart:
    """Rows of a chunk whose logits tell how likely the prompt's next tokens were."""

    slot: int
    first_row: int
    token_ids: Tensor  # [rows] int64, each the one that follows its row's
    num_top: int


@dataclass(frozen=True)
class Batch:
    """All rows of one step: first one for each decoding slot, then the chunks."""

    token_ids: Tensor  # [tokens] int64
    positions: Tensor  # [tokens] int64
    places: Tensor  # [tokens] int64, block * block_size + offset
    sampled_rows: Tensor  # [sampled] int64
    sampled_slots: list[int]
    num_decoding: int
    decode_tables: Tensor  # [decoding, blocks] int32
    decode_lengths: Tensor  # [decoding] int32
    max_decode_length: int
    chunk_lengths: list[int]
    chunk_totals: list[int]  # positions of each chunk's request, up to and with the chunk
    chunk_tables: Tensor  # [chunks, blocks] int32
    prompt_parts: list[PromptPart] = field(default_factory=list)

    @property
    def needed_rows(self) -> Tensor:
        """Rows of which logits are needed, [needed] int64: those that are sampled, then those of prompt parts."""
        parts = [torch.arange(part.first_row, part.first_row + len(part.token_ids)) for part in self.prompt_parts]
        return torch.cat([self.sampled_rows, *parts]) if parts else self.sampled_rows


def build_batch(step: Step, slots: Slots, block_size: int) -> Batch:
    """The batch of a step whose changes `slots` already has; moves every slot on by what it computes."""
    decoding = list(slots.decoding)
    lengths = [slots.num_computed[slot] + 1 for slot in decoding]
    for slot in decoding:
        slots.num_computed[slot] += 1
    rows = torch.tensor(decoding, dtype=torch.int64)
    ids, positions, owners = [slots.last_tokens[rows]], [torch.tensor(lengths, dtype=torch.int64) - 1], [rows]
    sampled_rows, sampled_slots, num_rows = list(range(len(decoding))), list(decoding), len(decoding)
    prompt_parts: list[PromptPart] = []
    chunk_slots, chunk_lengths = unpack(step.chunk_slots).tolist(), unpack(step.chunk_lengths).tolist()
    for slot, length in zip(chunk_slots, chunk_lengths, strict=True):
        start = slots.num_computed[slot]
        chunk, is_last = slots.take_chunk(slot, length)
        ids.append(chunk)
        positions.append(torch.arange(start, start + length))
        owners.append(torch.full((length,), slot))
        if (behind := slots.prompt_behind(slot, start, length)) is not None:
            prompt_parts.append(PromptPart(slot, num_rows, *behind))
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
        num_decoding=len(decoding),
        decode_tables=slots.block_tables[rows],
        decode_lengths=torch.tensor(lengths, dtype=torch.int32),
        max_decode_length=max(lengths, default=0),
        chunk_lengths=chunk_lengths,
        chunk_totals=[slots.num_computed[slot] for slot in chunk_slots],
        chunk_tables=slots.block_tables[torch.tensor(chunk_slots, dtype=torch.int64)],
        prompt_parts=prompt_parts,
    )


class PagedAttention:
    """Attention of one batch over the paged cache."""

    def __init__(self, batch: Batch, cache: KvCache) -> None:
        self._batch, self._cache = batch, cache

    def __call__(self, layer: int, q: Tensor, k: Tensor, v: Tensor, attention: AttentionLayer) -> Tensor:
        spec, slopes, sinks = attention.spec, attention.slopes, attention.sinks
        batch, keys, values = self._batch, self._cache.keys[layer], self._cache.values[layer]
        cache_write(k, v, keys, values, batch.places)
        outs = []
        if batch.num_decoding:
            outs.append(
                decode_attention(
                    q[: batch.num_decoding], keys, values, batch.decode_tables, batch.decode_lengths,
                    batch.max_decode_length, spec.scale, spec.window, spec.softcap, sinks, slopes,
                )
            )  # fmt: skip
        if batch.chunk_lengths:
            outs.append(
                prefill_attention(
                    q[batch.num_decoding :], keys, values, batch.chunk_tables, batch.chunk_lengths,
                    batch.chunk_totals, spec.scale, spec.window, spec.softcap, sinks, slopes,
                )
            )  # fmt: skip
        return outs[0] if len(outs) == 1 else torch.cat(outs)

    def of_qkv(self, layer: int, qkv: Tensor, attention: AttentionLayer, angles: Angles) -> None:
        """Nothing is fused here."""
