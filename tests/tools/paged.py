"""Requests' keys and values in pages, and attention over them by the formula: what tests of GPU kernels share."""

import math

import torch
from torch import Tensor

# Relative error of the whole output: ||out - ref|| / ||ref||.
TOLERANCE = {torch.bfloat16: 6e-3, torch.float16: 1e-3, torch.float32: 5e-6}
FP8 = torch.float8_e4m3fn
FP8_TOLERANCE = 1e-3  # float16 is multiplied then, whatever the output is


def close(out: Tensor, reference: Tensor, tolerance: float = 0.0) -> None:
    assert out.shape == reference.shape and not out.isnan().any()
    error = (out.double() - reference).norm() / reference.norm()
    assert error < max(tolerance, TOLERANCE[out.dtype]), f"relative error {error:.1e}"


class Paged:
    """Random keys and values of requests, in pages in random order; blocks of others hold NaN.

    dense: [2][requests], keys and values as attention is to see them, [length, kv_heads, dim] float64.
    """

    def __init__(
        self,
        lengths: list[int],
        kv_heads: int,
        dim: int,
        dtype: torch.dtype,
        page: int = 64,
        scales: tuple[float, float] = (1.0, 1.0),
        device: str = "cuda",
    ) -> None:
        from octavo.kernels.gpu.decode_attention import page_boxes

        self.scales = scales
        most = -(-max(lengths) // page)
        blocks = torch.randperm(len(lengths) * most + 3)[: len(lengths) * most].view(len(lengths), most)
        self.slots = torch.randperm(len(lengths)).int()
        self.tables = torch.empty_like(blocks).int()
        self.tables[self.slots.long()] = blocks.int()
        shape = (len(lengths) * most + 3, kv_heads, page, dim)
        caches = [torch.full(shape, math.nan, device=device) for _ in range(2)]
        self.dense: list[list[Tensor]] = [[], []]
        for request, length in enumerate(lengths):
            for cache, dense, scale in zip(caches, self.dense, scales, strict=True):
                values = torch.randn(length, kv_heads, dim, device=device).to(dtype)
                dense.append(values.double() * scale)
                for start in range(0, length, page):
                    some = values[start : start + page].transpose(0, 1)
                    # Behind the end lies a number, by contract, but a large one.
                    cache[int(blocks[request, start // page])] = 400.0
                    cache[int(blocks[request, start // page]), :, : some.shape[1]] = some.float()
        self.keys, self.values = (cache.to(dtype) for cache in caches)
        self.key_boxes, self.value_boxes = page_boxes(self.keys), page_boxes(self.values)
        self.tables, self.slots = self.tables.to(device), self.slots.to(device)

    def share(self, requests: range, pages: int) -> None:
        """Have requests begin with the first one's pages, so many of them."""
        positions = pages * self.keys.shape[2]
        slots = self.slots.long()
        for request in requests[1:]:
            self.tables[slots[request], :pages] = self.tables[slots[requests[0]], :pages]
            for dense in self.dense:
                dense[request][:positions] = dense[requests[0]][:positions]


def attend(
    q: Tensor,
    keys: Tensor,
    values: Tensor,
    scale: float,
    window: int | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    slopes: Tensor | None = None,
) -> Tensor:
    """The last len(q) positions of one request; q [n, heads, dim], keys and values [length, kv_heads, dim], float64."""
    group = q.shape[1] // keys.shape[1]
    keys, values = keys.repeat_interleave(group, 1), values.repeat_interleave(group, 1)
    scores = torch.einsum("nhd,lhd->hnl", q, keys) * scale
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    own = torch.arange(len(keys) - len(q), len(keys), device=q.device)[:, None]
    others = torch.arange(len(keys), device=q.device)
    if slopes is not None:
        scores = scores + slopes.double()[:, None, None] * (others - own)
    seen = others <= own
    if window is not None:
        seen = seen & (others > own - window)
    weights = scores.masked_fill(~seen, -math.inf).exp()
    total = weights.sum(-1, keepdim=True)
    if sinks is not None:
        total = total + sinks.double().exp()[:, None, None]
    return torch.einsum("hnl,lhd->nhd", weights / total, values)
