"""A linear layer, and the choice of how a CPU multiplies it.

Measured on CPUs (bfloat16): where there are matrix tiles, our loop on a weight packed for them is the fastest for any
number of rows: 1.6 times as fast as oneDNN for 8 and 32, 1.1 times for 64 and 512. Elsewhere one row is fastest as
plain dot products, which read the weight at memory's speed; for more, oneDNN on a weight packed once is 1.2 to 1.6
times faster than oneDNN packing it every time.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.activation import gated
from octavo.kernels.linear import GATES, MOST_ROWS, can_tile, few_rows_linear, pack_tiles, tile_linear
from octavo.services.executor.models.norm import NormLayer

PACK_ROWS = 32  # rows the packed form is laid out for


class Linear:
    """y = x weight^T + bias + residual, x [rows, in], weight [out, in], residual [rows, out].

    A norm or an activation that comes before it may be given along: where there is a kernel for the whole, one does it.
    The residual may be overwritten, and is then what is returned.
    """

    def __init__(self, weight: Tensor, bias: Tensor | None = None, packed: bool = False) -> None:
        """packed: keep a second copy of the weight for oneDNN, if it packs it; tiles need but one."""
        self.bias = bias
        self._weight = weight
        self._is_tiled = can_tile(weight)
        self._packed: Tensor | None = None
        if self._is_tiled:
            self._weight = pack_tiles(weight)
        elif packed and _can_pack(weight):
            self._packed = torch.ops.mkldnn._reorder_linear_weight(weight, PACK_ROWS)

    def __call__(
        self, x: Tensor, residual: Tensor | None = None, norm: NormLayer | None = None, gate: str | None = None
    ) -> Tensor:
        """norm: of x. gate: an activation; x is then [rows, 2 * in], as `gated` takes it."""
        if x.is_cuda:
            row = of_one_row(x, self._weight, None, self.bias, residual, norm, gate)
            if row is not None:
                return row
        if norm is not None:
            x = norm(x)
        if gate is not None:
            x = gated(x, gate)
        if x.is_cuda and self.bias is None:
            return _dense_on_gpu(x, self._weight, residual)
        if self._is_tiled:
            return tile_linear(x, self._weight, self.bias, residual)
        if x.shape[0] <= MOST_ROWS:
            return few_rows_linear(x, self._weight, self.bias, residual)
        if self._packed is None:
            product: Tensor = F.linear(x, self._weight, self.bias)
            return product if residual is None else product.add_(residual)
        ops = torch.ops.mkldnn
        if residual is None:
            product = ops._linear_pointwise(x, self._packed, self.bias, "none", [], "")
        else:
            product = ops._linear_pointwise.binary(x, residual, self._packed, self.bias, "add")
        return product

    def gated(self, x: Tensor, norm: NormLayer | None, act: str) -> Tensor | None:
        """act(gate) * up of the output [rows, 2 * size], the gate first, if one kernel does it all; norm: of x."""
        return gated_at_once(x, self._weight, None, self.bias, norm, act)


def of_one_row(
    x: Tensor,
    weight: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    residual: Tensor | None,
    norm: NormLayer | None,
    gate: str | None,
) -> Tensor | None:
    """The layer by the GPU's kernel for one row; None where that does not fit. scale: [out], of an FP8 weight."""
    from octavo.kernels.gpu.linear import fits, one_row_linear

    if not fits(x, weight):
        return None
    if gate is not None:  # that `gated_at_once` does not know
        x = gated(x, gate)
    if bias is not None:
        residual = bias[None] if residual is None else residual + bias
    x, rms = _rms_of(x, norm)
    return one_row_linear(x, weight, residual, rms, scale=scale)


def gated_at_once(
    x: Tensor, weight: Tensor, scale: Tensor | None, bias: Tensor | None, norm: NormLayer | None, act: str
) -> Tensor | None:
    """act(gate) * up of the product with a weight [2 * out, in], by one kernel of the GPU; None where none fits."""
    if not x.is_cuda or bias is not None or act not in GATES:
        return None
    from octavo.kernels.gpu import gated_linear, linear

    if linear.fits(x, weight):
        x, rms = _rms_of(x, norm)
        return linear.one_row_linear(x, weight, None, rms, GATES[act], scale)
    if scale is None and gated_linear.fits(x, weight):
        return gated_linear.gated_linear(x if norm is None else norm(x), weight, GATES[act])
    return None


def _dense_on_gpu(x: Tensor, weight: Tensor, residual: Tensor | None) -> Tensor:
    from octavo.kernels.gpu import few_rows

    if few_rows.fits(x, weight):
        return few_rows.few_rows_linear(x, weight, residual)
    return F.linear(x, weight) if residual is None else residual.addmm_(x, weight.t())


def _rms_of(x: Tensor, norm: NormLayer | None) -> tuple[Tensor, tuple[Tensor | None, float] | None]:
    """The norm as the kernel takes it along, or x with it done."""
    if norm is not None and is_plain_rms(norm):
        return x, (norm.weight, norm.spec.eps)
    return x if norm is None else norm(x), None


def is_plain_rms(norm: NormLayer) -> bool:
    """Whether it is nothing but an RMS norm, as kernels that take a norm along do it."""
    return norm.bias is None and norm.spec.kind.startswith("rms")


def _can_pack(weight: Tensor) -> bool:
    """The two operators of oneDNN's packing are private to torch; without them F.linear serves."""
    has_packing = hasattr(torch.ops.mkldnn, "_linear_pointwise") and hasattr(torch.ops.mkldnn, "_reorder_linear_weight")
    return has_packing and weight.device.type == "cpu" and weight.dtype == torch.bfloat16
