"""Steps with chunks of prompts as CUDA graphs: each for a number of rows, whatever the rows are.

Launching the kernels of such a step one by one takes the host ten milliseconds and more, longer than a small step, or
any step of a small model, takes the device. What has no graph is launched all the same, in the same way. A graph is
told whose the rows are by numbers at fixed places. Rows that decode have a position in a section of their own, -1
stands for none there; and rows that are left over are a chunk of the slot that belongs to no request, whose blocks are
all the null block.
"""

from dataclasses import dataclass

from torch import Tensor

from octavo.kernels.gpu.chunks import TILE, Chunks
from octavo.services.executor.gpu.batch import Plan
from octavo.shared.step_sizes import MIXED_ROWS, round_up, step_at

LEAST_ROWS = MIXED_ROWS[0][1]
MOST_ROWS, MOST_FILLING = MIXED_ROWS[-1]
LEAST_CHUNKS = 16  # that any graph has room for
ROWS_PER_CHUNK = 64
NOBODY = -1


def mixed_sizes(num_tokens: int, max_model_len: int) -> list[int]:
    """Rows of the graphs; none where the rows that are left over might be more than a request may have.

    num_tokens: of the largest step.
    """
    sizes = {rows_of_graph(rows) for rows in range(1, min(MOST_ROWS, num_tokens) + 1, LEAST_ROWS)}
    return sorted(size for size in sizes if 2 * step_at(size, MIXED_ROWS) <= max_model_len)


def rows_of_graph(num_rows: int) -> int:
    """Of the smallest graph that has room for so many, were there no end of them."""
    return round_up(num_rows, MIXED_ROWS)


def graph_inputs(num_rows: int, num_slots: int) -> "MixedInputs":
    """Of the smallest graph that has room for so many rows."""
    rows = rows_of_graph(num_rows)
    return MixedInputs(rows, num_slots, max(LEAST_CHUNKS, rows // ROWS_PER_CHUNK))


@dataclass(frozen=True)
class MixedInputs:
    """What a step with chunks reads, in int32: sections one behind another, of sizes that do not depend on the rows."""

    rows: int
    num_slots: int
    num_chunks: int  # that there is room for

    @property
    def num_decoding(self) -> int:
        """Rows in front that may decode; no more can be sampled, as each is of another slot."""
        return min(self.rows, self.num_slots)

    @property
    def sizes(self) -> list[int]:
        """Slots, positions and token ids of rows; positions of decoding ones; rows to sample; then as in `Chunks`."""
        tiles = self.rows // TILE + self.num_chunks
        return [self.rows] * 3 + [self.num_decoding] * 2 + [self.num_chunks] * 4 + [tiles] * 2 + [1]

    @property
    def starts(self) -> list[int]:
        """Of the sections, each at a multiple of 16 bytes."""
        starts, place = [], 0
        for size in self.sizes:
            starts.append(place)
            place += -(-size // 4) * 4
        return starts

    def sections(self, plan: Plan) -> list[list[int]] | None:
        """A plan, its rows filled up; None if it has too many chunks."""
        num_rows, num_chunks, num_decoding = len(plan.slots), len(plan.chunk_rows), plan.num_decoding
        # Of a real step less than one chunk; of a rehearsal all rows, and no chunk may be longer than a request.
        most = step_at(self.rows, MIXED_ROWS)
        filling = range(0, self.rows - num_rows, most)
        fills = [min(most, self.rows - num_rows - first) for first in filling]
        if num_chunks + len(fills) > self.num_chunks:
            return None
        tiles = plan.tiles + [(num_chunks + i, first) for i, fill in enumerate(fills) for first in range(0, fill, TILE)]
        sections = [
            plan.slots + [self.num_slots] * sum(fills),
            plan.positions + [position for fill in fills for position in range(fill)],
            [NOBODY] * num_decoding + plan.token_ids + [0] * sum(fills),
            plan.positions[:num_decoding],
            plan.sampled_rows + [0] * (self.num_decoding - len(plan.sampled_rows)),
            plan.chunk_rows + [num_rows + first for first in filling],
            plan.chunk_lengths + fills,
            plan.chunk_totals + fills,
            plan.chunk_slots + [self.num_slots] * len(fills),
            [chunk for chunk, _ in tiles],
            [first for _, first in tiles],
            [len(tiles)],
        ]
        return [section + [NOBODY] * (size - len(section)) for section, size in zip(sections, self.sizes, strict=True)]

    def views(self, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Chunks]:
        """Slots, positions and token ids of rows, positions of those that decode, rows to sample, and the chunks."""
        slots, positions, token_ids, decoding, sampled, *chunks = (
            inputs[start : start + size] for start, size in zip(self.starts, self.sizes, strict=True)
        )
        return slots, positions, token_ids, decoding, sampled, Chunks(*chunks)
