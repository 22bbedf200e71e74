"""A linear layer: y = x weight^T + bias + residual.

x         [rows, in]
weight    [out, in]
bias      [out] or None
residual  [rows, out] or None
returns   [rows, out] in the dtype of x; summed in float32; no row depends on another
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.native import find_loop

# Activations that the GPU's kernels take along, and their word for each.
GATES: dict[str, Literal["silu", "gelu"]] = {"silu": "silu", "gelu_pytorch_tanh": "gelu"}
MOST_ROWS = 1  # for more, a library's matrix product is faster than few_rows_linear
ITEM_BYTES = 64 * 1024  # of the weight that a thread takes at a time
TILE_ITEM_BYTES = 128 * 1024


def few_rows_linear(x: Tensor, weight: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """By dot products."""
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


def can_tile(weight: Tensor) -> bool:
    """Whether this machine has matrix tiles and its system lets us use them, and the weight fits them."""
    if weight.dtype != torch.bfloat16 or weight.shape[0] % 32 or weight.shape[1] % 32:
        return False
    if find_loop("tile_linear", weight.dtype, weight.device) is None:
        return False
    return bool(torch.cpu._is_amx_tile_supported() and torch.cpu._init_amx())


def pack_tiles(weight: Tensor) -> Tensor:
    """The weight [out, in] in the order in which `tile_linear` reads it: bfloat16 [out / 32, in / 32, 2, 16, 16, 2].

    Element [a, b, c, d, e, f] is weight[32 a + 16 c + e, 32 b + 2 d + f]: tiles hold pairs of inputs as rows.
    """
    outputs, inputs = weight.shape
    pairs = weight.contiguous().view(torch.int32).view(outputs // 32, 2, 16, inputs // 32, 16)
    packed = pairs.permute(0, 3, 1, 4, 2).contiguous().view(torch.bfloat16)
    return packed.view(outputs // 32, inputs // 32, 2, 16, 16, 2)


def tile_linear(x: Tensor, tiles: Tensor, bias: Tensor | None, residual: Tensor | None) -> Tensor:
    """By matrix tiles, of a weight that `can_tile` and that `pack_tiles` laid out; bfloat16."""
    loop = find_loop("tile_linear", x.dtype, x.device)
    assert loop is not None, "tiles where there is no loop for them"
    x, residual = x.contiguous(), None if residual is None else residual.contiguous()
    (rows, inputs), outputs = x.shape, tiles.shape[0] * 32
    assert inputs == tiles.shape[1] * 32, f"{inputs} inputs for a weight of {tiles.shape[1] * 32}"
    out = x.new_empty(rows, outputs)
    loop.run(
        tiles.nbytes, rows, inputs, outputs, 32 * max(1, TILE_ITEM_BYTES // (64 * inputs)),
        x.data_ptr(), tiles.data_ptr(), 0 if bias is None else bias.data_ptr(),
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
