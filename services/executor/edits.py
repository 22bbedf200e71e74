"""What a request favours or forbids: biases, allowed tokens, bad words, a grammar, and no stop token too early.

What is forbidden becomes a mask of bits, 32 tokens an int32; what is favoured stays a list. A restriction that would
leave a request no token at all does not count.
"""

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.services.executor.grammars import ALL, Grammars
from octavo.shared.messages import NewRequest, unpack
from octavo.shared.sampling import SamplingParams

WORD = 32  # tokens of a mask's word


@dataclass(frozen=True)
class Plan:
    """The edits of some rows of logits."""

    masks: Tensor  # [rows, words] int32
    rows: list[int]  # of each bias
    token_ids: list[int]
    values: list[float]

    def masks_of(self, num_rows: int, rows: Sequence[int]) -> Tensor:
        """[num_rows, words]: these rows' masks; all is allowed in others."""
        if len(rows) == num_rows:
            return self.masks
        masks = self.masks.new_full((num_rows, self.masks.shape[1]), ALL)
        masks[rows] = self.masks
        return masks

    def add_biases(self, logits: Tensor, rows: Sequence[int]) -> None:
        """Change logits [rows, vocab] float32 in place, on the CPU. rows: which of them the plan's rows are."""
        places = (torch.tensor([rows[row] for row in self.rows]), torch.tensor(self.token_ids))
        logits.index_put_(places, torch.tensor(self.values), accumulate=True)


class Edits:
    """The edits of all slots' logits. Remembers of each slot what no step tells."""

    def __init__(self, vocab_size: int, grammars: Grammars | None = None) -> None:
        """grammars: where compiled ones are found; None: no request has one."""
        self._every = _mask(range(vocab_size), vocab_size)
        self._vocab_size, self._grammars = vocab_size, grammars
        self._slots: dict[int, _SlotEdits] = {}

    def admit(self, requests: Iterable[NewRequest]) -> None:
        """Forget the slots' former requests."""
        for request in requests:
            slot, grammar = request.slot, request.params.grammar
            self._slots.pop(slot, None)
            if request.params.has_edits:
                self._slots[slot] = edits = _SlotEdits(request, self._vocab_size)
            if self._grammars is not None:
                self._grammars.release(slot)
                if grammar:
                    self._grammars.admit(slot, grammar, edits.output_ids)

    def needs_history(self, slots: Iterable[int]) -> bool:
        """What may come next depends on tokens that came before, of one of these slots at least."""
        return any(self._slots[slot].needs_history for slot in slots)

    def forget_all(self) -> None:
        self._slots.clear()
        if self._grammars is not None:
            self._grammars.forget_all()

    def rows(self, slots: Sequence[int]) -> list[int]:
        """Those rows whose slots have edits."""
        return [row for row, slot in enumerate(slots) if slot in self._slots] if self._slots else []

    def plan(self, slots: Sequence[int], positions: Sequence[int]) -> Plan:
        """The edits of rows.

        Args:
            slots: of the rows; such as `rows` names.
            positions: of the tokens to be chosen.
        """
        plan = Plan(torch.empty(len(slots), len(self._every), dtype=torch.int32), [], [], [])
        if self._grammars is None:
            plan.masks.fill_(ALL)
        else:
            self._grammars.fill(slots, plan.masks)
        plan.masks.bitwise_and_(self._every)
        for row, (slot, position) in enumerate(zip(slots, positions, strict=True)):
            edits = self._slots[slot]
            for mask in edits.masks(position):
                both = plan.masks[row] & mask
                if both.any():
                    plan.masks[row] = both
            plan.rows.extend([row] * len(edits.params.biases))
            plan.token_ids.extend(edits.params.biases)
            plan.values.extend(edits.params.biases.values())
        return plan

    def note(self, slot: int, token: int) -> None:
        """The token that was chosen for a slot; of one without edits nothing is kept."""
        if slot in self._slots:
            self._slots[slot].output_ids.append(token)
        if self._grammars is not None:
            self._grammars.accept(slot, token)

    def take_failures(self) -> dict[int, str]:
        """Slots whose grammars failed since the last call, and why."""
        return {} if self._grammars is None else self._grammars.take_failures()


class _SlotEdits:
    def __init__(self, request: NewRequest, vocab_size: int) -> None:
        self.params, token_ids = request.params, unpack(request.token_ids)
        num_prompt = len(token_ids) if request.num_prompt is None else request.num_prompt
        self.output_ids = token_ids[num_prompt:]
        self._vocab_size = vocab_size
        self._allowed = _allowed(request.params, vocab_size)
        self._no_stop = ~_mask(request.params.stop_token_ids, vocab_size)
        self._may_stop_at = num_prompt + request.params.min_tokens
        self._bad_words = [unpack(word) for word in request.params.bad_words]
        self._begin, self._end = unpack(request.params.thinking_begin), unpack(request.params.thinking_end)
        depends = request.params.grammar or request.params.thinking_budget
        self.needs_history = bool(depends or any(len(word) > 1 for word in self._bad_words))

    def masks(self, position: int) -> Iterable[Tensor]:
        """Of tokens that may be chosen at a position; each [words] int32."""
        if self._allowed is not None:
            yield self._allowed
        if position < self._may_stop_at:
            yield self._no_stop
        if bad := [word[-1] for word in self._bad_words if _follows(self.output_ids, word[:-1])]:
            yield ~_mask(bad, self._vocab_size)
        if (forced := self._end_of_thinking()) is not None:
            yield _mask([forced], self._vocab_size)

    def _end_of_thinking(self) -> int | None:
        """The token that must come next, since reasoning has had its budget."""
        place = len(self.output_ids) - self.params.thinking_budget
        if not self.params.thinking_budget or not 0 <= place < len(self._end):
            return None
        if self.output_ids[: len(self._begin)] != self._begin:
            return None  # it does not reason
        thought = self.output_ids[: self.params.thinking_budget]
        has_ended = any(thought[i : i + len(self._end)] == self._end for i in range(len(thought)))
        return None if has_ended else self._end[place]


def _allowed(params: SamplingParams, vocab_size: int) -> Tensor | None:
    return _mask(unpack(params.allowed_token_ids), vocab_size) if params.allowed_token_ids else None


def _mask(token_ids: Iterable[int], vocab_size: int) -> Tensor:
    """The bits of these tokens, [words] int32; ids outside of the vocabulary have none."""
    bits = torch.zeros(-(-vocab_size // WORD) * WORD, dtype=torch.uint8)
    bits[torch.tensor([each for each in token_ids if 0 <= each < vocab_size], dtype=torch.int64)] = 1
    octets = (bits.view(-1, 8) << torch.arange(8, dtype=torch.uint8)).sum(-1, dtype=torch.uint8)
    return octets.view(torch.int32)  # of a little-endian machine


def _follows(output_ids: "array[int]", beginning: "array[int]") -> bool:
    """The completion ends with the beginning of a bad word."""
    return not beginning or output_ids[-len(beginning) :] == beginning
