"""Attention of one new token a request over its paged keys and values.

q                       [requests, heads, head_dim]
key_cache, value_cache  [blocks, kv_heads, block_size, head_dim]; any strides
block_tables            [requests, max_blocks] int32: block i holds positions i * block_size and on
lengths                 [requests] int32: positions to attend to, the new token's included
max_length              the largest of lengths, known to the host
returns                 [requests, heads, head_dim] in the dtype of q

    s_j = softcap(q . k_j * scale),  j in [length - window, length)
    o   = sum_j exp(s_j) v_j / sum_j exp(s_j)

Head h reads kv head h // (heads / kv_heads).
source: Kwon et al. 2023 (PagedAttention), arXiv 2309.06180
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.native import find_loop, float_bits

NO_WINDOW = 2**62  # longer than any request


def decode_attention(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    lengths: Tensor,
    max_length: int,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    loop = find_loop("decode_attention", q.dtype, q.device)
    if loop is None or any(each.stride(-1) != 1 for each in (q, key_cache, value_cache, block_tables, lengths)):
        return _attend_in_torch(q, key_cache, value_cache, block_tables, lengths, max_length, scale, window, softcap)
    requests, heads, head_dim = q.shape
    kv_heads, block_size = key_cache.shape[1:3]
    group = heads // kv_heads
    out = q.new_empty(q.shape)
    scratch = torch.empty(requests * kv_heads * (group * (2 * head_dim + 2) + block_size), dtype=torch.float32)
    positions = min(max_length, window or max_length)
    loop.run(
        2 * requests * positions * kv_heads * head_dim * q.itemsize,
        requests, kv_heads, group, head_dim, block_size, window or NO_WINDOW,
        q.data_ptr(), *q.stride()[:2], out.data_ptr(), block_tables.data_ptr(), block_tables.stride(0),
        lengths.data_ptr(), scratch.data_ptr(), float_bits(scale), float_bits(softcap or 0.0),
        key_cache.data_ptr(), *key_cache.stride()[:3], value_cache.data_ptr(), *value_cache.stride()[:3],
    )  # fmt: skip
    return out


def _attend_in_torch(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    lengths: Tensor,
    max_length: int,
    scale: float,
    window: int | None,
    softcap: float | None,
) -> Tensor:
    requests, heads, head_dim = q.shape
    kv_heads, block_size = key_cache.shape[1:3]
    tables = block_tables[:, : (max_length + block_size - 1) // block_size]
    # The heads of a group are rows of one query: this is 11 times faster than enable_gqa on a CPU.
    packed = q.reshape(requests, kv_heads, heads // kv_heads, head_dim)
    keys, values = gather(key_cache, tables), gather(value_cache, tables)
    bias = _length_bias(lengths, keys.shape[2], window, q.dtype)
    if softcap is None:
        out = F.scaled_dot_product_attention(packed, keys, values, attn_mask=bias, scale=scale)
    else:
        out = attend(packed, keys, values, bias == 0, scale, softcap)
    return out.reshape(requests, heads, head_dim)


def _length_bias(lengths: Tensor, positions: int, window: int | None, dtype: torch.dtype) -> Tensor:
    """0 where a request of this length attends and -inf elsewhere: [requests, 1, 1, positions]."""
    places = torch.arange(positions, device=lengths.device)
    unseen = places >= lengths[:, None]
    if window is not None:
        unseen |= places < lengths[:, None] - window
    bias = torch.zeros(unseen.shape, dtype=dtype, device=lengths.device)
    return bias.masked_fill_(unseen, float("-inf"))[:, None, None]


def gather(cache: Tensor, tables: Tensor) -> Tensor:
    """What tables [requests, blocks] name, in order: [requests, kv_heads, positions, head_dim]."""
    num_blocks, kv_heads, block_size, head_dim = cache.shape
    if not cache.is_contiguous():
        return cache[tables.long()].transpose(1, 2).flatten(2, 3)
    rows = tables[:, None] * kv_heads + torch.arange(kv_heads, device=tables.device)[:, None]
    chosen = cache.view(num_blocks * kv_heads, -1).index_select(0, rows.flatten())
    return chosen.view(len(tables), kv_heads, -1, head_dim)


def attend(q: Tensor, keys: Tensor, values: Tensor, seen: Tensor, scale: float, softcap: float) -> Tensor:
    """Attention in float32 with soft cap.

    q [n, kv_heads, rows, head_dim]; keys, values [n, kv_heads, positions, head_dim]; seen broadcasts to
    [n, kv_heads, rows, positions]. Returns the shape and dtype of q.
    """
    scores = q.float() @ keys.float().transpose(-1, -2) * scale
    scores = (softcap * torch.tanh(scores / softcap)).masked_fill(~seen, float("-inf"))
    return (scores.softmax(-1) @ values.float()).to(q.dtype)


def reference(
    q: Tensor,
    key_cache: Tensor,
    value_cache: Tensor,
    block_tables: Tensor,
    lengths: Tensor,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
) -> Tensor:
    """The formula, one request and one head at a time, in float64."""
    out = torch.empty_like(q)
    group, block_size = q.shape[1] // key_cache.shape[1], key_cache.shape[2]
    for request, length in enumerate(lengths.tolist()):
        first = max(0, length - window) if window else 0
        places = [(int(block_tables[request, p // block_size]), p % block_size) for p in range(first, length)]
        for head in range(q.shape[1]):
            keys = torch.stack([key_cache[b, head // group, o] for b, o in places]).double()
            values = torch.stack([value_cache[b, head // group, o] for b, o in places]).double()
            scores = keys @ q[request, head].double() * scale
            if softcap is not None:
                scores = softcap * torch.tanh(scores / softcap)
            out[request, head] = (scores.softmax(0) @ values).to(q.dtype)
    return out
