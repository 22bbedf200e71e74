"""The simulated engine: no model, but real pages.

What stands for the KV of a position is the oracle's state up to it, kept in blocks and found through block
tables exactly as keys and values are. A wrong table, a block given away too early or a wrongly shared prefix
therefore ends in wrong tokens, which every client can notice (see shared/oracle.py). Attention reads every
page in every step; here a step reads the last position, and a slot reads all its full blocks when it begins
and whenever it grows.
"""

import time
from array import array

from octavo.services.executor.launched import Done
from octavo.shared.messages import INT32_BYTES, ModelInfo, NewRequest, Step, StepResult, pack, unpack
from octavo.shared.oracle import advance, next_token


class _Slot:
    __slots__ = ("token_ids", "blocks", "num_computed", "last_token", "block_ends", "is_damaged")

    def __init__(self, request: NewRequest) -> None:
        self.token_ids = request.token_ids
        self.blocks = unpack(request.blocks).tolist()
        self.num_computed = request.num_computed
        self.last_token = b""
        self.block_ends: list[int] = []
        """The state that must lie at the end of each full block."""
        self.is_damaged = False
        """Something else lay there: every further token is wrong."""


class SimEngine:
    """Runs steps as Engine does."""

    def __init__(self, info: ModelInfo, step_ms: float) -> None:
        self.info = info
        self._step_s = step_ms / 1000
        self._states = array("I", bytes(INT32_BYTES * info.num_blocks * info.block_size))
        self._slots: dict[int, _Slot] = {}
        self._decoding: dict[int, _Slot] = {}

    def reset(self) -> None:
        """Forget every slot."""
        self._slots.clear()
        self._decoding.clear()

    def launch(self, step: Step) -> Done:
        """Run a step."""
        return Done(self.run(step))

    def run(self, step: Step) -> StepResult:
        """Compute a step and sample the tokens that it is to sample."""
        began = time.monotonic()
        for slot in unpack(step.released):
            self._slots.pop(slot, None)
            self._decoding.pop(slot, None)
        for request in step.new:
            self._slots[request.slot] = _Slot(request)
        for slot, block in zip(unpack(step.grown_slots), unpack(step.grown_blocks), strict=True):
            grown = self._slots[slot]
            grown.blocks.append(block)
            self._check_blocks(grown)
        slots, tokens = list(self._decoding), [self._decode(slot) for slot in self._decoding.values()]
        begun = {request.slot for request in step.new}
        for slot, length in zip(unpack(step.chunk_slots), unpack(step.chunk_lengths), strict=True):
            filling = self._slots[slot]
            if slot in begun:
                self._expect_prefix(filling)
            self._fill(filling, length)
            if filling.num_computed * INT32_BYTES == len(filling.token_ids):
                slots.append(slot)
                tokens.append(self._sample(filling))
                self._decoding[slot] = filling
        if (rest_s := began + self._step_s - time.monotonic()) > 0:
            time.sleep(rest_s)  # a sleep of nothing may still cost milliseconds
        return StepResult(step.epoch, step.number, pack(slots), pack(tokens))

    def _fill(self, slot: _Slot, length: int) -> None:
        state = self._state_before(slot)
        start = INT32_BYTES * slot.num_computed
        for at in range(start, start + INT32_BYTES * length, INT32_BYTES):
            state = advance(state, slot.token_ids[at : at + INT32_BYTES])
            self._write(slot, state)

    def _decode(self, slot: _Slot) -> int:
        self._write(slot, advance(self._state_before(slot), slot.last_token))
        return self._sample(slot)

    def _sample(self, slot: _Slot) -> int:
        token = next_token(self._state_before(slot), self.info.vocab_size)
        if slot.is_damaged:
            token = (token + 1) % self.info.vocab_size
        slot.last_token = token.to_bytes(INT32_BYTES, "little")
        return token

    def _write(self, slot: _Slot, state: int) -> None:
        self._states[self._place(slot, slot.num_computed)] = state
        slot.num_computed += 1
        if slot.num_computed % self.info.block_size == 0:
            slot.block_ends.append(state)

    def _state_before(self, slot: _Slot) -> int:
        """What the pages hold for the position before the next one."""
        return self._states[self._place(slot, slot.num_computed - 1)] if slot.num_computed else 0

    def _place(self, slot: _Slot, position: int) -> int:
        block_size = self.info.block_size
        return slot.blocks[position // block_size] * block_size + position % block_size

    def _expect_prefix(self, slot: _Slot) -> None:
        """A slot begins behind blocks that others have filled: they must hold what it would have computed."""
        state, stride = 0, INT32_BYTES * self.info.block_size
        for start in range(0, INT32_BYTES * slot.num_computed, stride):
            state = advance(state, slot.token_ids[start : start + stride])
            slot.block_ends.append(state)
        self._check_blocks(slot)

    def _check_blocks(self, slot: _Slot) -> None:
        last, block_size = self.info.block_size - 1, self.info.block_size
        for block, state in zip(slot.blocks, slot.block_ends, strict=False):
            slot.is_damaged |= self._states[block * block_size + last] != state
