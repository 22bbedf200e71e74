"""Logits to token ids, each row by its own request's parameters."""

import torch
from torch import Tensor

from octavo.kernels.sampling import sample
from octavo.shared.sampling import SamplingParams


def choose(logits: Tensor, params: list[SamplingParams], positions: list[int]) -> Tensor:
    """One token a row, [rows] int64.

    Args:
        logits: [rows, vocab], any float dtype.
        params: of each row.
        positions: of each row's new token; with the seed they key the draw.
    """
    drawn = [row for row, each in enumerate(params) if not each.is_greedy]
    tokens = logits.max(-1).indices if len(drawn) < len(params) else torch.empty(len(params), dtype=torch.int64)
    if drawn:
        rows = torch.tensor(drawn)
        tokens[rows] = draw(logits[rows], [params[row] for row in drawn], [positions[row] for row in drawn])
    return tokens


def draw(logits: Tensor, params: list[SamplingParams], positions: list[int]) -> Tensor:
    """As `choose`, of rows none of which is greedy."""
    device = logits.device
    return sample(
        logits,
        torch.tensor([each.temperature for each in params], device=device),
        torch.tensor([each.top_k for each in params], device=device),
        torch.tensor([each.top_p for each in params], device=device),
        torch.tensor([each.min_p for each in params], device=device),
        [each.seed for each in params],
        positions,
    )
