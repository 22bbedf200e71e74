"""RMS norm over the last dimension: y = x / sqrt(mean(x^2) + eps) * weight.

x        [..., size]  any float dtype
weight   [size] or None
returns  [..., size]  in the dtype of x; the mean is taken in float32
source   Zhang and Sennrich 2019, arXiv 1910.07467
"""

import torch
import torch.nn.functional as F
from torch import Tensor


def rms_norm(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), weight, eps)


def reference(x: Tensor, weight: Tensor | None, eps: float) -> Tensor:
    wide = x.float()
    y = wide * torch.rsqrt(wide.square().mean(-1, keepdim=True) + eps)
    return (y if weight is None else y * weight.float()).to(x.dtype)
