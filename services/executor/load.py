"""From a config to an engine that is ready to run: where it runs; `load_cpu.py` and `gpu/load.py` do the rest."""

import ctypes
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from octavo.services.executor.memory import DEFAULT_MAX_LEN, context_limit, longest_request
from octavo.services.executor.sim import SimEngine
from octavo.shared.config import Config
from octavo.shared.errors import ConfigError
from octavo.shared.messages import ModelInfo
from octavo.shared.model_files import ModelFiles, locate, read_config, weight_files
from octavo.shared.process import Stopwatch

if TYPE_CHECKING:
    from octavo.services.executor.engine import Engine
    from octavo.services.executor.gpu.engine import GpuEngine

LEAST_CAPABILITY = (9, 0)
"""Of a GPU: older ones have no tensor memory accelerator, and nobody has tried the kernels on them."""
SIM_BLOCKS = 65_536
SIM_BLOCK_SIZE = 16
SIM_VOCAB = 32_000


def load_engine(config: Config, watch: Stopwatch, folder: Path | None = None) -> "Engine | GpuEngine | SimEngine":
    """The engine that a config asks for; reports each stage to `watch`.

    folder: the runtime folder, where compiled grammars lie; None: no request has one.

    Raises:
        ModelError: the model cannot be read or is not supported.
        ConfigError: the device or dtype cannot be had here, or memory does not suffice.
    """
    files = locate(config.model)
    if config.device == "sim":
        return _load_sim(config, files, watch)
    if config.load_format != "dummy":
        _read_ahead(files)
    waking = threading.Thread(target=_wake_gpu, daemon=True)
    if config.device != "cpu":
        waking.start()
    import torch

    device = choose_device(config)
    torch.set_grad_enabled(False)
    watch.report("torch", detail=f"{torch.__version__}, {device}, {torch.get_num_threads()} threads")
    if device == "cuda":
        from octavo.services.executor.gpu.load import load_gpu

        return load_gpu(config, files, watch, folder)
    from octavo.services.executor.load_cpu import load_cpu

    return load_cpu(config, files, watch, folder)


def choose_device(config: Config) -> str:
    """ "cuda" or "cpu". Raises ConfigError if a GPU is asked for and none is there that the kernels run on."""
    from octavo.kernels.gpu.hardware import capability

    if config.device == "cpu":
        return "cpu"
    found_capability = capability()
    if config.device == "cuda" and found_capability < LEAST_CAPABILITY:
        major, minor = found_capability
        found = f"compute capability {major}.{minor}" if major else "no CUDA device on this machine"
        raise ConfigError(f"--device cuda needs a GPU of compute capability 9.0 (Hopper) or newer; torch finds {found}")
    return "cuda" if found_capability >= LEAST_CAPABILITY else "cpu"


def _load_sim(config: Config, files: ModelFiles, watch: Stopwatch) -> SimEngine:
    model: Mapping[str, Any] = read_config(files)
    block_size, num_blocks = config.block_size or SIM_BLOCK_SIZE, config.num_kv_blocks or SIM_BLOCKS
    limit = context_limit(model, DEFAULT_MAX_LEN)
    info = ModelInfo(
        vocab_size=int(model.get("vocab_size", SIM_VOCAB)),
        max_model_len=longest_request(config, limit, num_blocks, block_size, "raise --num-kv-blocks"),
        block_size=block_size,
        num_blocks=num_blocks,
        num_slots=config.max_num_seqs or 1024,
        max_num_batched_tokens=config.max_num_batched_tokens or 8192,
        device="sim",
        dtype="none",
    )
    engine = SimEngine(info, config.sim_step_ms)
    watch.report("model", detail="simulated")
    return engine


def _read_ahead(files: ModelFiles) -> None:
    """Let the kernel bring the weights into its page cache, while this process is still importing."""
    for path in weight_files(files):
        threading.Thread(target=_read_file_ahead, args=(path,), daemon=True).start()


def _read_file_ahead(path: os.PathLike[str]) -> None:
    try:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_WILLNEED)
    except OSError:
        pass  # whoever reads it says what is wrong


def _wake_gpu() -> None:
    """Create the first GPU's CUDA context, which torch will share, while torch is still being imported.

    source: CUDA driver API, cuDevicePrimaryCtxRetain
    """
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return  # no driver, no GPU
    device, major, context = ctypes.c_int(), ctypes.c_int(), ctypes.c_void_p()
    if cuda.cuInit(0) or cuda.cuDeviceGet(ctypes.byref(device), 0):
        return
    # 75: the attribute that holds the major compute capability
    if not cuda.cuDeviceGetAttribute(ctypes.byref(major), 75, device) and major.value >= LEAST_CAPABILITY[0]:
        cuda.cuDevicePrimaryCtxRetain(ctypes.byref(context), device)
