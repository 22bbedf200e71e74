"""Programmatic dependent launch: a kernel starts while the one before it still runs, and waits where it must.

Every kernel here says at its beginning that the next one may start, and waits before it touches anything that an
earlier kernel reads or writes. Before that it may read what no kernel of a step writes, the weights above all. Since
each one waits for the whole of the one before, the order of all effects is that of plain launches.

source: CUDA C++ Programming Guide, "Programmatic Dependent Launch and Synchronization"; compute capability 9.0
"""

import triton
import triton.language as tl

from octavo.kernels.gpu.hardware import capability

HAS_OVERLAP = capability() >= (9, 0)
OVERLAP = {"OVERLAP": HAS_OVERLAP, "launch_pdl": HAS_OVERLAP}
"""For the launch of a kernel that has the parameter OVERLAP."""


@triton.jit
def begin(OVERLAP: tl.constexpr):
    """What every kernel does before it touches anything but weights."""
    let_next_start(OVERLAP)
    wait_for_last(OVERLAP)


@triton.jit
def let_next_start(OVERLAP: tl.constexpr):
    """For kernels that have things to do before they wait: what takes time there must not keep the next one back."""
    if OVERLAP:
        tl.extra.cuda.gdc_launch_dependents()


@triton.jit
def wait_for_last(OVERLAP: tl.constexpr):
    if OVERLAP:
        tl.extra.cuda.gdc_wait()
