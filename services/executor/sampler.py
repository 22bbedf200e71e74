"""Logits to token ids, each row by its own request's parameters; and the logprobs that requests ask for.

`gpu/sampler.py` does the same on a GPU, within the step.
"""

import sys
from array import array
from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from octavo.kernels.sampling import GENERATED, count_tokens, logprobs, max_distance, penalise, sample
from octavo.shared.messages import NewRequest, pack, unpack
from octavo.shared.sampling import SamplingParams


class Sampler:
    """Chooses tokens; remembers the counts of tokens of those slots whose requests have penalties."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._counts: dict[int, Tensor] = {}

    def admit(self, requests: Iterable[NewRequest]) -> None:
        for request in requests:
            self._counts.pop(request.slot, None)
            if request.params.has_penalties:
                self._counts[request.slot] = counts_of(request, self._vocab_size)

    def choose(self, logits: Tensor, slots: list[int], params: list[SamplingParams], positions: list[int]) -> Tensor:
        """One token a row, [rows] int64.

        Args:
            logits: [rows, vocab], any float dtype.
            slots, params: of each row.
            positions: of each row's new token; with the seed they key the draw.
        """
        penalised = [row for row, each in enumerate(params) if each.has_penalties]
        if penalised:
            logits = logits.float().clone()
            chosen = [params[row] for row in penalised]
            logits[penalised] = penalise(
                logits[penalised], torch.stack([self._counts[slots[row]] for row in penalised]),
                torch.tensor([each.repetition_penalty for each in chosen]),
                torch.tensor([each.frequency_penalty for each in chosen]),
                torch.tensor([each.presence_penalty for each in chosen]),
            )  # fmt: skip
        drawn = [row for row, each in enumerate(params) if not each.is_greedy]
        tokens = logits.max(-1).indices if len(drawn) < len(params) else torch.empty(len(params), dtype=torch.int64)
        if drawn:
            rows = torch.tensor(drawn)
            tokens[rows] = _draw(logits[rows], [params[row] for row in drawn], [positions[row] for row in drawn])
        for row in penalised:
            self._counts[slots[row]][tokens[row]] += GENERATED
        return tokens


class Logprobs(NamedTuple):
    """The columns of StepResult that only some requests ask for."""

    logprob_slots: bytes = b""
    num_top: bytes = b""
    logprobs: bytes = b""
    top_ids: bytes = b""


def logprobs_of(logits: Tensor, tokens: Tensor, slots: list[int], params: list[SamplingParams]) -> Logprobs:
    """Of the rows that ask for them; of the logits without penalties and temperature.

    Args:
        logits: [rows, vocab], any float dtype.
        tokens: [rows] int64.
        slots, params: of each row.
    """
    rows = [row for row, each in enumerate(params) if each.logprobs is not None]
    if not rows:
        return Logprobs()
    num_top = [min(params[row].logprobs or 0, logits.shape[-1]) for row in rows]
    chosen, top, top_ids = logprobs(logits[rows], tokens[rows], max(num_top))
    return logprob_columns([slots[row] for row in rows], num_top, chosen.tolist(), top.tolist(), top_ids.tolist())


def logprob_columns(
    slots: list[int], num_top: list[int], chosen: list[float], top: list[list[float]], top_ids: list[list[int]]
) -> Logprobs:
    """Of slots that ask for logprobs; of each, top and top_ids have as many tokens as any of them asks for."""
    values, ids = array("f"), array("i")
    for row, number in enumerate(num_top):
        values.append(chosen[row])
        values.extend(top[row][:number])
        ids.extend(top_ids[row][:number])
    if sys.byteorder == "big":
        values.byteswap()
    return Logprobs(pack(slots), pack(num_top), values.tobytes(), pack(ids))


def counts_of(request: NewRequest, vocab_size: int) -> Tensor:
    """The counts of a request's known tokens, [vocab] int32."""
    token_ids = torch.tensor(unpack(request.token_ids), dtype=torch.int64)
    num_prompt = len(token_ids) if request.num_prompt is None else request.num_prompt
    return count_tokens(token_ids, num_prompt, vocab_size)


def _draw(logits: Tensor, params: list[SamplingParams], positions: list[int]) -> Tensor:
    """As `Sampler.choose`, of rows none of which is greedy."""
    return sample(
        logits,
        torch.tensor([each.temperature for each in params], dtype=torch.float64),
        torch.tensor([each.top_k for each in params]),
        torch.tensor([each.top_p for each in params]),
        torch.tensor([max_distance(each.temperature, each.min_p) for each in params], dtype=torch.float32),
        [each.seed for each in params],
        positions,
    )
