"""Reading a config.json: the same thing under several names, and refusals of what no spec can say.

Understands transformers 5 (`rope_parameters`) and the older spelling (`rope_theta`, `rope_scaling`).
"""

import math

from octavo.services.executor.models.families.changes import FULL, SLIDING
from octavo.services.executor.models.families.registry import Config
from octavo.services.executor.models.spec import (
    Activation,
    LinearScaling,
    Llama3Scaling,
    Rope,
    TableScaling,
    YarnScaling,
)
from octavo.shared.errors import ModelError

_ACTIVATIONS: dict[str, Activation] = {
    "silu": "silu",
    "swish": "silu",
    "gelu": "gelu",
    "gelu_new": "gelu_pytorch_tanh",
    "gelu_fast": "gelu_pytorch_tanh",
    "gelu_pytorch_tanh": "gelu_pytorch_tanh",
    "relu": "relu",
    "relu2": "relu2",
}


def read_activation(config: Config) -> Activation:
    """The activation, under whichever of its names. Raises ModelError for one that is not supported."""
    name = config.get("hidden_act") or config.get("hidden_activation") or config["hidden_act"]
    if name not in _ACTIVATIONS:
        raise ModelError(f"activation {name!r} is not supported; supported: {', '.join(_ACTIVATIONS)}")
    return _ACTIVATIONS[name]


def read_head_dim(config: Config) -> int:
    """The size of a head: given, or the hidden size shared out."""
    return int(config.get("head_dim") or config["hidden_size"] // config["num_attention_heads"])


def require(config: Config, key: str, value: object) -> None:
    """Raises ModelError if the config sets `key` to anything but `value`; unset is fine."""
    found = config.get(key, value)
    if found != value and (found or value):
        raise ModelError(f"{config['model_type']} with {key}={found!r} is not supported, only {value!r}")


def read_rope(config: Config, kind: str = FULL) -> Rope:
    """The rotary positions of the layers of `kind`, where the config tells kinds apart.

    Raises ModelError for a scaling that is not supported.
    """
    rules: Config = config.get("rope_parameters") or config.get("rope_scaling") or {}
    rules = (rules[kind] or {}) if kind in rules else rules
    theta = float(rules.get("rope_theta") or config.get("rope_theta") or 10_000.0)
    share = rules.get("partial_rotary_factor") or config.get("partial_rotary_factor") or 1.0
    return Rope(theta, int(read_head_dim(config) * share), scaling=_read_scaling(config, rules))


def read_sliding_rope(config: Config) -> Rope:
    """The rotary positions of the sliding layers in families that never stretch those."""
    if SLIDING in (config.get("rope_parameters") or {}):
        return read_rope(config, SLIDING)
    theta = config.get("rope_local_base_freq") or config.get("rope_theta")
    return read_rope(dict(config) | {"rope_theta": theta, "rope_parameters": None, "rope_scaling": None})


def read_layer_kinds(config: Config, pattern: int) -> list[str]:
    """Sliding or full for each layer: as listed, or else each `pattern`-th layer full."""
    num_layers = config["num_hidden_layers"]
    listed = config.get("layer_types")
    kinds = list(listed) if listed else [SLIDING if (i + 1) % pattern else FULL for i in range(num_layers)]
    if len(kinds) != num_layers or not {SLIDING, FULL}.issuperset(kinds):
        raise ModelError(f"layer_types must be {num_layers} of {SLIDING!r} and {FULL!r}, and is {kinds}")
    return kinds


_Scaling = LinearScaling | Llama3Scaling | YarnScaling | TableScaling


def _read_scaling(config: Config, rules: Config) -> _Scaling | None:
    kind = rules.get("rope_type") or rules.get("type") or "default"
    match kind:
        case "default":
            return None
        case "linear":
            return LinearScaling(rules["factor"])
        case "llama3":
            low, high = rules["low_freq_factor"], rules["high_freq_factor"]
            return Llama3Scaling(rules["factor"], low, high, _original_positions(config, rules))
        case "yarn":
            return _read_yarn(config, rules)
        case "table":
            return TableScaling(tuple(rules["divisors"]))
    raise ModelError(f"rope_type {kind!r} is not supported; supported: default, linear, llama3, yarn")


def _original_positions(config: Config, rules: Config) -> int:
    """The context that was trained; beside the rules, as Phi-3 has it, it wins over one in them."""
    key = "original_max_position_embeddings"
    return int(config.get(key) or rules.get(key) or config["max_position_embeddings"])


def _read_yarn(config: Config, rules: Config) -> YarnScaling:
    original_positions = _original_positions(config, rules)
    factor = rules.get("factor") or config["max_position_embeddings"] / original_positions

    def magnitude(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    scale, scale_all = rules.get("mscale"), rules.get("mscale_all_dim")
    inferred = magnitude(scale) / magnitude(scale_all) if scale and scale_all else magnitude(1.0)
    return YarnScaling(
        factor,
        original_positions,
        rules.get("attention_factor") or inferred,
        rules.get("beta_fast") or 32.0,
        rules.get("beta_slow") or 1.0,
        rules.get("truncate", True),
    )
