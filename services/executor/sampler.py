"""Logits to token ids, each row by its own request's parameters; and the logprobs that requests ask for.

`gpu/sampler.py` does the same on a GPU, within the step.
"""

import struct
from collections.abc import Sequence

import torch
from torch import Tensor

from octavo.kernels.sampling import GENERATED, count_tokens, logprobs, max_distance, penalise, sample
from octavo.services.executor.edits import Edits
from octavo.services.executor.grammars import Grammars
from octavo.shared.messages import NewRequest, unpack
from octavo.shared.sampling import SamplingParams


class Sampler:
    """Chooses tokens; remembers the counts of tokens of those slots whose requests have penalties, and their edits."""

    def __init__(self, vocab_size: int, grammars: Grammars | None = None) -> None:
        self._vocab_size = vocab_size
        self._counts: dict[int, Tensor] = {}
        self._edits = Edits(vocab_size, grammars)

    def admit(self, requests: Sequence[NewRequest]) -> None:
        self._edits.admit(requests)
        for request in requests:
            self._counts.pop(request.slot, None)
            if request.params.has_penalties:
                self._counts[request.slot] = counts_of(request, self._vocab_size)

    def forget_all(self) -> None:
        self._counts.clear()
        self._edits.forget_all()

    def take_failures(self) -> dict[int, str]:
        """Slots whose requests cannot go on since the last call, and why."""
        return self._edits.take_failures()

    def choose(self, logits: Tensor, slots: list[int], params: list[SamplingParams], positions: list[int]) -> Tensor:
        """One token a row, [rows] int64.

        Args:
            logits: [rows, vocab], any float dtype.
            slots, params: of each row.
            positions: of each row's new token; with the seed they key the draw.
        """
        penalised = [row for row, each in enumerate(params) if each.has_penalties]
        edited = self._edits.rows(slots)
        plan = self._edits.plan([slots[row] for row in edited], [positions[row] for row in edited]) if edited else None
        if penalised or (plan is not None and plan.rows):
            logits = logits.to(torch.float32, copy=True)
        if plan is not None and plan.rows:
            plan.add_biases(logits, edited)
        if penalised:
            chosen = [params[row] for row in penalised]
            logits[penalised] = penalise(
                logits[penalised], torch.stack([self._counts[slots[row]] for row in penalised]),
                torch.tensor([each.repetition_penalty for each in chosen]),
                torch.tensor([each.frequency_penalty for each in chosen]),
                torch.tensor([each.presence_penalty for each in chosen]),
            )  # fmt: skip
        masks = None if plan is None else plan.masks_of(len(slots), edited)
        if masks is None and all(each.is_greedy for each in params):
            tokens = logits.max(-1).indices
        else:
            tokens = _draw(logits, params, positions, masks)
        for row in penalised:
            self._counts[slots[row]][tokens[row]] += GENERATED
        chosen_ids = tokens.tolist() if edited else []
        for row in edited:
            self._edits.note(slots[row], chosen_ids[row])
        return tokens


def logprobs_of(logits: Tensor, tokens: Tensor, slots: list[int], params: list[SamplingParams]) -> dict[int, bytes]:
    """Of the slots that ask for them, as StepResult has them; of the logits as the model gives them.

    Args:
        logits: [rows, vocab], any float dtype.
        tokens: [rows] int64.
        slots, params: of each row.
    """
    rows = [row for row, each in enumerate(params) if each.logprobs is not None]
    if not rows:
        return {}
    num_top = [min(params[row].logprobs or 0, logits.shape[-1]) for row in rows]
    chosen, top, top_ids = logprobs(logits[rows], tokens[rows], max(num_top))
    columns = zip(rows, num_top, chosen.tolist(), top.tolist(), top_ids.tolist(), strict=True)
    return {slots[row]: pack_logprobs(number, *of_row) for row, number, *of_row in columns}


def prompt_logprobs_of(logits: Tensor, token_ids: Tensor, num_top: int) -> bytes:
    """Of consecutive tokens of a prompt, as StepResult has them.

    Args:
        logits: [tokens, vocab], any float dtype; those of the position before each token.
        token_ids: [tokens] int64.
        num_top: how many of the likeliest tokens are told.
    """
    return pack_prompt_logprobs(num_top, *ranked_logprobs(logits, token_ids, num_top))


def ranked_logprobs(logits: Tensor, token_ids: Tensor, num_top: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Ranks of tokens, 1 for the likeliest, [tokens] int64; then as `octavo.kernels.sampling.logprobs`."""
    ranks = 1 + (logits > logits.gather(-1, token_ids[:, None])).sum(-1)
    return ranks, *logprobs(logits, token_ids, num_top)


def pack_prompt_logprobs(num_top: int, *columns: Tensor) -> bytes:
    """What `ranked_logprobs` gives, as StepResult has it."""
    rows = zip(*(column.tolist() for column in columns), strict=True)
    return b"".join(struct.pack("<i", rank) + pack_logprobs(num_top, *of_token) for rank, *of_token in rows)


def pack_logprobs(num_top: int, chosen: float, top: list[float], top_ids: list[int]) -> bytes:
    """Of one token, as `octavo.shared.messages.logprob_bytes` says; top and top_ids may be longer."""
    return struct.pack(f"<{1 + num_top}f{num_top}i", chosen, *top[:num_top], *top_ids[:num_top])


def counts_of(request: NewRequest, vocab_size: int) -> Tensor:
    """The counts of a request's known tokens, [vocab] int32."""
    token_ids = torch.tensor(unpack(request.token_ids), dtype=torch.int64)
    num_prompt = len(token_ids) if request.num_prompt is None else request.num_prompt
    return count_tokens(token_ids, num_prompt, vocab_size)


def _draw(logits: Tensor, params: list[SamplingParams], positions: list[int], masks: Tensor | None) -> Tensor:
    return sample(
        logits,
        torch.tensor([0.0 if each.is_greedy else each.temperature for each in params], dtype=torch.float64),
        torch.tensor([each.top_k for each in params]),
        torch.tensor([each.top_p for each in params]),
        torch.tensor([max_distance(each.temperature, each.min_p) for each in params], dtype=torch.float32),
        [each.seed for each in params],
        positions,
        masks,
    )
