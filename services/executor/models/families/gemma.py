"""Gemma 1 to 3; the third also from configs and checkpoints that carry a vision tower."""

from collections.abc import Iterator
from dataclasses import replace

from torch import Tensor

from octavo.services.executor.models.families.changes import (
    attend,
    feed,
    norm_heads,
    norms,
    sliding_rope,
    windows,
)
from octavo.services.executor.models.families.config import read_layer_kinds, read_sliding_rope, require
from octavo.services.executor.models.families.llama import plain_decoder
from octavo.services.executor.models.families.registry import Config, family
from octavo.services.executor.models.spec import Decoder, Norm

_SANDWICH_NAMES = {
    "post_attention_layernorm": "attn_out_norm",
    "pre_feedforward_layernorm": "mlp_norm",
    "post_feedforward_layernorm": "mlp_out_norm",
}

# Gemma 3's configs on the Hub leave out nearly all that equals these.
_GEMMA3_DEFAULTS: Config = {
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "head_dim": 256,
    "hidden_activation": "gelu_pytorch_tanh",
    "hidden_size": 2304,
    "intermediate_size": 9216,
    "max_position_embeddings": 131_072,
    "num_attention_heads": 8,
    "num_hidden_layers": 26,
    "num_key_value_heads": 4,
    "query_pre_attn_scalar": 256,
    "rms_norm_eps": 1e-6,
    "rope_local_base_freq": 10_000.0,
    "rope_theta": 1_000_000.0,
    "sliding_window": 4096,
    "tie_word_embeddings": True,
    "vocab_size": 262_208,
}


@family("gemma", defaults={"tie_word_embeddings": True})
def gemma(config: Config) -> Decoder:
    require(config, "use_bidirectional_attention", False)
    # Gemma 1's configs on the Hub say "gelu" and mean the approximation.
    spec = feed(
        plain_decoder(config, Norm("rms_plus_one", config["rms_norm_eps"])),
        lambda mlp: replace(mlp, act="gelu_pytorch_tanh"),
    )
    return replace(spec, embed_scale=config["hidden_size"] ** 0.5)


@family("gemma2", names=_SANDWICH_NAMES, defaults={"tie_word_embeddings": True})
def gemma2(config: Config) -> Decoder:
    return windows(_sandwich(config), config, read_layer_kinds(config, pattern=2))


@family("gemma3_text", names=_SANDWICH_NAMES, defaults=_GEMMA3_DEFAULTS)
def gemma3_text(config: Config) -> Decoder:
    kinds = read_layer_kinds(config, config.get("sliding_window_pattern") or 6)
    spec = _sandwich(config)
    spec = norm_heads(windows(spec, config, kinds), "head", spec.norm)
    return sliding_rope(spec, kinds, read_sliding_rope(config))


def _sandwich(config: Config) -> Decoder:
    """Gemma with norms before and after attention and mlp, as 2 and 3 have it."""
    spec = norms(gemma(config), "attn", "attn_out", "mlp", "mlp_out")
    scale, softcap = config["query_pre_attn_scalar"] ** -0.5, config["attn_logit_softcapping"]
    spec = attend(spec, lambda attention: replace(attention, scale=scale, softcap=softcap))
    return replace(spec, logit_softcap=config["final_logit_softcapping"])


def _language_only(config: Config, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The language model's tensors without the prefixes of older and newer checkpoints; no vision."""
    if "vision_tower" in name or "multi_modal_projector" in name:
        return
    for prefix, ours in (("language_model.", ""), ("model.language_model.", "model.")):
        if name.startswith(prefix):
            name = ours + name.removeprefix(prefix)
            break
    yield name, tensor


@family("gemma3", names=_SANDWICH_NAMES, split=_language_only)
def gemma3(config: Config) -> Decoder:
    """The text side of the model that also sees images; images are not taken."""
    return gemma3_text(dict(_GEMMA3_DEFAULTS) | config["text_config"])
