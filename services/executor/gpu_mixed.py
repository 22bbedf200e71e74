"""Steps with chunks of prompts as CUDA graphs: each for a number of rows, whatever the rows are.

Launching the kernels of such a step one by one takes the host ten milliseconds and more, longer than a small step takes
the device. A graph is told whose the rows are by numbers at fixed places. Rows that decode have a position in a section
of their own, -1 stands for none there; tiles that are not there belong to chunk -1; and rows that are left over are a
chunk of the slot that belongs to no request, whose blocks are all the null block.
"""

from dataclasses import dataclass

from torch import Tensor

from octavo.kernels.gpu.chunks import TILE, Chunks
from octavo.services.executor.gpu_batch import Plan

STEP_ROWS = 128  # between the graphs; twice that beyond FINE_ROWS
FINE_ROWS = 1024
MOST_ROWS = 2048  # a step with more keeps the device busy for longer than it takes to launch
MOST_CHUNKS = 16
NOBODY = -1


def mixed_sizes(num_tokens: int, max_model_len: int) -> list[int]:
    """Rows of the graphs; none where the rows that are left over might be more than a request may have.

    num_tokens: of the largest step.
    """
    if max_model_len < 2 * STEP_ROWS:
        return []
    return sorted({rows_of_graph(rows) for rows in range(1, min(MOST_ROWS, num_tokens) + 1, STEP_ROWS)})


def rows_of_graph(num_rows: int) -> int:
    """Of the smallest graph that has room for so many."""
    step = STEP_ROWS if num_rows <= FINE_ROWS else 2 * STEP_ROWS
    return -(-num_rows // step) * step


@dataclass(frozen=True)
class MixedInputs:
    """What one graph reads, in int32: sections of fixed sizes, one behind another."""

    rows: int
    num_slots: int

    @property
    def num_decoding(self) -> int:
        """Rows in front that may decode; no more can be sampled, as each is of another slot."""
        return min(self.rows, self.num_slots)

    @property
    def sizes(self) -> list[int]:
        """Slots, positions and token ids of rows; positions of decoding ones; rows to sample; then as in `Chunks`."""
        tiles = self.rows // TILE + MOST_CHUNKS
        return [self.rows] * 3 + [self.num_decoding] * 2 + [MOST_CHUNKS] * 4 + [tiles] * 2

    @property
    def starts(self) -> list[int]:
        """Of the sections, each at a multiple of 16 bytes."""
        starts, place = [], 0
        for size in self.sizes:
            starts.append(place)
            place += -(-size // 4) * 4
        return starts

    def sections(self, plan: Plan) -> list[list[int]] | None:
        """A plan, its rows filled up, as this graph reads it; None if it has too many chunks."""
        num_rows, num_chunks = len(plan.slots), len(plan.chunk_rows)
        filling = self.rows - num_rows
        lengths, totals = plan.chunk_lengths, plan.chunk_totals
        chunk_rows, chunk_slots, tiles = plan.chunk_rows, plan.chunk_slots, plan.tiles
        if filling:
            chunk_rows, lengths, totals = [*chunk_rows, num_rows], [*lengths, filling], [*totals, filling]
            chunk_slots = [*chunk_slots, self.num_slots]
            tiles = tiles + [(num_chunks, first) for first in range(0, filling, TILE)]
        if len(chunk_rows) > MOST_CHUNKS:
            return None
        num_decoding = plan.num_decoding
        sections = [
            plan.slots + [self.num_slots] * filling,
            [*plan.positions, *range(filling)],
            [NOBODY] * num_decoding + plan.token_ids + [0] * filling,
            plan.positions[:num_decoding],
            plan.sampled_rows + [0] * (self.num_decoding - len(plan.sampled_rows)),
            chunk_rows, lengths, totals, chunk_slots, [chunk for chunk, _ in tiles], [first for _, first in tiles],
        ]  # fmt: skip
        return [section + [NOBODY] * (size - len(section)) for section, size in zip(sections, self.sizes, strict=True)]

    def views(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Chunks]:
        """Slots, positions and token ids of rows, positions of those that decode, rows to sample, and the chunks."""
        slots, positions, token_ids, decoding, sampled, *chunks = (
            inputs[start : start + size] for start, size in zip(self.starts, self.sizes, strict=True)
        )
        return slots, positions, token_ids, decoding, sampled, Chunks(*chunks)
