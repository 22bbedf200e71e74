"""Writes new keys and values into their places in the paged cache.

keys, values            [tokens, kv_heads, head_dim]
key_cache, value_cache  [blocks, kv_heads, block_size, head_dim], changed in place; any strides
places                  [tokens] int64: block id * block_size + offset in the block
"""

from torch import Tensor


def cache_write(keys: Tensor, values: Tensor, key_cache: Tensor, value_cache: Tensor, places: Tensor) -> None:
    by_token_keys, by_token_values = _by_token(key_cache), _by_token(value_cache)
    if by_token_keys is None or by_token_values is None:
        reference(keys, values, key_cache, value_cache, places)
        return
    by_token_keys.index_copy_(0, places, keys)
    by_token_values.index_copy_(0, places, values)


def reference(keys: Tensor, values: Tensor, key_cache: Tensor, value_cache: Tensor, places: Tensor) -> None:
    block_size = key_cache.shape[2]
    blocks, offsets = places // block_size, places % block_size
    key_cache[blocks, :, offsets] = keys
    value_cache[blocks, :, offsets] = values


def _by_token(cache: Tensor) -> Tensor | None:
    """The cache as [blocks * block_size, kv_heads, head_dim], if its memory is in that order (as on a CPU)."""
    tokens_first = cache.transpose(1, 2)
    return tokens_first.flatten(0, 1) if tokens_first.is_contiguous() else None
