"""The sampler of the GPU engine: each slot's parameters on the device, and the kernels that choose by them.

Nothing here waits for the device. Counts of tokens are made only for requests with penalties: one table each.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from octavo.kernels.gpu.logprobs import logprobs
from octavo.kernels.gpu.masks import masked_rows
from octavo.kernels.gpu.sampler_state import COLUMNS, pack_state
from octavo.kernels.gpu.sampling import sample
from octavo.kernels.sampling import max_distance
from octavo.services.executor.edits import Edits
from octavo.services.executor.grammars import Grammars
from octavo.services.executor.sampler import counts_of, pack_logprobs
from octavo.shared.messages import ModelInfo, NewRequest
from octavo.shared.sampling import MAX_LOGPROBS, SamplingParams

HELD_ROWS = 64  # edited at once: their logits are wide


@dataclass
class PendingLogprobs:
    """On their way to the host; there once the step's event is."""

    slots: list[int]
    rows: list[int]
    num_top: list[int]
    buffers: tuple[Tensor, Tensor, Tensor]  # pinned: [rows] and twice [rows, MAX_LOGPROBS]

    def by_slot(self) -> dict[int, bytes]:
        columns = (each[self.rows].tolist() for each in self.buffers)
        rows = zip(self.slots, self.num_top, *columns, strict=True)
        return {slot: pack_logprobs(number, *of_row) for slot, number, *of_row in rows}


class GpuSampler:
    """Chooses tokens within the step, in a CUDA graph or without."""

    def __init__(self, info: ModelInfo, device: torch.device, ring: int, grammars: Grammars | None = None) -> None:
        """ring: steps whose results may be on their way. grammars: where compiled ones are found."""
        self._vocab_size, self._device = info.vocab_size, device
        # The last row belongs to no slot: a greedy request stands for rows that only fill up a graph's batch.
        self._state = torch.zeros(info.num_slots + 1, COLUMNS, dtype=torch.int32, device=device)
        self._counts: dict[int, Tensor] = {}
        self._num_top: dict[int, int] = {}  # of slots whose requests ask for logprobs
        self.edits = Edits(info.vocab_size, grammars)
        self._logprobs = _logprob_buffers(info.num_slots, device=device)
        self._pinned = [_logprob_buffers(info.num_slots, pin_memory=True) for _ in range(ring)]

    def admit(self, requests: Sequence[NewRequest]) -> list[int]:
        """The rows of state of new requests, to be uploaded and given to `write`. Prepares the counts of those with
        penalties on the current stream."""
        rows: list[int] = []
        self.edits.admit(requests)
        for request in requests:
            address = 0
            self._num_top.pop(request.slot, None)
            if request.params.logprobs is not None:
                self._num_top[request.slot] = min(request.params.logprobs, self._vocab_size)
            if request.params.has_penalties:
                table = self._counts.get(request.slot)
                if table is None:
                    table = torch.empty(self._vocab_size, dtype=torch.int32, device=self._device)
                    self._counts[request.slot] = table
                table.copy_(counts_of(request, self._vocab_size).pin_memory(), non_blocking=True)
                address = table.data_ptr()
            rows += state_row(request.params, address)
        return rows

    def write(self, slots: Tensor, rows: Tensor) -> None:
        """slots: [new] int32 on the device; rows: what `admit` gave for them, likewise."""
        self._state[slots.long()] = rows.view(-1, COLUMNS)

    def choose(self, logits: Tensor, slots: Tensor, positions: Tensor, tokens: Tensor, last: Tensor) -> None:
        """As `octavo.kernels.gpu.sampling.sample`, and note the logprobs that the slots ask for."""
        sample(logits, self._state, slots, positions, tokens, last)
        chosen, top, top_ids = self._logprobs
        logprobs(logits, self._state, slots, tokens, chosen, top, top_ids)

    def choose_held(
        self,
        logits: Tensor,
        held: Sequence[int],
        slots: Sequence[int],
        positions: Sequence[int],
        tokens: Tensor,
        last: Tensor,
    ) -> None:
        """Choose for the rows that `choose` has left alone. The tokens before are known to `edits`.

        Args:
            logits: [rows, vocab], as the model gives them.
            held: those rows whose slots have edits.
            slots, positions: of all rows; positions are those of the last known tokens.
            tokens: [rows] int32, changed at these rows.
            last: [slots] int32, likewise.
        """
        for first in range(0, len(held), HELD_ROWS):
            some = held[first : first + HELD_ROWS]
            rows = self._upload(some, torch.int64)
            plan = self.edits.plan([slots[row] for row in some], [positions[row] + 1 for row in some])
            edited = masked_rows(logits, rows, plan.masks.pin_memory().to(self._device, non_blocking=True))
            if plan.rows:
                places = (self._upload(plan.rows, torch.int64), self._upload(plan.token_ids, torch.int64))
                edited.index_put_(places, self._upload(plan.values, torch.float32), accumulate=True)
            of_slots = self._upload([slots[row] for row in some], torch.int32)
            at = self._upload([positions[row] for row in some], torch.int32)
            chosen = torch.empty(len(some), dtype=torch.int32, device=self._device)
            sample(edited, self._state, of_slots, at, chosen, last, with_held=True)
            tokens.index_copy_(0, rows, chosen)
        if any(slots[row] in self._num_top for row in held):
            of_slots = self._upload(slots, torch.int32)
            logprobs(logits[: len(slots)], self._state, of_slots, tokens[: len(slots)], *self._logprobs)

    def _upload(self, values: Sequence[int] | Sequence[float], dtype: torch.dtype) -> Tensor:
        return torch.tensor(values, dtype=dtype).pin_memory().to(self._device, non_blocking=True)

    def fetch(self, turn: int, slots: list[int]) -> PendingLogprobs | None:
        """Begin to copy to the host what the slots of the last `choose` asked for. slots: of each row."""
        rows = [row for row, slot in enumerate(slots) if slot in self._num_top] if self._num_top else []
        if not rows:
            return None
        for pinned, buffer in zip(self._pinned[turn], self._logprobs, strict=True):
            pinned[: len(slots)].copy_(buffer[: len(slots)], non_blocking=True)
        asking = [slots[row] for row in rows]
        return PendingLogprobs(asking, rows, [self._num_top[slot] for slot in asking], self._pinned[turn])


def state_row(params: SamplingParams, counts_address: int = 0) -> list[int]:
    """A request's row of the sampler's state; the address is that of its counts, if it has penalties."""
    temperature = 0.0 if params.is_greedy else params.temperature
    penalties = (params.repetition_penalty, params.frequency_penalty, params.presence_penalty)
    return pack_state(
        temperature, params.top_k, params.top_p, max_distance(params.temperature, params.min_p), params.seed,
        counts_address, penalties, params.logprobs, params.has_edits,
    )  # fmt: skip


def _logprob_buffers(
    rows: int, device: torch.device | None = None, pin_memory: bool = False
) -> tuple[Tensor, Tensor, Tensor]:
    top = torch.zeros(rows, MAX_LOGPROBS, device=device, pin_memory=pin_memory)
    top_ids = torch.zeros(rows, MAX_LOGPROBS, dtype=torch.int32, device=device, pin_memory=pin_memory)
    return torch.zeros(rows, device=device, pin_memory=pin_memory), top, top_ids
