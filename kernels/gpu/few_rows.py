"""Triton: a linear layer of a few rows: y = x weight^T + residual.

The bytes of the weight are the floor. Libraries give a program 64 outputs or more: of a layer with few outputs that is
too few programs to read at the memory's speed, or one more launch to add up what several have for the same outputs.
Here each warp of a program takes inputs of its own, and their sums are added at the end: so a program can be as small
as 8 outputs, what a tensor core takes at once.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from octavo.kernels.gpu.overlap import OVERLAP, begin

Tile = tuple[int, int, int, int]
"""Outputs of a program, its warps, inputs that each of them takes at a time, stages of its loads."""

DTYPES = (torch.bfloat16, torch.float16)
LEAST_ROWS = 16  # of a tile

# By outputs and inputs, for up to 16 rows and, where it is faster than the library there too, for up to 32; found on an
# H200, as is what is faster for other sizes: it is so for 2,048 outputs and not for 3,072.
TILES: dict[tuple[int, int], tuple[Tile] | tuple[Tile, Tile]] = {
    (1024, 2048): ((16, 8, 256, 2), (8, 4, 128, 4)),
    (1024, 3072): ((8, 4, 256, 4), (8, 4, 128, 4)),
    (2048, 2048): ((32, 8, 256, 2),),
    (2048, 6144): ((16, 4, 256, 3),),
    (2048, 8192): ((16, 4, 256, 3),),
    (4096, 1024): ((32, 4, 256, 2),),
    (4096, 4096): ((32, 4, 128, 3), (32, 4, 128, 3)),
    (4096, 12_288): ((32, 4, 128, 3),),
}
OTHER_TILE: Tile = (16, 4, 128, 3)
MOST_OUTPUTS, MOST_INPUTS = 2048, 8192


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether `few_rows_linear` is for these, and is the fastest for them."""
    is_dense = x.is_cuda and x.dtype in DTYPES and x.is_contiguous() and weight.is_contiguous()
    return is_dense and tile_of(len(x), *weight.shape) is not None


def few_rows_linear(x: Tensor, weight: Tensor, residual: Tensor | None = None) -> Tensor:
    """All tensors are contiguous and of one dtype.

    Args:
        x: [rows, inputs].
        weight: [outputs, inputs].
        residual: [rows, outputs] or None.

    Returns: [rows, outputs] in the dtype of x; sums are float32.
    """
    (rows, inputs), outputs = x.shape, len(weight)
    out = torch.empty(rows, outputs, dtype=x.dtype, device=x.device)
    tile = tile_of(rows, outputs, inputs)
    assert tile is not None
    at_once, num_warps, depth, stages = tile
    _dense_few_rows[(triton.cdiv(outputs, at_once),)](
        x, weight, residual, out, rows, outputs, INPUTS=inputs, ROWS=_rows_of_tile(rows), AT_ONCE=at_once,
        PARTS=num_warps, DEPTH=depth, STAGES=stages, num_warps=num_warps, **OVERLAP,
    )  # fmt: skip
    return out


def tile_of(rows: int, outputs: int, inputs: int) -> Tile | None:
    """None where another way is faster."""
    place = _rows_of_tile(rows) // LEAST_ROWS - 1
    fits_other = outputs <= MOST_OUTPUTS and inputs <= MOST_INPUTS and inputs % (OTHER_TILE[1] * OTHER_TILE[2]) == 0
    tiles = TILES.get((outputs, inputs), (OTHER_TILE,) if fits_other else ())
    return tiles[place] if rows > 1 and place < len(tiles) else None


def _rows_of_tile(rows: int) -> int:
    return max(LEAST_ROWS, 1 << (rows - 1).bit_length())


@triton.jit(do_not_specialize=["rows"])  # one compiled form for any number of them
def _dense_few_rows(
    x_ptr, weight_ptr, residual_ptr, out_ptr, rows, outputs,
    INPUTS: tl.constexpr, ROWS: tl.constexpr, AT_ONCE: tl.constexpr, PARTS: tl.constexpr, DEPTH: tl.constexpr,
    STAGES: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid: runs of AT_ONCE outputs. Of PARTS * DEPTH inputs at a time each of PARTS warps takes DEPTH."""
    n, row = tl.program_id(0) * AT_ONCE + tl.arange(0, AT_ONCE), tl.arange(0, ROWS)
    part, depth = tl.arange(0, PARTS)[:, None, None] * DEPTH, tl.arange(0, DEPTH)
    is_in, is_row = (n < outputs)[None, None, :], (row < rows)[None, :, None]
    weights = weight_ptr + n[None, None, :] * INPUTS + part + depth[None, :, None]
    w = tl.load(weights, mask=is_in, other=0.0)  # on its way while x is still made
    begin(OVERLAP)
    place = row[:, None] * outputs + n[None, :]
    is_out = (row < rows)[:, None] & (n < outputs)[None, :]
    if residual_ptr is not None:
        residual = tl.load(residual_ptr + place, mask=is_out, other=0.0)
    xs = x_ptr + row[None, :, None] * INPUTS + part + depth[None, None, :]
    sums = tl.dot(tl.load(xs, mask=is_row, other=0.0), w)
    for start in tl.range(PARTS * DEPTH, INPUTS, PARTS * DEPTH, num_stages=STAGES):
        w = tl.load(weights + start, mask=is_in, other=0.0)
        sums = tl.dot(tl.load(xs + start, mask=is_row, other=0.0), w, sums)
    y = tl.sum(sums, 0)
    if residual_ptr is not None:
        y += residual.to(tl.float32)
    tl.store(out_ptr + place, y.to(out_ptr.dtype.element_ty), mask=is_out)
