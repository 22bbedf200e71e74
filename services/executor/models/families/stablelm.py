"""StableLM: layer norms, a quarter of each head rotated, in some sizes attention and mlp in parallel."""

from octavo.services.executor.models.families.changes import biases, norms
from octavo.services.executor.models.families.config import require
from octavo.services.executor.models.families.llama import plain_decoder
from octavo.services.executor.models.families.registry import Config, family
from octavo.services.executor.models.spec import Decoder, Norm


@family("stablelm", defaults={"partial_rotary_factor": 0.25})
def stablelm(config: Config) -> Decoder:
    require(config, "qk_layernorm", False)
    spec = plain_decoder(config, Norm("layer", config["layer_norm_eps"], bias=True))
    spec = biases(spec, qkv=bool(config.get("use_qkv_bias")), out=False, mlp=False)
    return norms(spec, "attn", parallel=True) if config.get("use_parallel_residual") else spec
