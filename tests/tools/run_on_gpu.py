"""Runs the one decoder with the GPU's attention over whole requests, and shows all logits."""

import torch
from torch import Tensor

from octavo.kernels.gpu.chunks import TILE, Chunks
from octavo.services.executor.cache import KvCache
from octavo.services.executor.gpu.batch import GpuAttention, GpuCache
from octavo.services.executor.gpu.load import BLOCK_SIZE
from octavo.services.executor.models.decoder import DecoderModel
from octavo.services.executor.models.spec import Decoder

Span = tuple[int, int, int]  # slot, first position, tokens


@torch.inference_mode()
def gpu_logits_of(
    spec: Decoder,
    weights: dict[str, Tensor],
    dtype: torch.dtype,
    requests: list[list[int]],
    chunk: int,
    num_decoded: int,
    device: torch.device,
) -> list[Tensor]:
    """Logits at every position of each request, [tokens, vocab] float32.

    The requests run side by side: each in chunks of `chunk` tokens, its last `num_decoded` tokens one by one.
    """
    longest = max(map(len, requests))
    per_request = -(-longest // BLOCK_SIZE)
    model = DecoderModel(spec, {name: each.to(device) for name, each in weights.items()}, dtype, longest)
    num_blocks = len(requests) * per_request
    cache = GpuCache(spec, KvCache(spec, num_blocks, BLOCK_SIZE, dtype, device), len(requests), per_request)
    cache.tables[:-1] = torch.randperm(num_blocks, device=device).view(-1, per_request)
    outs: list[list[Tensor]] = [[] for _ in requests]
    starts = [0] * len(requests)
    while spans := _next_spans(requests, starts, chunk, num_decoded):
        num_decoding = sum(start >= len(requests[slot]) - num_decoded for slot, start, _ in spans)
        token_ids = _int32([id for slot, at, length in spans for id in requests[slot][at : at + length]], device)
        slots = _int32([slot for slot, _, length in spans for _ in range(length)], device)
        positions = _int32([at + i for _, at, length in spans for i in range(length)], device)
        chunks = _chunks(spans, num_decoding, device) if num_decoding < len(spans) else None
        attention = GpuAttention(cache, slots, positions, num_decoding, chunks)
        logits = model.logits(model.hidden(token_ids, positions, attention)).float()
        for (slot, _, length), rows in zip(spans, logits.split([span[2] for span in spans]), strict=True):
            outs[slot].append(rows)
            starts[slot] += length
    return [torch.cat(each) for each in outs]


def _next_spans(requests: list[list[int]], starts: list[int], chunk: int, num_decoded: int) -> list[Span]:
    """The next tokens of each request that is not done, those that decode in front."""
    ends = [len(request) - num_decoded for request in requests]
    rest = [slot for slot, start in enumerate(starts) if start < len(requests[slot])]
    decoding = [(slot, starts[slot], 1) for slot in rest if starts[slot] >= ends[slot]]
    return decoding + [
        (slot, starts[slot], min(chunk, ends[slot] - starts[slot])) for slot in rest if starts[slot] < ends[slot]
    ]


def _chunks(spans: list[Span], num_decoding: int, device: torch.device) -> Chunks:
    new = spans[num_decoding:]
    rows = [num_decoding + sum(length for _, _, length in new[:index]) for index in range(len(new))]
    tiles = [(index, first) for index, (_, _, length) in enumerate(new) for first in range(0, length, TILE)]
    columns = [
        rows, [length for _, _, length in new], [start + length for _, start, length in new],
        [slot for slot, _, _ in new], [index for index, _ in tiles], [first for _, first in tiles], [len(tiles)],
    ]  # fmt: skip
    return Chunks(*(_int32(column, device) for column in columns))


def _int32(values: list[int], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.int32, device=device)
