"""The KV cache: the keys and values of every layer, in blocks, and how many blocks there can be."""

import math
import mmap

import torch
from torch import Tensor

from octavo.kernels.fp8 import FP8, MOST
from octavo.services.executor.models.spec import Attention, Decoder
from octavo.shared.errors import ModelError

CPU = torch.device("cpu")
_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32}  # by size: not all of torch's operators know FP8


class KvCache:
    """All keys and values in one tensor, [layers, 2, blocks + 1, kv_heads, block_size, head_dim].

    So lies together what one head attends to in a block.

    The last block is the null block: it stays zero, and padded block tables point to it. A block is zeroed
    when a request gets it, so that nothing of its former owner, a NaN least of all, is ever read.
    """

    def __init__(
        self, spec: Decoder, num_blocks: int, block_size: int, dtype: torch.dtype, device: torch.device = CPU
    ) -> None:
        attention = uniform_attention(spec)
        self.num_blocks, self.block_size, self.null_block = num_blocks, block_size, num_blocks
        shape = (len(spec.layers), 2, num_blocks + 1, attention.kv_heads, block_size, attention.head_dim)
        if device.type == "cpu":
            # Anonymous pages are zero, and take memory when first written; torch.zeros would write them all.
            pages = mmap.mmap(-1, math.prod(shape) * dtype.itemsize)
            self.bits = torch.frombuffer(pages, dtype=_BITS[dtype.itemsize]).view(shape)
        else:
            self.bits = torch.zeros(shape, dtype=_BITS[dtype.itemsize], device=device)
        self.keys: list[Tensor] = [layer[0].view(dtype) for layer in self.bits]
        self.values: list[Tensor] = [layer[1].view(dtype) for layer in self.bits]

    def clear(self, blocks: Tensor) -> None:
        """Zero these blocks in every layer, on a CPU. blocks: [n] int64."""
        self.bits.index_fill_(2, blocks, 0)


def uniform_attention(spec: Decoder) -> Attention:
    """The attention whose heads all layers share. Raises ModelError if they differ."""
    shapes = {(layer.attention.kv_heads, layer.attention.head_dim) for layer in spec.layers}
    if len(shapes) != 1:
        raise ModelError(f"layers with different KV heads {sorted(shapes)} cannot share one cache")
    return spec.layers[0].attention


def to_fp8(x: Tensor, scale: float) -> Tensor:
    """Keys or values as a cache in FP8 has them: divided by `scale`; what is too great becomes its greatest number."""
    return (x.float() / scale).clamp(-MOST, MOST).to(FP8)


def bytes_per_block(spec: Decoder, block_size: int, dtype: torch.dtype) -> int:
    attention = uniform_attention(spec)
    return 2 * len(spec.layers) * block_size * attention.kv_heads * attention.head_dim * dtype.itemsize


def available_memory_bytes() -> int:
    """Memory that can still be used without swapping, on Linux."""
    with open("/proc/meminfo") as lines:
        for line in lines:
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    raise ModelError("/proc/meminfo has no MemAvailable: set --num-kv-blocks")
