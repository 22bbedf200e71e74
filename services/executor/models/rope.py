"""Rotary frequencies: angle = position * frequency, with the scalings that stretch a trained context.

Rotating the heads is the decoder's business, or a kernel's.
"""

import math

import torch
from torch import Tensor

from octavo.services.executor.models.spec import Llama3Scaling, Rope, TableScaling, YarnScaling


def frequencies(rope: Rope) -> tuple[Tensor, float]:
    """The angle per position of each pair, float32 [dim / 2], and what to multiply cos and sin by.

    Same numbers as transformers' modeling_rope_utils.py. Each scaling's source is at its class in spec.py.
    """
    unscaled = 1.0 / rope.theta ** (torch.arange(0, rope.dim, 2).float() / rope.dim)  # [dim / 2]
    match rope.scaling:
        case None:
            return unscaled, 1.0
        case Llama3Scaling():
            return _llama3(unscaled, rope.scaling), 1.0
        case YarnScaling():
            return _yarn(unscaled, rope, rope.scaling), rope.scaling.magnitude
        case TableScaling(divisors):
            return unscaled / torch.tensor(divisors), 1.0
        case linear:
            return unscaled / linear.factor, 1.0


def _llama3(unscaled: Tensor, scaling: Llama3Scaling) -> Tensor:
    turns = scaling.original_positions * unscaled / (2 * math.pi)  # in the trained context
    low, high = scaling.low_freq_factor, scaling.high_freq_factor
    keep = ((turns - low) / (high - low)).clamp(0, 1)
    return unscaled * (keep + (1 - keep) / scaling.factor)


def _yarn(unscaled: Tensor, rope: Rope, scaling: YarnScaling) -> Tensor:
    def pair_with(turns: float) -> float:
        """The pair that makes this many turns in the trained context."""
        wavelength = scaling.original_positions / (turns * 2 * math.pi)
        return rope.dim * math.log(wavelength) / (2 * math.log(rope.theta))

    low, high = pair_with(scaling.beta_fast), pair_with(scaling.beta_slow)
    if scaling.truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, rope.dim - 1)
    ramp = ((torch.arange(rope.dim // 2) - low) / (high - low or 1e-3)).clamp(0, 1)  # [dim / 2]
    return unscaled * (1 - ramp) + unscaled / scaling.factor * ramp
