"""Where the new tokens of a batch's prompts lie, for the kernels of prefill attention."""

from dataclasses import dataclass

from torch import Tensor

TILE = 128  # tokens


@dataclass(frozen=True)
class Chunks:
    """Where the chunks of a batch lie; all int32 on the device.

    rows, lengths, totals, slots: [chunks]: first row in q, new tokens, positions up to and with them, row of `tables`.
    tile_chunks, tile_starts: [most tiles]: of each tile of TILE tokens its chunk and its first token in it, those
        with the most work first.
    num_tiles: [1]: how many tiles there are.
    """

    rows: Tensor
    lengths: Tensor
    totals: Tensor
    slots: Tensor
    tile_chunks: Tensor
    tile_starts: Tensor
    num_tiles: Tensor
