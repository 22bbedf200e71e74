"""Gated and plain activations: y = act(gate) * up, or y = act(x).

gate_up  [tokens, 2 * size], gate first
returns  [tokens, size] in the dtype of the input
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "silu": F.silu,
    "swish": F.silu,
    "gelu": F.gelu,
    "gelu_new": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_pytorch_tanh": lambda x: F.gelu(x, approximate="tanh"),
    "gelu_fast": lambda x: F.gelu(x, approximate="tanh"),
    "relu": F.relu,
    "relu2": lambda x: F.relu(x).square(),
}


def gated(gate_up: Tensor, act: str) -> Tensor:
    gate, up = gate_up.chunk(2, -1)
    return ACTIVATIONS[act](gate).mul_(up)


def plain(x: Tensor, act: str) -> Tensor:
    return ACTIVATIONS[act](x)
