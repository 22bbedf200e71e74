"""GPT-2 and its nearest: layer norms with bias, no gate. OPT, GPT-NeoX, Persimmon, StarCoder2."""

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from octavo.services.executor.models.families.changes import (
    attend,
    biases,
    norm_heads,
    norms,
    ungated,
    windows,
)
from octavo.services.executor.models.families.config import require
from octavo.services.executor.models.families.llama import plain_decoder
from octavo.services.executor.models.families.registry import Config, family
from octavo.services.executor.models.spec import Decoder, Norm

# Every head has keys of its own, whatever else a config says.
ALL_HEADS = {"num_key_value_heads": None, "head_dim": None}


def _split_conv1d(config: Config, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """GPT-2 keeps its linear weights transposed, and q, k, v as one; some checkpoints lack the prefix."""
    name = name.removeprefix("transformer.")
    if name.endswith(("c_attn.weight", "c_proj.weight", "c_fc.weight")):
        tensor = tensor.T
    if "c_attn" in name:
        yield from ((name.replace("c_attn", k), p) for k, p in zip("qkv", tensor.chunk(3), strict=True))
    else:
        yield name, tensor


@family(
    "gpt2",
    split=_split_conv1d,
    names={
        "wte": "embed",
        "wpe": "positions",
        "ln_f": "norm",
        "ln_1": "attn_norm",
        "ln_2": "mlp_norm",
        "attn.q": "attn.q",
        "attn.k": "attn.k",
        "attn.v": "attn.v",
        "attn.c_proj": "attn.o",
        "mlp.c_fc": "mlp.up",
        "mlp.c_proj": "mlp.down",
    },
    defaults={"tie_word_embeddings": True, "n_inner": None},
)
def gpt2(config: Config) -> Decoder:
    require(config, "scale_attn_weights", True)
    require(config, "scale_attn_by_inverse_layer_idx", False)
    require(config, "add_cross_attention", False)
    renamed = {
        "num_attention_heads": config["n_head"],
        "num_hidden_layers": config["n_layer"],
        "hidden_size": config["n_embd"],
        "intermediate_size": config["n_inner"] or 4 * config["n_embd"],
        "hidden_act": config["activation_function"],
    }
    norm = Norm("layer", config["layer_norm_epsilon"], bias=True)
    spec = plain_decoder(dict(config) | renamed | ALL_HEADS, norm)
    return replace(_without_rotation(spec), positions=config["n_positions"])


@family(
    "opt",
    names={
        "model.decoder.embed_tokens": "embed",
        "model.decoder.embed_positions": "positions",
        "model.decoder.final_layer_norm": "norm",
        "self_attn.out_proj": "attn.o",
        "fc1": "mlp.up",
        "fc2": "mlp.down",
        "self_attn_layer_norm": "attn_norm",
        "final_layer_norm": "mlp_norm",
    },
    defaults={"tie_word_embeddings": True},
)
def opt(config: Config) -> Decoder:
    require(config, "do_layer_norm_before", True)
    require(config, "layer_norm_elementwise_affine", True)
    require(config, "enable_bias", True)
    require(config, "word_embed_proj_dim", config["hidden_size"])
    renamed = {"intermediate_size": config["ffn_dim"], "hidden_act": config["activation_function"]}
    spec = plain_decoder(dict(config) | renamed | ALL_HEADS, Norm("layer", 1e-5, bias=True))
    # The first two rows were meant for padding.
    positions = config["max_position_embeddings"] + 2
    return replace(_without_rotation(spec), positions=positions, position_offset=2)


def _without_rotation(spec: Decoder) -> Decoder:
    """Learned positions instead of rotary ones, a bias everywhere."""
    spec = attend(ungated(spec), lambda attention: replace(attention, rope=None))
    return biases(spec, qkv=True, out=True, mlp=True)


def split_heads(config: Config, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """q, k and v out of rows that are [heads, (q, k, v), head_dim]."""
    module, fused, leaf = name.partition("query_key_value.")
    if not fused:
        yield name, tensor
        return
    num_heads = config.get("num_attention_heads") or config["n_head"]
    heads = tensor.view(num_heads, 3, -1, *tensor.shape[1:])
    yield from ((f"{module}{part}.{leaf}", heads[:, i].flatten(0, 1)) for i, part in enumerate("qkv"))


FUSED_NAMES = {"mlp.dense_h_to_4h": "mlp.up", "mlp.dense_4h_to_h": "mlp.down"}


@family(
    "gpt_neox",
    split=split_heads,
    names=FUSED_NAMES
    | {
        "gpt_neox.embed_in": "embed",
        "embed_out": "head",
        "gpt_neox.final_layer_norm": "norm",
        "attention.q": "attn.q",
        "attention.k": "attn.k",
        "attention.v": "attn.v",
        "attention.dense": "attn.o",
    },
    defaults={"rotary_pct": 0.25, "rotary_emb_base": 10_000.0, "attention_bias": True},
)
def gpt_neox(config: Config) -> Decoder:
    rotary = {"partial_rotary_factor": config["rotary_pct"], "rope_theta": config["rotary_emb_base"]}
    norm = Norm("layer", config["layer_norm_eps"], bias=True)
    spec = plain_decoder(dict(config) | rotary | ALL_HEADS, norm)
    bias = bool(config["attention_bias"])
    spec = biases(ungated(spec), qkv=bias, out=bias, mlp=True)
    return norms(spec, "attn", "mlp", parallel=bool(config["use_parallel_residual"]))


@family(
    "persimmon",
    split=split_heads,
    names=FUSED_NAMES
    | {
        "self_attn.q": "attn.q",
        "self_attn.k": "attn.k",
        "self_attn.v": "attn.v",
        "self_attn.dense": "attn.o",
        "self_attn.q_layernorm": "attn.q_norm",
        "self_attn.k_layernorm": "attn.k_norm",
        "model.final_layernorm": "norm",
    },
    defaults={"partial_rotary_factor": 0.5},
)
def persimmon(config: Config) -> Decoder:
    norm = Norm("layer", config["layer_norm_eps"], bias=True)
    spec = biases(ungated(plain_decoder(dict(config) | ALL_HEADS, norm)), qkv=True, out=True, mlp=True)
    if config["qk_layernorm"]:
        spec = norm_heads(spec, "head", norm)
    return spec


@family(
    "starcoder2",
    names={"mlp.c_fc": "mlp.up", "mlp.c_proj": "mlp.down"},
    defaults={"tie_word_embeddings": True},
)
def starcoder2(config: Config) -> Decoder:
    bias = bool(config["use_bias"])
    spec = plain_decoder(config, Norm("layer", config["norm_epsilon"], bias=True))
    return windows(biases(ungated(spec), qkv=bias, out=bias, mlp=bias), config)
