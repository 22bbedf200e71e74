"""Changes to a Decoder: a family is another family's spec with some of these applied to it.

Each returns a new Decoder.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Literal

from octavo.services.executor.models.families.registry import Config
from octavo.services.executor.models.spec import Attention, Decoder, Layer, Mlp, Norm, NormPlace, Rope

SLIDING, FULL = "sliding_attention", "full_attention"


def each(spec: Decoder, change: Callable[[int, Layer], Layer]) -> Decoder:
    """Every layer changed; `change` is told its index."""
    return replace(spec, layers=tuple(change(i, layer) for i, layer in enumerate(spec.layers)))


def attend(spec: Decoder, change: Callable[[Attention], Attention]) -> Decoder:
    """The attention of every layer changed."""
    return each(spec, lambda i, layer: replace(layer, attention=change(layer.attention)))


def feed(spec: Decoder, change: Callable[[Mlp], Mlp]) -> Decoder:
    """The mlp of every layer changed."""
    return each(spec, lambda i, layer: replace(layer, mlp=change(layer.mlp)))


def norms(spec: Decoder, *places: NormPlace, parallel: bool = False) -> Decoder:
    """Norms at these places, and attention and mlp in a row or in parallel."""
    return each(spec, lambda i, layer: replace(layer, norms=places, parallel=parallel))


def biases(spec: Decoder, qkv: bool, out: bool, mlp: bool) -> Decoder:
    """Biases on the projections named."""
    spec = attend(spec, lambda attention: replace(attention, qkv_bias=qkv, out_bias=out))
    return feed(spec, lambda mlp_spec: replace(mlp_spec, bias=mlp))


def ungated(spec: Decoder) -> Decoder:
    """Feed-forward without a gate."""
    return feed(spec, lambda mlp: replace(mlp, gated=False))


def norm_heads(spec: Decoder, kind: Literal["head", "all", "head_after_rope"], norm: Norm) -> Decoder:
    """Norms like `norm` on queries and keys."""
    return attend(spec, lambda attention: replace(attention, qk_norm=kind, qk_norm_like=norm))


def windows(spec: Decoder, config: Config, kinds: Sequence[str] | None = None) -> Decoder:
    """The config's sliding window on the layers whose kind is sliding; on all of them without kinds."""
    size: int | None = config.get("sliding_window")

    def narrow(i: int, layer: Layer) -> Layer:
        is_sliding = kinds is None or kinds[i] == SLIDING
        return replace(layer, attention=replace(layer.attention, window=size if is_sliding else None))

    return each(spec, narrow)


def sliding_rope(spec: Decoder, kinds: Sequence[str], rope: Rope) -> Decoder:
    """These rotary positions on the sliding layers."""

    def turn(i: int, layer: Layer) -> Layer:
        return replace(layer, attention=replace(layer.attention, rope=rope)) if kinds[i] == SLIDING else layer

    return each(spec, turn)


def without_rope(spec: Decoder, is_without: Callable[[int], bool]) -> Decoder:
    """No rotary positions on the layers whose index satisfies `is_without`."""

    def strip(i: int, layer: Layer) -> Layer:
        return replace(layer, attention=replace(layer.attention, rope=None)) if is_without(i) else layer

    return each(spec, strip)


def interleaved(spec: Decoder) -> Decoder:
    """Rotary pairs (0, 1), (2, 3) … on every layer that has them."""

    def turn(attention: Attention) -> Attention:
        rope = attention.rope
        return replace(attention, rope=replace(rope, interleaved=True)) if rope else attention

    return attend(spec, turn)
