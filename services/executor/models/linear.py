"""A linear layer, and the choice of how a CPU multiplies it.

Measured on CPUs (bfloat16): one row is fastest as plain dot products, which read the weight at memory's
speed; for more, oneDNN on a weight packed once is 1.2 to 1.6 times faster than oneDNN packing it every time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.linear import MOST_ROWS, few_rows_linear

PACK_ROWS = 32  # rows the packed form is laid out for


class Linear:
    """y = x weight^T + bias + residual, x [rows, in], weight [out, in], residual [rows, out].

    The residual may be overwritten, and is then what is returned.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, packed: bool = False) -> None:
        self.weight = weight
        self.bias = bias
        self._packed = _pack(weight) if packed else None

    def __call__(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        if x.is_cuda and residual is not None and self.bias is None:
            return residual.addmm_(x, self.weight.t())
        if x.shape[0] <= MOST_ROWS:
            return few_rows_linear(x, self.weight, self.bias, residual)
        if self._packed is None:
            product: Tensor = F.linear(x, self.weight, self.bias)
            return product if residual is None else product.add_(residual)
        ops = torch.ops.mkldnn
        if residual is None:
            product = ops._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        else:
            product = ops._linear_pointwise.binary(x, residual, self._packed, self.bias, "add")
        return product


def can_pack(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and _has_packing()


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, PACK_ROWS)
    return packed


def _has_packing() -> bool:
    """These two operators are private to torch; without them F.linear serves."""
    return hasattr(torch.ops.mkldnn, "_linear_pointwise") and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
