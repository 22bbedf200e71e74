"""Hunyuan, the dense sizes: norms on the heads of q and k after the rotation, and a stretched rotary base."""

from octavo.services.executor.models.families.changes import norm_heads
from octavo.services.executor.models.families.config import read_head_dim
from octavo.services.executor.models.families.llama import llama
from octavo.services.executor.models.families.registry import Config, family
from octavo.services.executor.models.spec import Decoder


@family(
    "hunyuan_v1_dense",
    names={"self_attn.query_layernorm": "attn.q_norm", "self_attn.key_layernorm": "attn.k_norm"},
)
def hunyuan_v1_dense(config: Config) -> Decoder:
    spec = llama(_stretch_base(config))
    return norm_heads(spec, "head_after_rope", spec.norm)


def _stretch_base(config: Config) -> Config:
    """Its "dynamic" scaling with an alpha depends on no length: a larger theta says the same."""
    rules = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if (rules.get("rope_type") or rules.get("type")) != "dynamic" or not rules.get("alpha"):
        return config
    head_dim = read_head_dim(config)
    theta = rules.get("rope_theta") or config["rope_theta"]
    stretched = {"rope_theta": theta * rules["alpha"] ** (head_dim / (head_dim - 2))}
    return dict(config) | {"rope_parameters": stretched, "rope_scaling": None}
