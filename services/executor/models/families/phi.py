"""Phi 1 and 2 with parallel attention and mlp; Phi 3 and 4, a llama with fused projections."""

from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from octavo.services.executor.models.families.changes import biases, norm_heads, norms, ungated, windows
from octavo.services.executor.models.families.config import read_head_dim
from octavo.services.executor.models.families.llama import llama, plain_decoder
from octavo.services.executor.models.families.registry import Config, family
from octavo.services.executor.models.spec import Decoder, Norm


@family(
    "phi",
    names={
        "self_attn.dense": "attn.o",
        "self_attn.q_layernorm": "attn.q_norm",
        "self_attn.k_layernorm": "attn.k_norm",
        "mlp.fc1": "mlp.up",
        "mlp.fc2": "mlp.down",
        "model.final_layernorm": "norm",
    },
    defaults={"partial_rotary_factor": 0.5},
)
def phi(config: Config) -> Decoder:
    norm = Norm("layer", config["layer_norm_eps"], bias=True)
    spec = ungated(norms(plain_decoder(config, norm), "attn", parallel=True))
    if config.get("qk_layernorm"):
        spec = norm_heads(spec, "head", norm)
    return replace(biases(spec, qkv=True, out=True, mlp=True), head_bias=True)


def split_fused(config: Config, name: str, tensor: Tensor) -> Iterator[tuple[str, Tensor]]:
    """q, k and v out of qkv_proj, gate and up out of gate_up_proj; rows one after the other."""
    if "qkv_proj" in name:
        heads, head_dim = config["num_attention_heads"], read_head_dim(config)
        kv_size = (config.get("num_key_value_heads") or heads) * head_dim
        parts = torch.split(tensor, [heads * head_dim, kv_size, kv_size])
        yield from ((name.replace("qkv_proj", f"{k}_proj"), p) for k, p in zip("qkv", parts, strict=True))
    elif "gate_up_proj" in name:
        gate, up = tensor.chunk(2)
        yield name.replace("gate_up_proj", "gate_proj"), gate
        yield name.replace("gate_up_proj", "up_proj"), up
    else:
        yield name, tensor


@family("phi3", split=split_fused)
def phi3(config: Config) -> Decoder:
    return windows(llama(config), config)
