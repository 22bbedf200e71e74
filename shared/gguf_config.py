"""The hyper-parameters of a GGUF file under the names that a config.json has for them.

Keys and their meaning: gguf/constants.py, and llama.cpp's convert_hf_to_gguf.py, which wrote them.
"""

from collections.abc import Callable
from dataclasses import dataclass

from octavo.shared.errors import ModelError
from octavo.shared.gguf_file import GgufFile

_GEMMA3_27B_LAYERS = 62


def config_from_gguf(file: GgufFile) -> dict[str, object]:
    """What config.json would say. Raises ModelError for an architecture that is not supported."""
    architecture = file.metadata.get("general.architecture")
    if architecture not in _ARCHITECTURES:
        raise ModelError(
            f"{file.path.name} holds a model of architecture {architecture!r}; "
            f"supported in GGUF: {', '.join(_ARCHITECTURES)}"
        )
    values = _Values(file, str(architecture))
    values.refuse_above("split.count", 1, "is one of several parts; join them with llama-gguf-split --merge")
    values.refuse_above(f"{architecture}.expert_count", 0, "holds a mixture of experts")
    config = _read_common(values) | _read_tokens(values) | _ARCHITECTURES[str(architecture)](values)
    return config


@dataclass(frozen=True)
class _Values:
    """The numbers of one architecture in a file's metadata."""

    file: GgufFile
    architecture: str

    def find(self, key: str) -> int | float | None:
        """The number at this key of the architecture, None if it is absent."""
        value = self.file.metadata.get(f"{self.architecture}.{key}")
        if value is not None and not isinstance(value, int | float):
            raise ModelError(f"{self.file.path.name} has no single number for {self.architecture}.{key}")
        return value

    def need(self, key: str) -> int | float:
        value = self.find(key)
        if value is None:
            raise ModelError(f"{self.file.path.name} has no {self.architecture}.{key}")
        return value

    def refuse_above(self, key: str, limit: int, problem: str) -> None:
        value = self.file.metadata.get(key, 0)
        if isinstance(value, int) and value > limit:
            raise ModelError(f"{self.file.path.name} {problem}, which is not supported ({key} is {value})")


def _read_common(values: _Values) -> dict[str, object]:
    tensors = values.file.tensors
    if "token_embd.weight" not in tensors:
        raise ModelError(f"{values.file.path.name} has no tensor token_embd.weight")
    hidden, heads = values.need("embedding_length"), values.need("attention.head_count")
    head_dim = values.find("attention.key_length") or hidden // heads
    rotated = values.find("rope.dimension_count") or head_dim
    return {
        "vocab_size": tensors["token_embd.weight"].shape[0],
        "hidden_size": hidden,
        "intermediate_size": values.need("feed_forward_length"),
        "num_hidden_layers": values.need("block_count"),
        "num_attention_heads": heads,
        "num_key_value_heads": values.find("attention.head_count_kv") or heads,
        "head_dim": head_dim,
        "max_position_embeddings": values.need("context_length"),
        "rms_norm_eps": values.need("attention.layer_norm_rms_epsilon"),
        "rope_theta": values.find("rope.freq_base") or 10_000.0,
        "rope_scaling": _read_rope_scaling(values),
        "partial_rotary_factor": rotated / head_dim,
        "tie_word_embeddings": "output.weight" not in tensors,
        "hidden_act": "silu",
    }


def _read_rope_scaling(values: _Values) -> dict[str, object] | None:
    if "rope_freqs.weight" in values.file.tensors:  # Llama 3's scaling, worked out for each pair
        return {"rope_type": "table", "divisors": values.file.tensor("rope_freqs.weight").tolist()}
    kind = values.file.metadata.get(f"{values.architecture}.rope.scaling.type", "none")
    if kind == "none":
        return None
    scaling = {
        "rope_type": kind,
        "factor": values.find("rope.scaling.factor"),
        "original_max_position_embeddings": values.find("rope.scaling.original_context_length"),
        "beta_fast": values.find("rope.scaling.yarn_beta_fast"),
        "beta_slow": values.find("rope.scaling.yarn_beta_slow"),
    }
    return {key: value for key, value in scaling.items() if value is not None}


def _read_tokens(values: _Values) -> dict[str, object]:
    """The ids of the tokens that begin and end a text; more than one may end it."""
    metadata = values.file.metadata
    names = ("tokenizer.ggml.eos_token_id", "tokenizer.ggml.eot_token_id")
    ends = list(dict.fromkeys(metadata[name] for name in names if name in metadata))
    return {
        "bos_token_id": metadata.get("tokenizer.ggml.bos_token_id"),
        "eos_token_id": ends if len(ends) > 1 else ends[0] if ends else None,
    }


def _read_llama(values: _Values) -> dict[str, object]:
    """Llama, and mistral, whose files say llama too."""
    return {"model_type": "llama", "attention_bias": "blk.0.attn_q.bias" in values.file.tensors}


def _read_gemma3(values: _Values) -> dict[str, object]:
    window = values.find("attention.sliding_window")
    layers, hidden = values.need("block_count"), values.need("embedding_length")
    # The scale of the scores is nowhere in the file; llama.cpp knows the one size that differs by its layers.
    of_27b = hidden // values.need("attention.head_count")
    scalar = of_27b if layers == _GEMMA3_27B_LAYERS else values.need("attention.key_length")
    return {
        "model_type": "gemma3_text",
        "hidden_act": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": scalar,
        "sliding_window": window,
        "sliding_window_pattern": 6 if window else 1,
        "rope_local_base_freq": values.find("rope.freq_base_swa") or 10_000.0,
        "final_logit_softcapping": values.find("final_logit_softcapping"),
    }


_ARCHITECTURES: dict[str, Callable[[_Values], dict[str, object]]] = {
    "llama": _read_llama,
    "qwen2": lambda values: {"model_type": "qwen2"},
    "qwen3": lambda values: {"model_type": "qwen3"},
    "gemma3": _read_gemma3,
}
