"""Gated and plain activations: y = act(gate) * up, or y = act(x).

gate_up  [tokens, 2 * size], gate first
returns  [tokens, size] in the dtype of the input
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor

from octavo.kernels.native import find_loop

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
# Those that the loop knows, and its word for each.
_IN_LOOP = {"silu": 0, "swish": 0, "gelu_new": 1, "gelu_pytorch_tanh": 1, "gelu_fast": 1}


def gated(gate_up: Tensor, act: str) -> Tensor:
    if gate_up.is_cuda and act in _IN_LOOP and gate_up.is_contiguous():
        from octavo.kernels.gpu.activation import gated as on_gpu

        return on_gpu(gate_up, is_gelu=_IN_LOOP[act] == 1)
    loop = find_loop("gated", gate_up.dtype, gate_up.device) if act in _IN_LOOP else None
    if loop is None or not gate_up.is_contiguous():
        gate, up = gate_up.chunk(2, -1)
        return ACTIVATIONS[act](gate).mul_(up)
    tokens, size = gate_up.shape[0], gate_up.shape[1] // 2
    out = gate_up.new_empty(tokens, size)
    loop.run(3 * out.nbytes, tokens, size, gate_up.data_ptr(), out.data_ptr(), _IN_LOOP[act])
    return out


def plain(x: Tensor, act: str) -> Tensor:
    return ACTIVATIONS[act](x)


def reference(gate_up: Tensor, act: str) -> Tensor:
    """The formula in float32, rounded once."""
    gate, up = gate_up.float().chunk(2, -1)
    return (ACTIVATIONS[act](gate) * up).to(gate_up.dtype)
