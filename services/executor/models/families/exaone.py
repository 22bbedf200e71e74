"""EXAONE 4: norms after attention and mlp, and no rotary positions on the full layers of its hybrid sizes."""

from octavo.services.executor.models.families.changes import FULL, norm_heads, norms, windows, without_rope
from octavo.services.executor.models.families.config import read_layer_kinds
from octavo.services.executor.models.families.llama import llama
from octavo.services.executor.models.families.olmo import POST_NORM_NAMES
from octavo.services.executor.models.families.registry import Config, family
from octavo.services.executor.models.spec import Decoder


@family("exaone4", names=POST_NORM_NAMES)
def exaone4(config: Config) -> Decoder:
    spec = norms(llama(config), "attn_out", "mlp_out")
    spec = norm_heads(spec, "head", spec.norm)
    if config.get("sliding_window") is None:
        return spec
    kinds = read_layer_kinds(config, config.get("sliding_window_pattern") or 4)
    return without_rope(windows(spec, config, kinds), lambda i: kinds[i] == FULL)
