"""The tensors of a GGUF file under our names, dequantized straight to the dtype they will be served in.

The common block formats are dequantized here, 4 times as fast as by gguf.dequantize, which does the others.
Formats: ggml/src/ggml-common.h; those here have blocks of 32 values and float16 scales.
"""

import re
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from octavo.shared.gguf_file import GgufFile

_BLOCK = 32
_LOW_NIBBLES = 0x0F0F_0F0F_0F0F_0F0F
_AT_ONCE = 4096  # blocks: what lies between bytes and values stays in the cache

_MODULES = {
    "token_embd": "embed",
    "output_norm": "norm",
    "output": "head",
    "attn_q": "attn.q",
    "attn_k": "attn.k",
    "attn_v": "attn.v",
    "attn_output": "attn.o",
    "attn_q_norm": "attn.q_norm",
    "attn_k_norm": "attn.k_norm",
    "attn_norm": "attn_norm",
    "post_attention_norm": "attn_out_norm",
    "ffn_norm": "mlp_norm",
    "post_ffw_norm": "mlp_out_norm",
    "ffn_gate": "mlp.gate",
    "ffn_up": "mlp.up",
    "ffn_down": "mlp.down",
}
_NAME = re.compile(r"(?:blk\.(\d+)\.)?(\w+)\.(weight|bias)")
_ROPE_TABLE = "rope_freqs.weight"  # part of the config, see shared/gguf_config.py


def read_gguf_weights(file: GgufFile, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Every tensor under our name, or under its own where that says nothing to us."""
    restore = _RESTORE.get(str(file.metadata.get("general.architecture")), _leave)
    for their_name, info in file.tensors.items():
        if their_name != _ROPE_TABLE:
            name = _our_name(their_name)
            # Vectors cost nothing, and are restored before they are rounded.
            read_dtype = dtype if len(info.shape) > 1 else torch.float32
            yield name, restore(file, name, dequantize(file, their_name, read_dtype)).to(dtype)


def dequantize(file: GgufFile, name: str, dtype: torch.dtype) -> Tensor:
    """The tensor in its shape; computed in float32 and rounded once."""
    info = file.tensors[name]
    if info.kind in _PLAIN:
        return torch.from_numpy(file.stored(name)).view(_PLAIN[info.kind]).view(info.shape).to(dtype)
    if info.kind not in _UNPACK:
        return torch.from_numpy(file.tensor(name)).to(dtype)
    unpack = _UNPACK[info.kind]
    values = torch.empty(info.shape, dtype=dtype)
    rows = values.view(-1, _BLOCK)
    blocks = torch.from_numpy(file.stored(name)).view(len(rows), -1)  # [blocks, bytes of one]
    pairs = zip(torch.split(blocks, _AT_ONCE), torch.split(rows, _AT_ONCE), strict=True)
    for some_blocks, some_rows in pairs:
        some_rows.copy_(unpack(some_blocks))
    return values


def _unpack_q4_0(blocks: Tensor) -> Tensor:
    """{half d; uint8 quants[16]} to d * (quant - 8), float32 [blocks, 32]."""
    return (_nibbles(blocks[:, 2:]).float() - 8).mul_(_half(blocks, 0))


def _unpack_q4_1(blocks: Tensor) -> Tensor:
    """{half d, m; uint8 quants[16]} to d * quant + m, float32 [blocks, 32]."""
    return _nibbles(blocks[:, 4:]).float().mul_(_half(blocks, 0)).add_(_half(blocks, 1))


def _unpack_q8_0(blocks: Tensor) -> Tensor:
    """{half d; int8 quants[32]} to d * quant, float32 [blocks, 32]."""
    return blocks[:, 2:].view(torch.int8).float().mul_(_half(blocks, 0))


def _half(blocks: Tensor, index: int) -> Tensor:
    """The index-th float16 of each block, float32 [blocks, 1]."""
    return blocks.view(torch.float16)[:, index : index + 1].float()


def _nibbles(packed: Tensor) -> Tensor:
    """uint8 [blocks, 16] to [blocks, 32]: the low halves of all bytes, then the high; 8 at a time."""
    # A copy even where there is but one block, which counts as contiguous wherever it starts.
    words = packed.clone(memory_format=torch.contiguous_format).view(torch.int64)
    return torch.cat((words, words >> 4), 1).bitwise_and_(_LOW_NIBBLES).view(torch.uint8)


_UNPACK: dict[str, Callable[[Tensor], Tensor]] = {
    "Q4_0": _unpack_q4_0,
    "Q4_1": _unpack_q4_1,
    "Q8_0": _unpack_q8_0,
}
_PLAIN = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def _our_name(name: str) -> str:
    match = _NAME.fullmatch(name)
    if match is None or match[2] not in _MODULES:
        return name
    layer = f"layers.{match[1]}." if match[1] else ""
    return f"{layer}{_MODULES[match[2]]}.{match[3]}"


def _leave(file: GgufFile, name: str, tensor: Tensor) -> Tensor:
    return tensor


def _restore_llama(file: GgufFile, name: str, tensor: Tensor) -> Tensor:
    """Rows of q and k from rotary pairs side by side back to all firsts, then all seconds, in each head."""
    key = _HEADS.get(name.rpartition(".")[0][-len("attn.q") :])
    if key is None:
        return tensor
    heads = file.metadata.get(key) or file.metadata[_HEADS["attn.q"]]
    pairs = tensor.view(int(str(heads)), -1, 2, *tensor.shape[1:])  # [heads, head_dim / 2, 2, …]
    return pairs.transpose(1, 2).reshape(tensor.shape)


_HEADS = {"attn.q": "llama.attention.head_count", "attn.k": "llama.attention.head_count_kv"}


def _restore_gemma(file: GgufFile, name: str, tensor: Tensor) -> Tensor:
    """Norms hold 1 + weight in the file."""
    return tensor - 1 if name.endswith("norm.weight") else tensor


_RESTORE = {"llama": _restore_llama, "gemma3": _restore_gemma}
