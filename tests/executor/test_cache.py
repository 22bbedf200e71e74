"""The KV cache: its bytes, its clearing, and what FP8 makes of keys and values."""

import math

import pytest
import torch

from octavo.services.executor.cache import KvCache, bytes_per_block, to_fp8
from octavo.services.executor.load import load_engine
from octavo.services.executor.models.spec import Attention, Decoder, Layer, Mlp, Norm
from octavo.shared.config import Config
from octavo.shared.errors import ConfigError
from octavo.shared.process import Stopwatch

BF16, F32, FP8 = torch.bfloat16, torch.float32, torch.float8_e4m3fn


def test_a_kv_cache_in_fp8_needs_a_gpu() -> None:
    with pytest.raises(ConfigError, match="--kv-cache-dtype fp8 needs --device cuda"):
        load_engine(Config(device="cpu", kv_cache_dtype="fp8"), Stopwatch())


@pytest.mark.parametrize("dtype", [F32, BF16, FP8])
def test_a_cache_takes_the_bytes_that_a_block_is_said_to_take_and_clears_them(dtype: torch.dtype) -> None:
    attention = Attention(heads=2, kv_heads=2, head_dim=16, rope=None, scale=1.0)
    spec = Decoder(8, 8, (Layer(attention, Mlp(8)),) * 3, Norm())
    cache = KvCache(spec, num_blocks=4, block_size=8, dtype=dtype)
    tensors = cache.keys + cache.values
    assert sum(each.nbytes for each in tensors) == 5 * bytes_per_block(spec, 8, dtype)
    for each in tensors:
        each.copy_(torch.ones(each.shape))
    cache.clear(torch.tensor([1, 3]))
    for each in tensors:
        assert [bool(block.float().any()) for block in each] == [True, False, True, False, True]


def test_what_fp8_cannot_hold_becomes_its_greatest_number() -> None:
    x = torch.tensor([1e6, -1e6, 448.0, 460.0, 1.0, math.nan])
    torch.testing.assert_close(
        to_fp8(x, 2.0).float(), torch.tensor([448.0, -448.0, 224.0, 224.0, 0.5, math.nan]), equal_nan=True
    )
