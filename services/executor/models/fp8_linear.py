"""A linear layer whose weight is FP8, on a GPU, and the choice of how it is multiplied.

One row is not quantized: its time is that of reading the weight, which is converted on the way. More rows are, each by
its own largest number, in the kernel that computes the norm or the activation before the layer. Few of them are
multiplied by a kernel of ours that reads the weight at memory's speed, more by the library's product.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.fp8 import FP8, MULTIPLE, Quantized, quantize, quantize_gated, quantize_normed
from octavo.services.executor.models.linear import gated_at_once, is_plain_rms, of_one_row
from octavo.services.executor.models.norm import NormLayer

FEW_ROWS = 16  # up to which our kernel multiplies; `benchmarks/fp8.py` times both


class Fp8Linear:
    """y = x weight^T + bias + residual, as `Linear`; for bfloat16."""

    def __init__(self, values: Tensor, scale: Tensor, bias: Tensor | None = None) -> None:
        """values: [out, in] float8_e4m3fn, both sizes multiples of 16; scale: [out] float32."""
        self.bias = bias
        self._values, self._scale = values.contiguous(), scale.contiguous()

    def __call__(
        self, x: Tensor, residual: Tensor | None = None, norm: NormLayer | None = None, gate: str | None = None
    ) -> Tensor:
        """norm: of x. gate: an activation; x is then [rows, 2 * in], as `gated` takes it."""
        from octavo.kernels.gpu.fp8_linear import few_rows_linear, fits

        row = of_one_row(x, self._values, self._scale, self.bias, residual, norm, gate)
        if row is not None:
            return row
        rows = _quantized(x, norm, gate)
        if len(x) <= FEW_ROWS and fits(len(x), self._values):
            return few_rows_linear(rows, (self._values, self._scale), self.bias, residual, x.dtype)
        return many_rows_linear(rows, (self._values, self._scale), self.bias, residual, x.dtype)

    def gated(self, x: Tensor, norm: NormLayer | None, act: str) -> Tensor | None:
        """act(gate) * up of the output [rows, 2 * size], the gate first, if one kernel does it all; norm: of x."""
        return gated_at_once(x, self._values, self._scale, self.bias, norm, act)


def many_rows_linear(
    x: Quantized, weight: Quantized, bias: Tensor | None, residual: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """By torch's product of FP8, which has no place for a residual, and wants whole sixteens of rows.

    Of only sixteen, with a bias and many inputs, cuBLASLt has no product.
    """
    (values, scale), (weight_values, weight_scale) = x, weight
    num_rows = len(values)
    if more := max(2 * MULTIPLE - num_rows, -num_rows % MULTIPLE):
        values, scale = F.pad(values.view(torch.uint8), (0, 0, 0, more)).view(FP8), F.pad(scale, (0, more))
    product = torch._scaled_mm(
        values, weight_values.t(), scale[:, None], weight_scale[None, :], bias, out_dtype=dtype, use_fast_accum=True
    )[:num_rows]
    return product if residual is None else residual.add_(product)


def _quantized(x: Tensor, norm: NormLayer | None, gate: str | None) -> Quantized:
    if norm is not None:
        return quantize_normed(x, norm.weight, norm.spec.eps) if is_plain_rms(norm) else quantize(norm(x))
    return quantize(x) if gate is None else quantize_gated(x, gate)
