"""What `octavo doctor` asks of the executor: which device and dtype it would choose, as one line of JSON."""

import json
import os
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import torch

from octavo.services.executor.gpu.limits import has_c_compiler
from octavo.services.executor.load import LEAST_CAPABILITY, choose_device
from octavo.services.executor.memory import GIB
from octavo.services.executor.source import has_bfloat16
from octavo.shared.config import Config


def describe_gpu(index: int) -> str:
    """Name, compute capability and memory."""
    free, total = torch.cuda.mem_get_info(index)
    capability = torch.cuda.get_device_capability(index)
    told = f"{torch.cuda.get_device_name(index)}, compute capability {capability[0]}.{capability[1]}"
    if capability < LEAST_CAPABILITY:
        told += f" (too old: {LEAST_CAPABILITY[0]}.{LEAST_CAPABILITY[1]} is needed)"
    return f"{told}, {free / GIB:.1f} of {total / GIB:.1f} GiB free"


def describe_triton() -> str:
    """Its version, and how many compiled kernels its cache keeps for the next start."""
    try:
        found = version("triton")
    except PackageNotFoundError:
        return "missing; torch's builds for CUDA bring it"
    if not has_c_compiler():
        return f"{found}, which needs a C compiler, and there is none: install gcc"
    folder = Path(os.environ.get("TRITON_CACHE_DIR") or Path.home() / ".triton" / "cache")
    return f"{found}, {len(list(folder.glob('*/*.cubin')))} kernels in {folder}"


if __name__ == "__main__":
    gpus = range(torch.cuda.device_count() if torch.cuda.is_available() else 0)
    names = [torch.cuda.get_device_name(index) for index in gpus]
    device = choose_device(Config())
    found = {
        "name": ", ".join(names) or f"no GPU; CPU with {torch.backends.cpu.get_cpu_capability()}",
        "device": device,
        "dtype": "bfloat16" if device == "cuda" or has_bfloat16() else "float32",
    }
    found |= {f"gpu {index}": describe_gpu(index) for index in gpus}
    if gpus:
        found |= {"cuda": f"{torch.version.cuda} in torch", "triton": describe_triton()}
    print(json.dumps(found))
