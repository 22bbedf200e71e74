"""Command R and its sliding successor: attention and mlp in parallel behind one layer norm without bias."""

from dataclasses import replace

from octavo.services.executor.models.families.changes import FULL, interleaved, norms, windows, without_rope
from octavo.services.executor.models.families.config import read_layer_kinds, require
from octavo.services.executor.models.families.llama import plain_decoder
from octavo.services.executor.models.families.registry import Config, family
from octavo.services.executor.models.spec import Decoder, Norm


@family("cohere", defaults={"tie_word_embeddings": True, "rope_theta": 500_000.0})
def cohere(config: Config) -> Decoder:
    require(config, "use_qk_norm", False)
    spec = interleaved(plain_decoder(config, Norm("layer", config["layer_norm_eps"])))
    return replace(norms(spec, "attn", parallel=True), logit_scale=config["logit_scale"])


@family("cohere2", defaults={"tie_word_embeddings": True})
def cohere2(config: Config) -> Decoder:
    kinds = read_layer_kinds(config, config.get("sliding_window_pattern") or 4)
    return without_rope(windows(cohere(config), config, kinds), lambda i: kinds[i] == FULL)
