"""Weights in FP8: those that a checkpoint carries, and others quantized on their way to the device.

Understands what calls itself `fp8` (one scale a tensor, or one for each block of 128 x 128: DeepSeek, Qwen) and
`compressed-tensors` with floats of 8 bits (one scale a tensor, an output channel or a block). Scales of activations are
passed over: they are taken from the activations themselves, token by token. Afterwards each FP8 weight `X.weight` has
beside it `X.weight_scale`, float32, one number an output channel.

Scales of a tensor or a channel are kept as they are, so nothing is lost. Blocks are quantized again by channels, which
rounds twice: of normal weights the relative error becomes 3.7 % instead of 2.6 %.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from octavo.kernels.fp8 import FP8, can_multiply, dequantize, quantize
from octavo.shared.errors import ConfigError, ModelError

BLOCK = 128  # rows and columns that share a scale in checkpoints that have blocks
_SCALE = re.compile(r"\.weight_scale(_inv)?$")
_OTHER_SCALE = re.compile(r"\.(input|output|q|k|v)_scale(_ub)?$")
# Embeddings and the head stay as they are.
_LINEAR = re.compile(r"layers\.\d+\.(attn\.[qkvo]|mlp\.(gate|up|down))\.weight")

Named = Iterator[tuple[str, Tensor]]


def check_quantization(config: Mapping[str, Any]) -> None:
    """Raises ModelError if a config.json says that its weights are quantized in a way that is not supported."""
    found = config.get("quantization_config")
    if not found:
        return
    method, supported = found.get("quant_method"), "fp8, and compressed-tensors with floats of 8 bits"
    if method == "fp8":
        block = found.get("weight_block_size")
        if block and list(block) != [BLOCK, BLOCK]:
            raise ModelError(f"the weights are quantized in blocks of {block}; supported: [{BLOCK}, {BLOCK}]")
        return
    if method != "compressed-tensors":
        raise ModelError(f"the weights are quantized by {method!r}, which is not supported; supported: {supported}")
    for group in (found.get("config_groups") or {}).values():
        weights = group.get("weights") or {}
        kind, num_bits, strategy = weights.get("type"), weights.get("num_bits"), weights.get("strategy")
        if (kind, num_bits) != ("float", 8) or strategy not in ("tensor", "channel", "block"):
            raise ModelError(
                f"the weights are quantized by compressed-tensors as {kind} of {num_bits} bits by {strategy}, "
                f"which is not supported; supported: {supported}, by tensor, channel or block"
            )


def check_device(quantization: str | None, is_on_gpu: bool, dtype: torch.dtype, config: Mapping[str, Any]) -> None:
    """Raises ConfigError where FP8 weights cannot be multiplied as they are asked for; `config`: the config.json."""
    if quantization and not is_on_gpu:
        raise ConfigError(f"--quantization {quantization} needs --device cuda: a CPU has no products of it")
    if is_on_gpu and (quantization or config.get("quantization_config")) and dtype != torch.bfloat16:
        name = str(dtype).removeprefix("torch.")
        raise ConfigError(f"FP8 weights on a GPU are multiplied into bfloat16, not {name}: set --dtype bfloat16")


class Scales:
    """The scales of a checkpoint, read before its weights, as they may lie in other files."""

    def __init__(self, paths: Iterable[Path]) -> None:
        """Raises ModelError for a file that is missing or broken."""
        self._by_module: dict[str, Tensor] = {}
        for path in paths:
            try:
                with safe_open(path, framework="pt") as file:
                    names = [name for name in file.keys() if _SCALE.search(name)]
                    self._by_module |= {_SCALE.sub("", name): file.get_tensor(name).float() for name in names}
            except (OSError, SafetensorError) as error:
                raise ModelError(f"cannot read {path}: {error}") from error

    def of(self, name: str, weight: Tensor) -> Tensor | None:
        """Of an FP8 weight [out, in]: [out, 1], or [out, blocks] where blocks of a row have their own; else None.

        Raises ModelError if it has none, or one of a shape that fits nothing.
        """
        if weight.dtype != FP8:
            return None
        scale = self._by_module.get(name.removesuffix(".weight"))
        if scale is None or weight.dim() != 2:
            raise ModelError(f"{name} is in FP8 and has no scale")
        rows, size = weight.shape
        if scale.numel() == 1:
            return scale.reshape(1, 1).expand(rows, 1)
        if scale.numel() == rows and scale.shape[0] == rows:
            return scale.reshape(rows, 1)
        if tuple(scale.shape) != (-(-rows // BLOCK), -(-size // BLOCK)):
            raise ModelError(f"{name} is {tuple(weight.shape)}, and its scales are {tuple(scale.shape)}")
        return scale.repeat_interleave(BLOCK, 0)[:rows]


def is_scale(name: str) -> bool:
    """Whether a tensor of a checkpoint is a scale of another, or of activations."""
    return bool(_SCALE.search(name) or _OTHER_SCALE.search(name))


def settle(weights: Iterable[tuple[str, Tensor]], quantization: str | None, dense: torch.dtype | None) -> Named:
    """Each FP8 weight behind its scales, one a channel; other linear weights quantized if that is asked for.

    Args:
        weights: on their device; a scale [out, blocks] comes before its weight.
        quantization: "fp8" or None.
        dense: the dtype to which FP8 weights are dequantized instead; None: they stay FP8.
    """
    scales: dict[str, Tensor] = {}
    for name, tensor in weights:
        if name.endswith(".weight_scale"):
            scales[name] = tensor
            continue
        values, scale = tensor, scales.pop(f"{name}_scale", None)
        if scale is not None and dense is not None:
            values, scale = dequantize(tensor, scale, dense), None
        elif scale is not None and scale.shape[1] > 1:
            values, scale = quantize(dequantize(tensor, scale, torch.float32))
        elif scale is not None:
            scale = scale[:, 0]
        elif quantization and _LINEAR.fullmatch(name) and can_multiply(tensor):
            values, scale = quantize(tensor)
        if scale is not None:
            yield f"{name}_scale", scale
        yield name, values
