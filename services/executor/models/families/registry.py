"""The registry of families: what one is made of, and how a module of this folder adds one."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from octavo.services.executor.models.spec import Decoder

Config = Mapping[str, Any]  # a parsed config.json
Build = Callable[[Config], Decoder]
Split = Callable[[Config, str, Tensor], Iterator[tuple[str, Tensor]]]


def as_stored(config: Config, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """The split of a checkpoint that keeps each matrix on its own, [out, in]."""
    yield name, tensor


@dataclass(frozen=True)
class Family:
    """How to read one architecture."""

    build: Build
    names: Mapping[str, str]  # their name of a module, after layers.{i}., to ours
    split: Split = as_stored  # one of their tensors to ours, still under their names
    defaults: Config = field(default_factory=dict)  # what transformers takes where a config.json is silent

    def complete(self, config: Config) -> Config:
        """The config with the family's defaults where it is silent."""
        return dict(self.defaults) | dict(config)


# Their names in llama and in most of what followed it.
LLAMA_NAMES = {
    "model.embed_tokens": "embed",
    "model.norm": "norm",
    "lm_head": "head",
    "self_attn.q_proj": "attn.q",
    "self_attn.k_proj": "attn.k",
    "self_attn.v_proj": "attn.v",
    "self_attn.o_proj": "attn.o",
    "self_attn.q_norm": "attn.q_norm",
    "self_attn.k_norm": "attn.k_norm",
    "mlp.gate_proj": "mlp.gate",
    "mlp.up_proj": "mlp.up",
    "mlp.down_proj": "mlp.down",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "mlp_norm",
}

FAMILIES: dict[str, Family] = {}  # by model_type; filled once, while families/__init__.py is imported


def family(
    *model_types: str,
    names: Mapping[str, str] | None = None,
    split: Split = as_stored,
    defaults: Config | None = None,
) -> Callable[[Build], Build]:
    """Registers the decorated function as what builds the spec of these model types.

    `names` are added to llama's and win over them.
    """

    def register(build: Build) -> Build:
        for model_type in model_types:
            FAMILIES[model_type] = Family(build, LLAMA_NAMES | dict(names or {}), split, dict(defaults or {}))
        return build

    return register
