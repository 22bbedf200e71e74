"""How the loops of loops.py are compiled and run: on torch's own threads, so that no two pools compete.

Where numba or a loop for the dtype is missing, `find_loop` gives None and a kernel goes through torch.
"""

import ctypes
import logging
import struct
import time
from array import array
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from pathlib import Path

import torch

log = logging.getLogger(__name__)

# Work of fewer bytes than this is done before a second thread has woken.
BYTES_WORTH_A_THREAD = 256 * 1024

Job = tuple[int, "array[int]"]  # address of a loop, its words

_recorded: ContextVar[list[Job] | None] = ContextVar("recorded", default=None)


class Loop:
    """One compiled loop for one dtype."""

    def __init__(self, address: int, keep: object) -> None:
        self.address = address
        self._keep = keep  # owns the machine code
        self._call = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)
        self._call_on_threads = _parallel()

    def run(self, num_bytes: int, *words: int) -> None:
        """Do a job, of `num_bytes` of memory traffic; the words are those of the loop's docstring."""
        job = array("q", (0, *words))
        recorded = _recorded.get()
        if recorded is not None:
            recorded.append((self.address, job))
            return
        threads = torch.get_num_threads() if num_bytes > BYTES_WORTH_A_THREAD else 1
        if threads == 1 or self._call_on_threads is None:
            self._call(job.buffer_info()[0])
        else:
            self._call_on_threads(self.address, job.buffer_info()[0], threads, 0)


@cache
def find_loop(name: str, dtype: torch.dtype, device: torch.device) -> Loop | None:
    """The loop of this name; compiled at the first use on a machine, then loaded from numba's cache."""
    if device.type != "cpu" or dtype not in (torch.float32, torch.bfloat16):
        return None
    began = time.monotonic()
    try:
        from octavo.kernels.loops import LOOPS, compile_loop
    except ImportError:
        return None
    if name not in LOOPS:
        return None
    element = str(dtype).removeprefix("torch.")
    try:
        address, owner = compile_loop(name, element, cache=True)  # type: ignore[no-untyped-call]  # as numba is
    except RuntimeError as error:  # nowhere to write the cache
        log.warning("numba cannot cache", extra={"reason": str(error)})
        address, owner = compile_loop(name, element, cache=False)  # type: ignore[no-untyped-call]  # as numba is
    log.debug("loop", extra={"loop": name, "took_s": round(time.monotonic() - began, 3)})
    return Loop(address, owner)


@cache
def float_bits(x: float) -> int:
    """A float64 as the int64 of the same bits."""
    bits: int = struct.unpack("q", struct.pack("d", x))[0]
    return bits


@contextmanager
def recorded_jobs() -> Iterator[list[Job]]:
    """Jobs that are given to loops in this context are not done but kept, in order."""
    jobs: list[Job] = []
    token = _recorded.set(jobs)
    try:
        yield jobs
    finally:
        _recorded.reset(token)


@cache
def barrier_address() -> int:
    """Where the threads of a job can wait for each other: void f(void); 0 if jobs run on one thread."""
    library = _openmp()
    return 0 if library is None else ctypes.cast(library.GOMP_barrier, ctypes.c_void_p).value or 0


@cache
def _parallel() -> Callable[[int, int, int, int], None] | None:
    """GOMP_parallel: (function, argument, threads, 0)."""
    library = _openmp()
    if library is None:
        return None
    parallel = library.GOMP_parallel
    parallel.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint]
    parallel.restype = None
    call: Callable[[int, int, int, int], None] = parallel
    return call


@cache
def _openmp() -> ctypes.CDLL | None:
    """The OpenMP library that torch itself runs on, found among those that torch's needs."""
    try:
        library = ctypes.CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so"))
    except OSError:  # another platform's build: one thread then
        return None
    return library if hasattr(library, "GOMP_parallel") and hasattr(library, "GOMP_barrier") else None
