"""What Triton would do on an H200, on a machine without a GPU: launches are compiled for it, and do nothing.

Tensors lie on the `meta` device, which has shapes but no memory, and say that they are on a GPU. A kernel's arguments
are those of the real call, so that Triton specialises it as it would there.
"""

import re
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
import torch
import triton
from torch.overrides import TorchFunctionMode
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime.jit import JITFunction

from octavo.kernels.gpu import prefill_hopper
from octavo.kernels.gpu.overlap import OVERLAP

TARGET = GPUTarget("cuda", 90, 32)
SHARED_BYTES = 232_448  # that one program can have
REGISTERS = 65_536  # of a multiprocessor, for all threads of one program
TOOLS = Path(triton.__file__).parent / "backends/nvidia/bin"
INSTRUCTION = re.compile(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?U?P\w+ +)?(\S+) *(.*?)\s*;")
WRITES_NONE = re.compile(r"ST|RED\.|BAR|BRA|EXIT|SYNCS|UTMA|WARP|BS|CCTL|RET")  # no first operand that is written


@dataclass(frozen=True)
class Launch:
    """One launch: "file._kernel", and what it was compiled to, unless it was only to be noted."""

    kernel: str
    compiled: Any

    def __str__(self) -> str:
        source = self.compiled.src
        given = {source.fn.arg_names[place[0]]: value for place, value in source.constants.items()}
        return f"{self.kernel} with {given} and {self.threads} threads"

    @property
    def ptx(self) -> str:
        return str(self.compiled.asm["ptx"])

    @property
    def shared_bytes(self) -> int:
        return int(self.compiled.metadata.shared)

    @property
    def threads(self) -> int:
        return 32 * int(self.compiled.metadata.num_warps)

    @cached_property
    def usage(self) -> dict[str, int]:
        """What the assembler says of a thread: REG, registers; STACK and LOCAL, bytes outside of them."""
        told = self._told_by("cuobjdump", "-res-usage")
        return {name: int(value) for name, value in re.findall(r"\b(REG|STACK|LOCAL):(\d+)", told)}

    @cached_property
    def unwritten(self) -> list[str]:
        """Instructions that read a uniform register before any, in the order in which they lie, has written it.

        There are no such ones unless the assembler has made a mistake; the addresses of tensor cores' operands lie in
        these registers.
        """
        written: set[int] = set()
        found = []
        for name, rest in INSTRUCTION.findall(self._told_by("nvdisasm", "-c")):
            operands = rest.split(", ")
            own = [] if WRITES_NONE.match(name) else operands[:1]
            read = {place for each in operands[len(own) :] for place in _registers(each, operands)}
            if read - written:
                found.append(f"{name} {rest}")
            wide = 4 if "128" in name else 2 if "64" in name or "WIDE" in name else 1
            written |= {int(n) + more for each in own for n in re.findall(r"\bUR(\d+)", each) for more in range(wide)}
        return found

    def _told_by(self, tool: str, flag: str) -> str:
        """What one of Triton's tools prints of the machine code."""
        with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
            file.write(self.compiled.asm["cubin"])
            file.flush()
            command = [TOOLS / tool, flag, file.name]
            return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def _registers(operand: str, operands: list[str]) -> set[int]:
    """The uniform registers that an operand names: of matrices in shared memory the first of two for each."""
    places = {int(n) for n in re.findall(r"\bUR(\d+)", operand)}
    if "gdesc" not in operand:
        return places
    first = 2 if re.match(r"R\d", operands[1]) else 0  # the left matrix lies in registers of the threads
    return {place + more for place in places for more in range(first, 4)}


@contextmanager
def h200(compile: bool = True) -> Iterator[list[Launch]]:
    """Within it kernels launch for an H200; yields the launches so far, which the caller may clear.

    A kernel is compiled once for each specialization.
    """
    launches: list[Launch] = []
    used: set[JITFunction[Any]] = set()
    run = JITFunction.run

    def note(self: JITFunction[Any], *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> Any:
        used.add(self)
        compiled = run(self, *args, grid=grid, warmup=True, **kwargs) if compile else None
        launches.append(Launch(f"{self.__module__.rpartition('.')[2]}.{self.__name__}", compiled))
        return compiled

    driver = triton.runtime.driver
    before = driver._active
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", note)
        patch.setitem(OVERLAP, "OVERLAP", True)
        patch.setitem(OVERLAP, "launch_pdl", True)
        patch.setattr(prefill_hopper, "IS_HOPPER", True)
        driver.set_active(_Driver())
        try:
            with _OnGpu():
                yield launches
        finally:
            driver._active = before
            for function in used:
                function.device_caches.clear()


class _OnGpu(TorchFunctionMode):
    """Every tensor says that it is on a GPU."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__self__", None) is torch.Tensor.is_cuda:
            return True
        return func(*args, **(kwargs or {}))


class _Utils:
    def get_device_properties(self, device: int) -> dict[str, int]:
        return {"max_shared_mem": SHARED_BYTES, "multiprocessor_count": 132}


class _Driver(DriverBase):
    utils = _Utils()

    def __init__(self) -> None:
        pass

    @classmethod
    def is_active(cls) -> bool:
        return True

    def map_python_to_cpp_type(self, ty: str) -> str:
        return ty

    def get_current_target(self) -> GPUTarget:
        return TARGET

    def get_current_device(self) -> int:
        return 0

    def get_current_stream(self, device: int) -> int:
        return 0

    def get_active_torch_device(self) -> torch.device:
        return torch.device("meta")

    def get_benchmarker(self) -> Any:
        raise RuntimeError("nothing is measured here")
