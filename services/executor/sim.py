"""The simulated engine: no model, but real pages.

What stands for the KV of a position is the oracle's state up to it, kept in blocks and found through block tables
exactly as keys and values are. A wrong table, a block given away too early or a wrongly shared prefix therefore
ends in wrong tokens, which every client can notice (see shared/oracle.py).
"""

import time
from array import array

from octavo.shared.messages import ModelInfo, NewRequest, Step, StepResult, pack, unpack
from octavo.shared.oracle import advance, next_token


class _Slot:
    __slots__ = ("token_ids", "blocks", "num_computed", "last_token")

    def __init__(self, request: NewRequest) -> None:
        self.token_ids = request.token_ids
        self.blocks = unpack(request.blocks).tolist()
        self.num_computed = request.num_computed
        self.last_token = b""


class SimEngine:
    """Runs steps as Engine does."""

    def __init__(self, info: ModelInfo, step_ms: float) -> None:
        self.info = info
        self._step_s = step_ms / 1000
        self._states = array("I", bytes(4 * info.num_blocks * info.block_size))
        self._slots: dict[int, _Slot] = {}
        self._decoding: dict[int, _Slot] = {}

    def reset(self) -> None:
        """Forget every slot."""
        self._slots.clear()
        self._decoding.clear()

    def run(self, step: Step) -> StepResult:
        """Compute a step and sample the tokens that it is to sample."""
        began = time.monotonic()
        for slot in unpack(step.released):
            self._slots.pop(slot, None)
            self._decoding.pop(slot, None)
        for request in step.new:
            self._slots[request.slot] = _Slot(request)
        for slot, block in zip(unpack(step.grown_slots), unpack(step.grown_blocks), strict=True):
            self._slots[slot].blocks.append(block)
        slots, tokens = list(self._decoding), [self._decode(slot) for slot in self._decoding.values()]
        for slot, length in zip(unpack(step.chunk_slots), unpack(step.chunk_lengths), strict=True):
            filling = self._slots[slot]
            self._fill(filling, length)
            if filling.num_computed * 4 == len(filling.token_ids):
                slots.append(slot)
                tokens.append(self._sample(filling))
                self._decoding[slot] = filling
        time.sleep(max(0.0, began + self._step_s - time.monotonic()))
        return StepResult(step.epoch, step.number, pack(slots), pack(tokens))

    def _fill(self, slot: _Slot, length: int) -> None:
        start = slot.num_computed
        state = self._state_before(slot)
        for position in range(start, start + length):
            state = advance(state, slot.token_ids[4 * position : 4 * position + 4])
            self._states[self._place(slot, position)] = state
        slot.num_computed += length

    def _decode(self, slot: _Slot) -> int:
        state = advance(self._state_before(slot), slot.last_token)
        self._states[self._place(slot, slot.num_computed)] = state
        slot.num_computed += 1
        return self._sample(slot)

    def _sample(self, slot: _Slot) -> int:
        token = next_token(self._state_before(slot), self.info.vocab_size)
        slot.last_token = token.to_bytes(4, "little")
        return token

    def _state_before(self, slot: _Slot) -> int:
        """What the pages hold for the position before the next one."""
        return self._states[self._place(slot, slot.num_computed - 1)] if slot.num_computed else 0

    def _place(self, slot: _Slot, position: int) -> int:
        block_size = self.info.block_size
        return slot.blocks[position // block_size] * block_size + position % block_size
