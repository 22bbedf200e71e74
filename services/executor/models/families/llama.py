"""Llama and what differs from it by a number or two: mistral, smollm3, granite and others.

Source: the modeling files of transformers 5.23, for this and all other files of the folder.
"""

from dataclasses import replace

from octavo.services.executor.models.families.changes import attend, ungated, windows, without_rope
from octavo.services.executor.models.families.config import read_activation, read_head_dim, read_rope, require
from octavo.services.executor.models.families.registry import Config, family
from octavo.services.executor.models.spec import Attention, Decoder, Layer, Mlp, Norm


def plain_decoder(config: Config, norm: Norm) -> Decoder:
    """What every family starts from: rotary attention, then a gated mlp, each behind a norm."""
    heads, head_dim = config["num_attention_heads"], read_head_dim(config)
    attention_bias = bool(config.get("attention_bias"))
    attention = Attention(
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=head_dim,
        rope=read_rope(config),
        scale=head_dim**-0.5,
        qkv_bias=attention_bias,
        out_bias=bool(config.get("attention_out_bias", attention_bias)),
    )
    mlp = Mlp(config["intermediate_size"], read_activation(config), bias=bool(config.get("mlp_bias")))
    return Decoder(
        vocab=config["vocab_size"],
        hidden=config["hidden_size"],
        layers=(Layer(attention, mlp),) * config["num_hidden_layers"],
        norm=norm,
        tied=bool(config.get("tie_word_embeddings")),
    )


@family("llama", "seed_oss")
def llama(config: Config) -> Decoder:
    return plain_decoder(config, Norm("rms", config["rms_norm_eps"]))


@family("mistral")
def mistral(config: Config) -> Decoder:
    return windows(llama(config), config)


@family("arcee")
def arcee(config: Config) -> Decoder:
    return ungated(llama(config))


@family("internlm3")
def internlm3(config: Config) -> Decoder:
    renamed = {"attention_bias": config.get("qkv_bias"), "mlp_bias": config.get("bias")}
    return llama(renamed | dict(config))


@family("smollm3", defaults={"tie_word_embeddings": True, "rope_theta": 2_000_000.0})
def smollm3(config: Config) -> Decoder:
    require(config, "use_sliding_window", False)
    interval, listed = config.get("no_rope_layer_interval") or 4, config.get("no_rope_layers")

    def is_without(i: int) -> bool:
        # The config's list says 1 where there *are* rotary positions.
        return not listed[i] if listed else (i + 1) % interval == 0

    return without_rope(llama(config), is_without)


@family("granite")
def granite(config: Config) -> Decoder:
    return replace(
        attend(llama(config), lambda attention: replace(attention, scale=config["attention_multiplier"])),
        embed_scale=config["embedding_multiplier"],
        residual_scale=config["residual_multiplier"],
        logit_scale=1 / config["logits_scaling"],
    )
