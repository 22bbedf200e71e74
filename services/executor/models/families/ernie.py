"""ERNIE 4.5, the dense sizes: a llama with interleaved rotary pairs."""

from octavo.services.executor.models.families.changes import biases, interleaved
from octavo.services.executor.models.families.llama import llama
from octavo.services.executor.models.families.registry import Config, family
from octavo.services.executor.models.spec import Decoder


@family("ernie4_5", defaults={"tie_word_embeddings": True, "rope_theta": 500_000.0})
def ernie4_5(config: Config) -> Decoder:
    bias = bool(config["use_bias"])
    return biases(interleaved(llama(config)), qkv=bias, out=bias, mlp=bias)
