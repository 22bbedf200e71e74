"""Rotary position embedding of the first `dim` dimensions of each head.

x        [tokens, heads, head_dim]
cos, sin [tokens, 1, dim]  in the dtype of x, both halves filled; see `tables`
returns  [tokens, heads, head_dim], a new tensor

Half style rotates the pairs (i, i + dim/2), interleaved style the pairs (2i, 2i + 1).
source   Su et al. 2021, arXiv 2104.09864
"""

import torch
from torch import Tensor

from octavo.kernels.native import find_loop


def rope(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool = False) -> Tensor:
    loop = find_loop("rope", x.dtype, x.device)
    if loop is None or x.stride(-1) != 1 or not (cos.is_contiguous() and sin.is_contiguous()):
        return _rope_in_torch(x, cos, sin, interleaved)
    out = x.new_empty(x.shape)
    loop.run(
        2 * out.nbytes, *x.shape, cos.shape[-1], *x.stride()[:2], int(interleaved),
        x.data_ptr(), cos.data_ptr(), sin.data_ptr(), out.data_ptr(),
    )  # fmt: skip
    return out


def tables(angles: Tensor, scale: float, interleaved: bool = False) -> tuple[Tensor, Tensor]:
    """cos and sin as `rope` wants them, float32 [positions, dim], from angles [positions, dim/2].

    The sine carries the sign of the rotation, so that a rotation is one product and one multiply-add.
    """
    cos, sin = angles.cos() * scale, angles.sin() * scale
    if interleaved:
        return cos.repeat_interleave(2, -1), torch.stack((-sin, sin), -1).flatten(-2)
    return torch.cat((cos, cos), -1), torch.cat((-sin, sin), -1)


def reference(x: Tensor, angles: Tensor, scale: float, interleaved: bool = False) -> Tensor:
    """The rotation written out in float32. angles: [tokens, dim/2]."""
    dim = 2 * angles.shape[-1]
    turned, rest = x[..., :dim].float(), x[..., dim:]
    cos, sin = angles.cos()[:, None] * scale, angles.sin()[:, None] * scale
    a, b = (turned[..., 0::2], turned[..., 1::2]) if interleaved else turned.chunk(2, -1)
    a, b = a * cos - b * sin, b * cos + a * sin
    turned = torch.stack((a, b), -1).flatten(-2) if interleaved else torch.cat((a, b), -1)
    return torch.cat((turned.to(x.dtype), rest), -1)


def _rope_in_torch(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
    dim = cos.shape[-1]
    if dim < x.shape[-1]:
        return torch.cat((_rope_in_torch(x[..., :dim], cos, sin, interleaved), x[..., dim:]), -1)
    if interleaved:
        swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)  # type: ignore[no-untyped-call]  # torch's own
    else:
        swapped = x.roll(dim // 2, -1)
    return torch.addcmul(x * cos, swapped, sin)
