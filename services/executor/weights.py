"""Named tensors for a decoder, read from safetensors or GGUF or made up, and those that a spec implies.

Names are ours: `embed.weight`, `layers.3.attn.q.weight`, `norm.weight`, `head.weight` (absent when tied). A weight in
FP8 comes after its `weight_scale`, see `fp8_weights.py`. Sharding over ranks is not done here.
"""

import re
from collections.abc import Iterable, Iterator

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from octavo.services.executor.fp8_weights import Scales, is_scale
from octavo.services.executor.gguf_weights import read_gguf_weights
from octavo.services.executor.models.families.registry import Config, Family
from octavo.services.executor.models.spec import Decoder, Layer, Norm
from octavo.shared.errors import ModelError
from octavo.shared.gguf_file import GgufFile
from octavo.shared.model_files import ModelFiles, weight_files

_LAYER = re.compile(r"(?:^|\.)(?:layers|h|blocks)\.(\d+)\.")
# The scales of a KV cache in FP8, under each of the names that checkpoints have for them.
_KV_SCALE = re.compile(r"\.(?:([kv])_scale|([kv])_proj\.output_scale)$")
# Buffers that old checkpoints keep: rotary frequencies and causal masks.
_JUNK = re.compile(r"(rotary_emb\.inv_freq|\.attn\.(masked_)?bias|\.attention\.(masked_)?bias)$")
_HEAD = "head.weight"
_SCALE = "_scale"
_DUMMY_STD = 0.02
_NAMED_IN_ERRORS = 5


def read_weights(files: ModelFiles, family: Family, config: Config, dtype: torch.dtype) -> Iterator[tuple[str, Tensor]]:
    """Every tensor of the model on the CPU, in the order in which a decoder is built, as far as that costs nothing.

    Those of safetensors are views of the mapped files, in the dtype that is stored there: nothing is read before they
    are used. Those of GGUF files come in the file's order, dequantized to `dtype`.
    A name that the family does not know is yielded as it is, for check_weights to object to.
    Raises ModelError for files that are missing or broken.
    """
    config = family.complete(config)
    spec = family.build(config)
    weights: Iterable[tuple[str, Tensor]]
    if files.kind == "gguf":
        weights = read_gguf_weights(GgufFile(files.path), dtype)
    else:
        place = {name: index for index, name in enumerate(expected_shapes(spec))}
        weights = sorted(_read_safetensors(files, family, config), key=lambda each: place.get(each[0], -1))
    # A tied checkpoint may carry its head all the same.
    return ((name, tensor) for name, tensor in weights if not (spec.tied and name == _HEAD))


def check_weights(spec: Decoder, weights: Iterable[tuple[str, Tensor]]) -> Iterator[tuple[str, Tensor]]:
    """Passes on the weights that the spec expects, in their shapes.

    Raises ModelError after the last one if any is left over, missing or of a wrong shape; it names some.
    """
    missing = expected_shapes(spec)
    leftover: list[str] = []
    wrong: list[str] = []
    for name, tensor in weights:
        is_kv_scale = _KV_SCALE.search(name) and tensor.numel() == 1
        if is_kv_scale or (name.endswith(_SCALE) and name.removesuffix(_SCALE) in missing):
            yield name, tensor  # what no spec tells of
            continue
        shape = missing.pop(name, None)
        if shape is None:
            leftover.append(name)
        elif shape != tuple(tensor.shape):
            wrong.append(f"{name} is {tuple(tensor.shape)}, not {shape}")
        else:
            yield name, tensor
    problems = {"missing": list(missing), "not known": leftover, "of a wrong shape": wrong}
    if any(problems.values()):
        told = "; ".join(f"{_name_some(names)} {kind}" for kind, names in problems.items() if names)
        raise ModelError(f"the model's weights do not fit its config: {told}")


def expected_shapes(spec: Decoder) -> dict[str, tuple[int, ...]]:
    """The names that the spec implies, and the shape of each; matrices are [out, in]."""
    return {name: shape for name, shape, _ in _list_weights(spec)}


def dummy_weights(
    spec: Decoder, seed: int, dtype: torch.dtype, device: torch.device | None = None
) -> Iterator[tuple[str, Tensor]]:
    """Weights for benchmarks, made on `device`: small normal numbers, and norms that only normalize."""
    device = device or torch.device("cpu")
    generator = torch.Generator(device).manual_seed(seed)
    for name, shape, fill in _list_weights(spec):
        tensor = torch.empty(shape, dtype=dtype, device=device)
        yield name, tensor.normal_(0, _DUMMY_STD, generator=generator) if fill is None else tensor.fill_(fill)


def _read_safetensors(files: ModelFiles, family: Family, config: Config) -> Iterator[tuple[str, Tensor]]:
    paths, is_quantized = weight_files(files), bool(config.get("quantization_config"))
    scales = Scales(paths if is_quantized else [])
    for path in paths:
        try:
            with safe_open(path, framework="pt") as file:
                for their_name in file.keys():
                    is_left_out = _JUNK.search(their_name) or (is_quantized and is_scale(their_name))
                    if is_left_out and not _KV_SCALE.search(their_name):
                        continue
                    tensor = file.get_tensor(their_name)
                    yield from _split(family, config, their_name, tensor, scales.of(their_name, tensor))
        except (OSError, SafetensorError) as error:
            raise ModelError(f"cannot read {path}: {error}") from error


def _split(
    family: Family, config: Config, their_name: str, tensor: Tensor, scale: Tensor | None
) -> Iterator[tuple[str, Tensor]]:
    """One of their tensors as ours; each after its scale, which has as many rows, if there is one."""
    parts = [(_our_name(name, family), part) for name, part in family.split(config, their_name, tensor)]
    if scale is None:
        yield from parts
        return
    for (name, part), (_, its_scale) in zip(parts, family.split(config, their_name, scale), strict=True):
        yield name + _SCALE, its_scale
        yield name, part


def _our_name(name: str, family: Family) -> str:
    """Their name to ours; itself where the family does not know the module."""
    layer = _LAYER.search(name)
    prefix = f"layers.{layer[1]}." if layer else ""
    if scale := _KV_SCALE.search(name):
        return f"{prefix}attn.{scale[1] or scale[2]}_scale"
    module, _, leaf = name[layer.end() if layer else 0 :].rpartition(".")
    return f"{prefix}{family.names[module]}.{leaf}" if module in family.names else name


def _name_some(names: list[str]) -> str:
    more = len(names) - _NAMED_IN_ERRORS
    return ", ".join(names[:_NAMED_IN_ERRORS]) + (f" and {more} more" if more > 0 else "")


# A name, its shape, and the value that makes it do nothing; None for what has no such value.
_Weight = tuple[str, tuple[int, ...], float | None]


def _list_weights(spec: Decoder) -> Iterator[_Weight]:
    yield "embed.weight", (spec.vocab, spec.hidden), None
    if spec.positions:
        yield "positions.weight", (spec.positions, spec.hidden), None
    if spec.embed_norm:
        yield from _list_norm("embed_norm", spec.norm, spec.hidden)
    for i, layer in enumerate(spec.layers):
        for name, shape, fill in _list_layer(spec, layer):
            yield f"layers.{i}.{name}", shape, fill
    yield from _list_norm("norm", spec.norm, spec.hidden)
    if not spec.tied:
        yield _HEAD, (spec.vocab, spec.hidden), None
    if spec.head_bias:
        yield "head.bias", (spec.vocab,), None


def _list_layer(spec: Decoder, layer: Layer) -> Iterator[_Weight]:
    attention, mlp = layer.attention, layer.mlp
    q_size, kv_size = attention.heads * attention.head_dim, attention.kv_heads * attention.head_dim
    for place in layer.norms:
        yield from _list_norm(f"{place}_norm", spec.norm, spec.hidden)
    yield from _list_linear("attn.q", q_size, spec.hidden, attention.qkv_bias)
    yield from _list_linear("attn.k", kv_size, spec.hidden, attention.qkv_bias)
    yield from _list_linear("attn.v", kv_size, spec.hidden, attention.qkv_bias)
    yield from _list_linear("attn.o", spec.hidden, q_size, attention.out_bias)
    if attention.sinks:
        yield "attn.sinks", (attention.heads,), None
    if attention.qk_norm:
        is_over_all = attention.qk_norm == "all"
        q_normed, k_normed = (q_size, kv_size) if is_over_all else (attention.head_dim, attention.head_dim)
        yield from _list_norm("attn.q_norm", attention.qk_norm_like, q_normed)
        yield from _list_norm("attn.k_norm", attention.qk_norm_like, k_normed)
    if mlp.gated:
        yield from _list_linear("mlp.gate", mlp.hidden, spec.hidden, mlp.bias)
    yield from _list_linear("mlp.up", mlp.hidden, spec.hidden, mlp.bias)
    yield from _list_linear("mlp.down", spec.hidden, mlp.hidden, mlp.bias)


def _list_linear(name: str, out_size: int, in_size: int, has_bias: bool) -> Iterator[_Weight]:
    yield f"{name}.weight", (out_size, in_size), None
    if has_bias:
        yield f"{name}.bias", (out_size,), None


def _list_norm(name: str, norm: Norm, size: int) -> Iterator[_Weight]:
    if norm.weight:
        yield f"{name}.weight", (size,), 0.0 if norm.kind.endswith("plus_one") else 1.0
    if norm.bias:
        yield f"{name}.bias", (size,), None
