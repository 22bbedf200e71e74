"""Runs the one decoder over a prompt through paged attention, as the engine does, and shows all logits."""

import torch
from torch import Tensor

from octavo.services.executor.batch import PagedAttention, build_batch
from octavo.services.executor.cache import KvCache
from octavo.services.executor.models.decoder import DecoderModel
from octavo.services.executor.models.spec import Decoder
from octavo.services.executor.slots import Slots
from octavo.shared.messages import NewRequest, Step, pack
from octavo.shared.sampling import SamplingParams

BLOCK_SIZE = 4


@torch.inference_mode()
def logits_of(
    spec: Decoder, weights: dict[str, Tensor], token_ids: list[int], chunk: int = 1000, needed: list[int] | None = None
) -> Tensor:
    """Logits at every position, [tokens, vocab] float32, computed in chunks of `chunk` tokens.

    needed: the rows of each chunk to return; None: all.
    """
    rows = None if needed is None else torch.tensor(needed)
    model = DecoderModel(spec, weights, torch.float32, max_positions=len(token_ids))
    num_blocks = -(-len(token_ids) // BLOCK_SIZE)
    cache = KvCache(spec, num_blocks, BLOCK_SIZE, torch.float32)
    slots = Slots(1, num_blocks, BLOCK_SIZE, cache.null_block)
    blocks = list(reversed(range(num_blocks)))
    request = NewRequest(0, pack(token_ids), 0, pack(blocks), SamplingParams(max_tokens=1))
    outs = []
    for number, start in enumerate(range(0, len(token_ids), chunk)):
        length = min(chunk, len(token_ids) - start)
        step = Step(
            1,
            number,
            new=[request] if number == 0 else [],
            chunk_slots=pack([0]),
            chunk_lengths=pack([length]),
        )
        slots.apply(step)
        batch = build_batch(step, slots, BLOCK_SIZE)
        attention = PagedAttention(batch, cache)
        outs.append(model.logits(model.hidden(batch.token_ids, batch.positions, attention, rows)))
    return torch.cat(outs)
