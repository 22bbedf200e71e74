"""A linear layer, and the choice of how a CPU multiplies it.

Measured on CPUs (bfloat16): with one row the plain kernel streams the weight 1.6 times faster than oneDNN; with more
rows oneDNN on a weight packed once is 1.2 to 1.6 times faster than oneDNN packing it at each call. The plain kernel
is chosen for a whole step by `single_row`, for the switch is global to the process.
"""

from contextlib import AbstractContextManager, nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor

PACK_ROWS = 32  # rows the packed form is laid out for


class Linear:
    """y = x weight^T + bias, x [rows, in], weight [out, in]."""

    def __init__(self, weight: Tensor, bias: Tensor | None = None, packed: bool = False) -> None:
        self.weight = weight
        self.bias = bias
        self._packed = _pack(weight) if packed else None

    def __call__(self, x: Tensor) -> Tensor:
        if self._packed is None or x.shape[0] == 1:
            return F.linear(x, self.weight, self.bias)
        product: Tensor = torch.ops.mkldnn._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        return product


def can_pack(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16 and _has_packing()


def single_row(rows: int, dtype: torch.dtype) -> AbstractContextManager[None]:
    """Where products of one bfloat16 row run: oneDNN is off inside."""
    if rows == 1 and dtype == torch.bfloat16:
        return torch.backends.mkldnn.flags(enabled=False)  # type: ignore[no-untyped-call]  # torch's own
    return nullcontext()


def _pack(weight: Tensor) -> Tensor:
    packed: Tensor = torch.ops.mkldnn._reorder_linear_weight(weight, PACK_ROWS)
    return packed


def _has_packing() -> bool:
    """These two operators are private to torch; without them F.linear serves."""
    return hasattr(torch.ops.mkldnn, "_linear_pointwise") and hasattr(
        torch.ops.mkldnn, "_reorder_linear_weight"
    )
