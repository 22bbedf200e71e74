"""What the executor remembers of each running request between steps: its slot."""

import torch
from torch import Tensor

from octavo.shared.messages import NewRequest, Step, unpack
from octavo.shared.sampling import SamplingParams


class Slots:
    """One row a slot, changed by the differences that each Step brings.

    A slot is *filling* while known tokens are left to compute, then *decoding* until it is released.
    """

    def __init__(self, num_slots: int, max_blocks: int, block_size: int, null_block: int) -> None:
        self.block_tables = torch.full((num_slots, max_blocks), null_block, dtype=torch.int32)
        self.last_tokens = torch.zeros(num_slots, dtype=torch.int64)
        self.num_computed = [0] * num_slots
        self.num_blocks = [0] * num_slots
        self.first_blocks = [null_block] * num_slots
        self.params: list[SamplingParams | None] = [None] * num_slots
        self.decoding: dict[int, None] = {}  # an ordered set
        self.num_prompt = [0] * num_slots
        self._known: list[Tensor] = [torch.empty(0, dtype=torch.int64)] * num_slots
        self.block_size, self._null_block = block_size, null_block

    def apply(self, step: Step) -> list[int]:
        """Make the changes that a step begins with; returns the blocks that slots have newly got."""
        for slot in unpack(step.released):
            self.decoding.pop(slot, None)
            self.params[slot] = None
        fresh: list[int] = []
        for request in step.new:
            fresh += self._admit(request)
        for slot, block in zip(unpack(step.grown_slots), unpack(step.grown_blocks), strict=True):
            self.block_tables[slot, self.num_blocks[slot]] = block
            self.num_blocks[slot] += 1
            fresh.append(block)
        return fresh

    def take_chunk(self, slot: int, length: int) -> tuple[Tensor, bool]:
        """The next `length` known tokens of a filling slot, int64, and whether they are its last."""
        start = self.num_computed[slot]
        chunk = self._known[slot][start : start + length]
        assert len(chunk) == length, f"slot {slot}: a chunk of {length} at {start} of {len(self._known[slot])}"
        self.num_computed[slot] += length
        return chunk, self.num_computed[slot] == len(self._known[slot])

    def prompt_behind(self, slot: int, start: int, length: int) -> tuple[Tensor, int] | None:
        """Of a request that asks for its prompt's logprobs: the prompt's tokens that follow each of a chunk's, int64,
        and how many alternatives it asks for. None where there is nothing to tell."""
        params = self.params[slot]
        if params is None or params.prompt_logprobs is None:
            return None
        behind = self._known[slot][start + 1 : min(start + length + 1, self.num_prompt[slot])]
        return (behind, params.prompt_logprobs) if len(behind) else None

    def forget_all(self) -> None:
        self.decoding.clear()
        self.params = [None] * len(self.params)

    def _admit(self, request: NewRequest) -> list[int]:
        slot, blocks = request.slot, unpack(request.blocks)
        # A copy: torch must not share memory with an immutable bytes object.
        self._known[slot] = torch.tensor(unpack(request.token_ids), dtype=torch.int64)
        self.params[slot] = request.params
        num_known = len(self._known[slot])
        self.num_prompt[slot] = num_known if request.num_prompt is None else request.num_prompt
        self.num_computed[slot] = request.num_computed
        self.num_blocks[slot] = len(blocks)
        self.first_blocks[slot] = blocks[0]
        self.block_tables[slot].fill_(self._null_block)
        self.block_tables[slot, : len(blocks)] = torch.tensor(blocks, dtype=torch.int32)
        # The cached prefix is whole blocks that others filled; the ones behind it are this slot's own.
        return blocks.tolist()[request.num_computed // self.block_size :]
