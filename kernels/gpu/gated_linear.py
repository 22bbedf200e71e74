"""Triton: the first layer of a gated MLP for many rows: y = act(x gate^T) * (x up^T).

Gate and up of the same outputs are one tile of one product, twice as wide: so they never go to memory, where another
kernel would read them again. There are as many programs as multiprocessors, and the loads of a program's next tile
begin before the last one is stored. Tiles go through the rows of a group first: those at work at one time share what
the second-level cache holds of x and of the weight.

source: Triton's tutorial 09, "Persistent Matmul"
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from octavo.kernels.gpu.activation import activate
from octavo.kernels.gpu.hardware import NUM_SMS, capability
from octavo.kernels.gpu.linear import Gate
from octavo.kernels.gpu.overlap import OVERLAP, begin

TILE = 128  # rows, and outputs, of each of gate and up
DEPTH, STAGES = 64, 4  # 192 KiB of inputs on their way
GROUP = 16  # tiles of rows that share weights
MULTIPLE = 8  # of numbers: the tensor memory accelerator counts strides in 16 bytes
DTYPES = (torch.bfloat16, torch.float16)

# Measured on an H200 in sustained running, against cuBLAS and the kernel `gated`, for 4096 inputs and 2 * 12288
# outputs: 6 % faster for 1024 rows (5.8 waves of tiles), 4 % for 2048, 5 % for 8192. cuBLAS has smaller tiles, and
# wins where there are few of these, or where most multiprocessors have none in the last wave.
LEAST_WAVES = 4
LEAST_SHARE = 0.9  # of all waves' places that have a tile

# A program fills a multiprocessor of Hopper: were there fewer, some would begin when others end. Newer generations have
# other tensor cores, and some too little shared memory.
IS_OTHER_GPU = torch.cuda.is_available() and (
    capability()[0] != 9 or torch.cuda.get_device_properties().multi_processor_count != NUM_SMS
)


def fits(x: Tensor, weight: Tensor) -> bool:
    """Whether `gated_linear` is for these, and is the fastest for them."""
    size, inputs = len(weight) // 2, weight.shape[1]
    tiles = triton.cdiv(len(x), TILE) * triton.cdiv(size, TILE)
    waves = triton.cdiv(tiles, NUM_SMS)
    is_fast = waves >= LEAST_WAVES and tiles >= LEAST_SHARE * waves * NUM_SMS
    is_contiguous = x.is_contiguous() and weight.is_contiguous()
    is_readable = x.dtype in DTYPES and is_contiguous and size % MULTIPLE == inputs % MULTIPLE == 0
    return x.is_cuda and not IS_OTHER_GPU and is_readable and is_fast


def gated_linear(x: Tensor, weight: Tensor, gate: Gate) -> Tensor:
    """All tensors are contiguous and of one dtype.

    Args:
        x: [rows, inputs].
        weight: [2 * size, inputs], the gate's half first; size and inputs multiples of MULTIPLE.
        gate: silu, or gelu by its tanh form.

    Returns: [rows, size] in the dtype of x; sums are float32, and nothing is rounded before the end.
    """
    rows, inputs = x.shape
    size = len(weight) // 2
    out = torch.empty(rows, size, dtype=x.dtype, device=x.device)
    _gated_linear[(NUM_SMS,)](
        TensorDescriptor.from_tensor(x, [TILE, DEPTH]),
        TensorDescriptor.from_tensor(weight.view(2, size, inputs), [2, TILE, DEPTH]),
        TensorDescriptor.from_tensor(out, [TILE, TILE]),
        rows, SIZE=size, INPUTS=inputs, TILE=TILE, DEPTH=DEPTH, GROUP=GROUP, NUM_PROGRAMS=NUM_SMS,
        IS_GELU=gate == "gelu", num_warps=8, num_stages=STAGES, **OVERLAP,
    )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["rows"])  # one compiled form for any number of them
def _gated_linear(
    x, weight, out, rows,
    SIZE: tl.constexpr, INPUTS: tl.constexpr, TILE: tl.constexpr, DEPTH: tl.constexpr, GROUP: tl.constexpr,
    NUM_PROGRAMS: tl.constexpr, IS_GELU: tl.constexpr, OVERLAP: tl.constexpr,
):  # fmt: skip
    """Grid: NUM_PROGRAMS. What boxes have beyond the ends is read as zeros and not written."""
    begin(OVERLAP)
    row_tiles, tiles = tl.cdiv(rows, TILE), tl.cdiv(rows, TILE) * tl.cdiv(SIZE, TILE)
    # The tile that is stored has a count of its own: the loads are then those of the next one already.
    stored = tl.program_id(0) - NUM_PROGRAMS
    for tile in tl.range(tl.program_id(0), tiles, NUM_PROGRAMS, flatten=True):
        m, n = _place(tile, row_tiles, SIZE, TILE, GROUP)
        sums = tl.zeros([TILE, 2 * TILE], tl.float32)
        for step in range(tl.cdiv(INPUTS, DEPTH)):
            a = x.load([m * TILE, step * DEPTH])
            w = tl.reshape(weight.load([0, n * TILE, step * DEPTH]), [2 * TILE, DEPTH])
            sums = tl.dot(a, w.T, sums)
        stored += NUM_PROGRAMS
        m, n = _place(stored, row_tiles, SIZE, TILE, GROUP)
        gate, up = tl.split(tl.permute(tl.reshape(sums, [TILE, 2, TILE]), [0, 2, 1]))
        out.store([m * TILE, n * TILE], (activate(gate, IS_GELU) * up).to(out.dtype))


@triton.jit
def _place(tile, row_tiles, SIZE: tl.constexpr, TILE: tl.constexpr, GROUP: tl.constexpr):
    """Which of rows and which of outputs a tile is: groups of GROUP tiles of rows, and in a group the rows first."""
    group = GROUP * tl.cdiv(SIZE, TILE)
    first = tile // group * GROUP
    height = tl.minimum(row_tiles - first, GROUP)
    return first + tile % group % height, tile % group // height
