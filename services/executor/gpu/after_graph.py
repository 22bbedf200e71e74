"""What a step does after its graph: logits that the graph has left, and tokens that edits must know of."""

from collections import deque
from typing import Protocol

import torch
from torch import Tensor

from octavo.services.executor.batch import PromptPart
from octavo.services.executor.edits import Edits
from octavo.services.executor.sampler import pack_prompt_logprobs, ranked_logprobs

LOGITS_ROWS = 16  # of a prompt at once: they are wide, and memory is planned without them


class Result(Protocol):
    """A step on its way through the device."""

    slots: list[int]
    tokens: Tensor  # pinned, [slots] int32
    event: torch.cuda.Event


class History:
    """Tells edits the tokens of steps, in order, as late as they are needed."""

    def __init__(self, edits: Edits) -> None:
        self._edits = edits
        self._untold: deque[Result] = deque()

    def add(self, result: Result) -> None:
        """A step that has been launched, with slots that have edits."""
        self._untold.append(result)

    def tell(self, waits: bool = False) -> None:
        """Of all steps that are done; waits: for the others, too."""
        while self._untold and (waits or self._untold[0].event.query()):  # type: ignore[no-untyped-call]  # torch's own
            result = self._untold.popleft()
            result.event.synchronize()
            for slot, token in zip(result.slots, result.tokens.tolist(), strict=True):
                self._edits.note(slot, token)

    def forget_all(self) -> None:
        self._untold.clear()


class PendingPrompts:
    """Logprobs of chunks of prompts, on their way to the host; there once the step's event is."""

    def __init__(self) -> None:
        self._parts: list[tuple[PromptPart, list[list[Tensor]]]] = []

    def add(self, part: PromptPart, logits: Tensor, token_ids: Tensor) -> None:
        """A piece of a part, behind those before: logits [rows, vocab], token_ids [rows] int64, on the device."""
        columns = [
            torch.empty(column.shape, dtype=column.dtype, pin_memory=True).copy_(column, non_blocking=True)
            for column in ranked_logprobs(logits, token_ids, part.num_top)
        ]
        if self._parts and self._parts[-1][0] is part:
            self._parts[-1][1].append(columns)
        else:
            self._parts.append((part, [columns]))

    def by_slot(self) -> dict[int, bytes]:
        return {
            part.slot: b"".join(pack_prompt_logprobs(part.num_top, *columns) for columns in pieces)
            for part, pieces in self._parts
        }


class _Memory:
    """Memory of a tensor, without its life."""

    def __init__(self, tensor: Tensor) -> None:
        size = tensor.element_size()
        self.__cuda_array_interface__ = {
            "shape": tuple(tensor.shape),
            "strides": tuple(size * stride for stride in tensor.stride()),
            "typestr": {2: "<i2", 4: "<i4"}[size],
            "data": (tensor.data_ptr(), False),
            "version": 3,
        }


def what_is_left(tensor: Tensor) -> Tensor:
    """A tensor of a graph that is being recorded, to be read behind a replay and before the next one of any graph that
    shares its pool: this does not keep its memory from those."""
    return torch.as_tensor(_Memory(tensor), device=tensor.device).view(tensor.dtype)
