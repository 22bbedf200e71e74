"""Writes GGUF files for tests, and the metadata of a tiny llama."""

from collections.abc import Mapping
from pathlib import Path

import gguf
import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.float32]

TINY_LLAMA: dict[str, object] = {
    "llama.block_count": 1,
    "llama.context_length": 128,
    "llama.embedding_length": 64,
    "llama.feed_forward_length": 96,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 0.5,
    "llama.rope.freq_base": 5000.0,
    "tokenizer.ggml.tokens": ["<s>", "</s>", "é", ""],
    "tokenizer.ggml.token_type": [3, 3, 1, 1],
    "tokenizer.ggml.bos_token_id": 0,
    "tokenizer.ggml.eos_token_id": 1,
    "tokenizer.ggml.add_bos_token": True,
}


def write_gguf(
    path: Path,
    metadata: Mapping[str, object],
    tensors: Mapping[str, Array],
    architecture: str = "llama",
    kinds: Mapping[str, str] | None = None,
) -> Path:
    """A file of these keys and tensors, quantized to the kinds that are named; returns its path."""
    writer = gguf.GGUFWriter(path, architecture)
    add = {
        int: writer.add_uint32,
        float: writer.add_float32,
        bool: writer.add_bool,
        str: writer.add_string,
        list: writer.add_array,
    }
    for key, value in metadata.items():
        add[type(value)](key, value)
    for name, values in tensors.items():
        kind = gguf.GGMLQuantizationType[(kinds or {}).get(name, "F32")]
        writer.add_tensor(name, gguf.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def random_array(*shape: int, seed: int = 0) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)
