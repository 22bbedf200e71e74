"""Models whose positions are slopes on the scores of attention (ALiBi, arXiv 2108.12409): BLOOM and MPT."""

import math
from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from octavo.services.executor.models.families.changes import attend, biases, ungated
from octavo.services.executor.models.families.config import require
from octavo.services.executor.models.families.gpt import ALL_HEADS, FUSED_NAMES, split_heads
from octavo.services.executor.models.families.llama import plain_decoder
from octavo.services.executor.models.families.registry import Config, family
from octavo.services.executor.models.spec import Decoder, Norm


def alibi_slopes(heads: int) -> tuple[float, ...]:
    """A geometric series down to 1/256; where heads are no power of two, that of the next, every other one first."""
    count = 2 ** math.ceil(math.log2(heads))
    slopes = [2.0 ** (-8 * (i + 1) / count) for i in range(count)]
    return tuple(slopes if count == heads else (slopes[1::2] + slopes[::2])[:heads])


@family(
    "bloom",
    split=split_heads,
    names=FUSED_NAMES
    | {
        "transformer.word_embeddings": "embed",
        "transformer.word_embeddings_layernorm": "embed_norm",
        "transformer.ln_f": "norm",
        "word_embeddings": "embed",  # some checkpoints lack the prefix
        "word_embeddings_layernorm": "embed_norm",
        "ln_f": "norm",
        "self_attention.q": "attn.q",
        "self_attention.k": "attn.k",
        "self_attention.v": "attn.v",
        "self_attention.dense": "attn.o",
    },
    defaults={"tie_word_embeddings": True},
)
def bloom(config: Config) -> Decoder:
    require(config, "apply_residual_connection_post_layernorm", False)
    heads = config.get("n_head") or config["num_attention_heads"]
    hidden = config.get("hidden_size") or config["n_embed"]
    renamed = {
        "num_attention_heads": heads,
        "num_hidden_layers": config["n_layer"],
        "hidden_size": hidden,
        "intermediate_size": 4 * hidden,
        "hidden_act": "gelu_pytorch_tanh",
    }
    spec = plain_decoder(dict(config) | renamed | ALL_HEADS, Norm("layer", config["layer_norm_epsilon"], bias=True))
    spec = biases(_sloped(spec, alibi_slopes(heads)), qkv=True, out=True, mlp=True)
    return replace(spec, embed_norm=True)


def _split_thirds(config: Config, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """q, k and v out of rows that are [(q, k, v), heads, head_dim]."""
    if "Wqkv" in name:
        yield from ((name.replace("Wqkv", part), rows) for part, rows in zip("qkv", tensor.chunk(3), strict=True))
    else:
        yield name, tensor


@family(
    "mpt",
    split=_split_thirds,
    names={
        "transformer.wte": "embed",
        "transformer.norm_f": "norm",
        "norm_1": "attn_norm",
        "norm_2": "mlp_norm",
        "attn.q": "attn.q",
        "attn.k": "attn.k",
        "attn.v": "attn.v",
        "attn.out_proj": "attn.o",
        "ffn.up_proj": "mlp.up",
        "ffn.down_proj": "mlp.down",
    },
    defaults={"tie_word_embeddings": True, "layer_norm_epsilon": 1e-5, "attn_config": {}},
)
def mpt(config: Config) -> Decoder:
    rules: Config = dict(config["attn_config"] or {}) | {"model_type": "mpt"}
    require(rules, "alibi", True)
    require(rules, "alibi_bias_max", 8)
    require(rules, "qk_ln", False)
    require(rules, "prefix_lm", False)
    require(rules, "attn_type", "multihead_attention")
    require(config, "no_bias", True)
    require(config, "logit_scale", None)
    renamed = {
        "num_attention_heads": config["n_heads"],
        "num_hidden_layers": config["n_layers"],
        "hidden_size": config["d_model"],
        "intermediate_size": config.get("expansion_ratio", 4) * config["d_model"],
        "hidden_act": "gelu",
    }
    spec = plain_decoder(dict(config) | renamed | ALL_HEADS, Norm("layer", config["layer_norm_epsilon"]))
    spec = _sloped(spec, alibi_slopes(config["n_heads"]))
    scale = rules.get("softmax_scale") or spec.layers[0].attention.scale
    return attend(spec, lambda attention: replace(attention, scale=scale, clip_qkv=rules.get("clip_qkv")))


def _sloped(spec: Decoder, slopes: tuple[float, ...]) -> Decoder:
    """Slopes instead of rotary positions, and no gate."""
    return attend(ungated(spec), lambda attention: replace(attention, rope=None, slopes=slopes))
