"""FP8 (e4m3): rows of 8-bit numbers with one float32 scale each, and products of them.

quantize        x [rows, size] -> values [rows, size] float8_e4m3fn, scale [rows] float32, x = values * scale
                scale = max |x| / 448, values = x * (448 / max |x|) rounded to the nearest, ties to even
                A row of a weight [out, in] is an output channel; a row of activations is a token.
linear          y = (x values * x scale) (weight values * weight scale)^T + bias + residual
source          Micikevicius et al. 2022, arXiv 2209.05433; 448 is the largest number of e4m3
"""

import torch
from torch import Tensor

from octavo.kernels.activation import gated
from octavo.kernels.rms_norm import rms_norm

FP8 = torch.float8_e4m3fn
MOST = 448.0
LEAST = 2.0**-96  # taken for the largest number of a smaller row, so that a row of zeros has a scale
MULTIPLE = 16  # of both sizes of a weight: what the libraries' products of FP8 ask for

Quantized = tuple[Tensor, Tensor]


def quantize(x: Tensor) -> Quantized:
    """Values and scale of x [rows, size], its rows at one stride."""
    if x.is_cuda:
        from octavo.kernels.gpu.fp8_rows import quantize_rows

        return quantize_rows(x)
    return quantize_reference(x)


def quantize_normed(x: Tensor, weight: Tensor | None, eps: float) -> Quantized:
    """Of the RMS norm of x; on a GPU not rounded in between."""
    if x.is_cuda:
        from octavo.kernels.gpu.fp8_rows import quantize_rows

        return quantize_rows(x, "norm", weight, eps)
    return quantize_reference(rms_norm(x, weight, eps))


def quantize_gated(gate_up: Tensor, act: str) -> Quantized:
    """Of act(gate) * up, gate_up [rows, 2 * size]; on a GPU not rounded in between."""
    from octavo.kernels.linear import GATES

    if gate_up.is_cuda and act in GATES:
        from octavo.kernels.gpu.fp8_rows import quantize_rows

        return quantize_rows(gate_up, GATES[act])
    return quantize(gated(gate_up, act))


def can_multiply(weight: Tensor) -> bool:
    """Whether there are products for a weight of this shape."""
    return weight.dim() == 2 and weight.shape[0] % MULTIPLE == 0 and weight.shape[1] % MULTIPLE == 0


def dequantize(values: Tensor, scale: Tensor, dtype: torch.dtype) -> Tensor:
    """values * scale, rounded once; scale [rows], or [rows, blocks] for blocks of 128 numbers of a row."""
    spread = scale.reshape(len(values), -1)
    if spread.shape[1] > 1:
        spread = spread.repeat_interleave(128, 1)[:, : values.shape[1]]
    return (values.float() * spread).to(dtype)


def quantize_reference(x: Tensor) -> Quantized:
    """The formula in float32."""
    wide = x.float()
    most = wide.abs().amax(1).clamp_min(LEAST)
    limit = torch.full_like(most, MOST)  # a tensor: torch divides by a plain number by multiplying with 1 / it
    return (wide * torch.div(limit, most)[:, None]).to(FP8), torch.div(most, limit)


def linear_reference(x: Quantized, weight: Quantized, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """The formula in float64."""
    wide = [values.double() * scale.double()[:, None] for values, scale in (x, weight)]
    y = wide[0] @ wide[1].T
    if bias is not None:
        y += bias
    return y if residual is None else y + residual
