"""A linear layer of a few rows: y = x weight^T + bias + residual.

x         [rows, in]
weight    [out, in]
bias      [out] or None
residual  [rows, out] or None
returns   [rows, out] in the dtype of x; summed in float32; no row depends on another
"""

import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.native import find_loop

MOST_ROWS = 1  # for more, a library's matrix product is faster
ITEM_BYTES = 64 * 1024  # of the weight that a thread takes at a time


def few_rows_linear(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    loop = find_loop("linear", x.dtype, x.device)
    if loop is None or not (x.is_contiguous() and (residual is None or residual.is_contiguous())):
        product = F.linear(x, weight, bias)
        return product if residual is None else product.add_(residual)
    outputs, inputs = weight.shape
    row_bytes = inputs * weight.itemsize
    out = x.new_empty(x.shape[0], outputs)
    loop.run(
        outputs * row_bytes, x.shape[0], inputs, outputs, max(1, ITEM_BYTES // row_bytes), row_bytes,
        x.data_ptr(), weight.data_ptr(), 0 if bias is None else bias.data_ptr(),
        0 if residual is None else residual.data_ptr(), out.data_ptr(),
    )  # fmt: skip
    return out


def reference(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """The formula in float64."""
    y = x.double() @ weight.double().T
    if bias is not None:
        y += bias
    if residual is not None:
        y += residual
    return y.to(x.dtype)
