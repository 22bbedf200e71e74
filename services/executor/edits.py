"""What a request favours or forbids: biases, allowed tokens, bad words, and stop tokens before its shortest length.

Forbidden tokens get a logit far below all others but finite, so that a request which forbids everything gets a token
all the same.
"""

from array import array
from collections.abc import Iterable

import torch
from torch import Tensor

from octavo.shared.messages import NewRequest, unpack
from octavo.shared.sampling import SamplingParams

FORBIDDEN = -1e30


class Edits:
    """The edits of all slots' logits. Remembers of each slot what no step tells."""

    def __init__(self, vocab_size: int) -> None:
        self._vocab_size = vocab_size
        self._slots: dict[int, _SlotEdits] = {}

    def admit(self, requests: Iterable[NewRequest]) -> None:
        """Forget the slots' former requests."""
        for request in requests:
            self._slots.pop(request.slot, None)
            if request.params.has_edits:
                self._slots[request.slot] = _SlotEdits(request, self._vocab_size)

    def rows(self, slots: list[int]) -> list[int]:
        """Those rows whose slots have edits."""
        return [row for row, slot in enumerate(slots) if slot in self._slots] if self._slots else []

    def apply(self, logits: Tensor, slot: int, position: int) -> None:
        """Change one row in place.

        Args:
            logits: [vocab] float32.
            slot: of the row; one that `rows` names.
            position: of the token to be chosen.
        """
        self._slots[slot].apply(logits, position)

    def note(self, slot: int, token: int) -> None:
        """The token that was chosen for a slot that `rows` names."""
        self._slots[slot].output_ids.append(token)


class _SlotEdits:
    def __init__(self, request: NewRequest, vocab_size: int) -> None:
        params, token_ids = request.params, unpack(request.token_ids)
        num_prompt = len(token_ids) if request.num_prompt is None else request.num_prompt
        self.output_ids = token_ids[num_prompt:]
        self._bias = _bias(params, vocab_size)
        self._stop_ids = torch.tensor([each for each in params.stop_token_ids if each < vocab_size], dtype=torch.int64)
        self._may_stop_at = num_prompt + params.min_tokens
        self._bad_words = [unpack(word) for word in params.bad_words]

    def apply(self, logits: Tensor, position: int) -> None:
        if self._bias is not None:
            logits += self._bias
        if position < self._may_stop_at:
            logits[self._stop_ids] = FORBIDDEN
        for word in self._bad_words:
            if _follows(self.output_ids, word[:-1]) and word[-1] < len(logits):
                logits[word[-1]] = FORBIDDEN


def _bias(params: SamplingParams, vocab_size: int) -> Tensor | None:
    """What is added to the logits in every step, [vocab] float32."""
    if not params.biases and not params.allowed_token_ids:
        return None
    bias = torch.zeros(vocab_size)
    for token, value in params.biases.items():
        bias[token] += value
    if params.allowed_token_ids:
        is_allowed = torch.zeros(vocab_size, dtype=torch.bool)
        is_allowed[torch.tensor(unpack(params.allowed_token_ids), dtype=torch.int64)] = True
        bias.masked_fill_(~is_allowed, FORBIDDEN)
    return bias


def _follows(output_ids: "array[int]", beginning: "array[int]") -> bool:
    """The completion ends with the beginning of a bad word."""
    return not beginning or output_ids[-len(beginning) :] == beginning
