"""RMS norm over the last dimension: y = x / sqrt(mean(x^2) + eps) * weight.

x        [..., size]  any float dtype
weight   [size] or None
returns  [..., size]  in the dtype of x; the mean is taken in float32
source   Zhang and Sennrich 2019, arXiv 1910.07467
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.native import find_loop, float_bits


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    if x.is_cuda and x.stride(-1) == 1:
        from octavo.kernels.gpu.rms_norm import rms_norm as on_gpu

        return on_gpu(x, weight, eps)
    loop = find_loop("rms_norm", x.dtype, x.device)
    if loop is None or (weight is not None and not weight.is_contiguous()):
        return F.rms_norm(x, (x.shape[-1],), weight, eps)
    x = x.contiguous()
    size, out = x.shape[-1], torch.empty_like(x)
    loop.run(
        2 * x.nbytes, x.numel() // size, size, x.data_ptr(),
        0 if weight is None else weight.data_ptr(), out.data_ptr(), float_bits(eps),
    )  # fmt: skip
    return out


def reference(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    wide = x.float()
    y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (y if weight is None else y * weight.float()).to(x.dtype)
