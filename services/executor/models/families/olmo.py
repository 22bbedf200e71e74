"""OLMo 1 to 3: a norm without weights; norms after attention and mlp; and sliding layers."""

from dataclasses import replace

from octavo.services.executor.models.families.changes import attend, norm_heads, norms, sliding_rope, windows
from octavo.services.executor.models.families.config import read_layer_kinds, read_sliding_rope
from octavo.services.executor.models.families.llama import llama, plain_decoder
from octavo.services.executor.models.families.registry import Config, family
from octavo.services.executor.models.spec import Decoder, Norm

POST_NORM_NAMES = {
    "post_attention_layernorm": "attn_out_norm",
    "post_feedforward_layernorm": "mlp_out_norm",
}


@family("olmo")
def olmo(config: Config) -> Decoder:
    spec = plain_decoder(config, Norm("layer", 1e-5, weight=False))
    return attend(spec, lambda attention: replace(attention, clip_qkv=config.get("clip_qkv")))


@family("olmo2", names=POST_NORM_NAMES)
def olmo2(config: Config) -> Decoder:
    spec = norms(llama(config), "attn_out", "mlp_out")
    return norm_heads(spec, "all", spec.norm)


@family("olmo3", names=POST_NORM_NAMES, defaults={"rope_theta": 500_000.0})
def olmo3(config: Config) -> Decoder:
    kinds = read_layer_kinds(config, pattern=4)
    return sliding_rope(windows(olmo2(config), config, kinds), kinds, read_sliding_rope(config))
