"""Qwen 2 and 3: biases on q, k and v; or norms on the heads of q and k."""

from octavo.services.executor.models.families.changes import FULL, SLIDING, biases, norm_heads, windows
from octavo.services.executor.models.families.llama import llama
from octavo.services.executor.models.families.registry import Config, family
from octavo.services.executor.models.spec import Decoder


@family("qwen2")
def qwen2(config: Config) -> Decoder:
    return _window_last_layers(biases(llama(config), qkv=True, out=False, mlp=False), config)


@family("qwen3")
def qwen3(config: Config) -> Decoder:
    spec = llama(config)
    return _window_last_layers(norm_heads(spec, "head", spec.norm), config)


def _window_last_layers(spec: Decoder, config: Config) -> Decoder:
    if not config.get("use_sliding_window"):
        return spec
    first = config["max_window_layers"]
    listed = config.get("layer_types")
    return windows(spec, config, listed or [SLIDING if i >= first else FULL for i in range(len(spec.layers))])
