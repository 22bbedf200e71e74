"""GLM 4, in its first form and with norms after attention and mlp too."""

from dataclasses import replace

from octavo.services.executor.models.families.changes import attend, interleaved, norms
from octavo.services.executor.models.families.llama import llama
from octavo.services.executor.models.families.phi import split_fused
from octavo.services.executor.models.families.registry import Config, family
from octavo.services.executor.models.spec import Decoder


@family("glm", split=split_fused, defaults={"partial_rotary_factor": 0.5})
def glm(config: Config) -> Decoder:
    return attend(interleaved(llama(config)), lambda attention: replace(attention, out_bias=False))


@family(
    "glm4",
    split=split_fused,
    names={"post_self_attn_layernorm": "attn_out_norm", "post_mlp_layernorm": "mlp_out_norm"},
    defaults={"partial_rotary_factor": 0.5},
)
def glm4(config: Config) -> Decoder:
    return norms(glm(config), "attn", "attn_out", "mlp", "mlp_out")
