"""A norm with its weights."""

import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.rms_norm import rms_norm
from octavo.services.executor.models.spec import Norm


class NormLayer:
    """RMS or layer norm, as its spec says, over the last dimension."""

    def __init__(self, spec: Norm, weight: Tensor | None, bias: Tensor | None) -> None:
        self.spec, self.weight, self.bias = spec, weight, bias

    def __call__(self, x: Tensor) -> Tensor:
        if self.spec.kind.startswith("rms"):
            return rms_norm(x, self.weight, self.spec.eps)
        return F.layer_norm(x, (x.shape[-1],), self.weight, self.bias, self.spec.eps)
