"""Causal attention of chunks of new tokens over paged keys and values, the chunks' own already written.

q                       [tokens, heads, head_dim]: the chunks of all requests, one after another
key_cache, value_cache  [blocks, kv_heads, block_size, head_dim]; any strides
block_tables            [requests, max_blocks] int32
chunk_lengths           new tokens of each request; they sum to `tokens`
lengths                 positions of each request up to and with its chunk
returns                 [tokens, heads, head_dim] in the dtype of q

A token at position p sees positions (p - window, p]. Otherwise as decode_attention, which is the reference
too: a chunk of n tokens is n requests of one token each, with lengths that grow by one.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.decode_attention import attend, gather


def prefill_attention(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    chunk_lengths: list[int],
    lengths: list[int],
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    slopes: Tensor | None = None,
) -> Tensor:
    block_size = key_cache.shape[2]
    outs = []
    for index, (chunk, length) in enumerate(zip(q.split(chunk_lengths), lengths, strict=True)):  # type: ignore[no-untyped-call]  # torch's own
        table = block_tables[index : index + 1, : (length + block_size - 1) // block_size]
        keys = gather(key_cache, table)[:, :, :length]  # [1, kv_heads, length, head_dim]
        values = gather(value_cache, table)[:, :, :length]
        queries = chunk.transpose(0, 1)[None]  # [1, heads, chunk, head_dim]
        if softcap is None and sinks is None and slopes is None:
            whole = length == len(chunk) and (window is None or window >= length)
            seen = None if whole else _seen(len(chunk), length, window, q.device)
            out = F.scaled_dot_product_attention(
                queries, keys, values, attn_mask=seen, is_causal=whole, scale=scale, enable_gqa=True
            )
        else:
            seen = _seen(len(chunk), length, window, q.device)
            out = _attend_groups(queries, keys, values, seen, scale, softcap, sinks, slopes)
        outs.append(out[0].transpose(0, 1))
    return torch.cat(outs)


def _seen(chunk: int, length: int, window: int | None, device: torch.device) -> Tensor:
    """[chunk, length] bool: which positions each new token sees."""
    own = torch.arange(length - chunk, length, device=device)[:, None]
    others = torch.arange(length, device=device)
    seen = others <= own
    return seen if window is None else seen & (others > own - window)


def _attend_groups(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    seen: Tensor,
    scale: float,
    softcap: float | None,
    sinks: Tensor | None,
    slopes: Tensor | None,
) -> Tensor:
    """`attend` with the heads of a group as rows: [1, heads, chunk, head_dim] in and out."""
    kv_heads, chunk, length = keys.shape[1], q.shape[2], keys.shape[2]
    rows = q.reshape(1, kv_heads, -1, q.shape[3])
    bias = torch.zeros(seen.shape, device=q.device).masked_fill_(~seen, float("-inf"))
    bias = bias.repeat(q.shape[1] // kv_heads, 1)  # [group * chunk, length]
    if slopes is not None:
        own = torch.arange(length - chunk, length, device=q.device)[:, None]
        distances = torch.arange(length, device=q.device) - own  # [chunk, length]
        bias = bias + (slopes[:, None, None] * distances).view(kv_heads, -1, length)
    if sinks is not None:
        sinks = sinks.repeat_interleave(chunk).view(kv_heads, -1)
    return attend(rows, keys, values, bias, scale, softcap, sinks).view(q.shape)
