"""Writes new keys and values into their places in the paged cache.

keys, values            [tokens, kv_heads, head_dim]
key_cache, value_cache  [blocks, kv_heads, block_size, head_dim], changed in place; any strides
places                  [tokens] int64: block id * block_size + offset in the block
"""

from torch import Tensor

from octavo.kernels.native import find_loop


def cache_write(keys: Tensor, values: Tensor, key_cache: Tensor, value_cache: Tensor, places: Tensor) -> None:
    tensors = keys, values, key_cache, value_cache
    loop = find_loop("cache_write", keys.dtype, keys.device)
    if loop is None or any(each.stride(-1) != 1 for each in tensors) or not places.is_contiguous():
        reference(keys, values, key_cache, value_cache, places)
        return
    tokens, kv_heads, head_dim = keys.shape
    loop.run(
        4 * keys.nbytes, tokens, kv_heads, head_dim, key_cache.shape[2], places.data_ptr(),
        keys.data_ptr(), *keys.stride()[:2], key_cache.data_ptr(), *key_cache.stride()[:3],
        values.data_ptr(), *values.stride()[:2], value_cache.data_ptr(), *value_cache.stride()[:3],
    )  # fmt: skip


def reference(keys: Tensor, values: Tensor, key_cache: Tensor, value_cache: Tensor, places: Tensor) -> None:
    block_size = key_cache.shape[2]
    blocks, offsets = places // block_size, places % block_size
    key_cache[blocks, :, offsets] = keys
    value_cache[blocks, :, offsets] = values
