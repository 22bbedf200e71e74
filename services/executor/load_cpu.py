"""A model on the CPU: its weights, as many KV blocks as are asked for and fit, and one step to warm up."""

from pathlib import Path

import torch

from octavo.kernels.native import find_loop
from octavo.services.executor.cache import available_memory_bytes, bytes_per_block
from octavo.services.executor.engine import Engine
from octavo.services.executor.fp8_weights import check_device, settle
from octavo.services.executor.grammars import Grammars
from octavo.services.executor.memory import GIB, longest_request
from octavo.services.executor.models.decoder import DecoderModel
from octavo.services.executor.source import open_model
from octavo.shared.config import Config
from octavo.shared.errors import ConfigError
from octavo.shared.messages import ModelInfo, NewRequest, Step, pack
from octavo.shared.model_files import ModelFiles
from octavo.shared.process import Stopwatch
from octavo.shared.sampling import SamplingParams

BLOCK_SIZE = 16


def load_cpu(config: Config, files: ModelFiles, watch: Stopwatch, folder: Path | None) -> Engine:
    """An engine that is ready to run. Raises ModelError or ConfigError."""
    threads = torch.get_num_threads()
    # Beside the other services, which start at the same time, threads that wait for each other at each of several
    # thousand small operators have taken 40 s; alone they save 0.1 s.
    torch.set_num_threads(1)
    engine = _load(config, files, watch, None if folder is None else Grammars(folder))
    torch.set_num_threads(threads)
    _warm_up(engine)
    watch.report("warm-up")
    return engine


def _load(config: Config, files: ModelFiles, watch: Stopwatch, grammars: Grammars | None) -> Engine:
    if config.kv_cache_dtype == "fp8":
        raise ConfigError("--kv-cache-dtype fp8 needs --device cuda: on a CPU keys and values are kept in --dtype")
    source = open_model(config, files, "cpu")
    spec, dtype = source.spec, source.dtype
    check_device(config.quantization, False, dtype, source.model_config)
    named = dict(settle(source.weights(config, torch.device("cpu")), None, dense=dtype))
    num_bytes = sum(tensor.numel() for tensor in named.values()) * dtype.itemsize
    watch.report("weights", detail=f"{num_bytes / 2**20:.0f} MiB as {source.dtype_name}")
    # The packed copy doubles the weights: only where it is small beside what is free.
    pack = num_bytes * 4 < available_memory_bytes()
    block_size = config.block_size or BLOCK_SIZE
    per_block = bytes_per_block(spec, block_size, dtype)
    budget = min(config.cpu_kv_cache_gib * GIB, available_memory_bytes() / 2 - (num_bytes if pack else 0))
    num_blocks = config.num_kv_blocks or int(budget // per_block)
    if num_blocks < 1:
        raise ConfigError(
            f"no memory is left for KV blocks of {per_block} bytes: lower --block-size, raise --cpu-kv-cache-gib "
            "or free memory"
        )
    remedy = "raise --num-kv-blocks or --cpu-kv-cache-gib"
    info = ModelInfo(
        vocab_size=spec.vocab,
        max_model_len=longest_request(config, source.limit, num_blocks, block_size, remedy),
        block_size=block_size,
        num_blocks=num_blocks,
        num_slots=config.max_num_seqs or 64,
        max_num_batched_tokens=config.max_num_batched_tokens or 512,
        device="cpu",
        dtype=source.dtype_name,
    )
    engine = Engine(DecoderModel(spec, named, dtype, info.max_model_len, pack), info, grammars)
    tokens = num_blocks * block_size
    watch.report("model", detail=f"{tokens} tokens of KV; the first start on a machine compiles its CPU loops")
    return engine


def _warm_up(engine: Engine) -> None:
    """Run a short prompt and a token after it, so that no request waits for what happens at the first use."""
    params = SamplingParams(max_tokens=2, temperature=1.0)
    length = min(3, engine.info.max_model_len - 1, engine.info.max_num_batched_tokens)
    new = NewRequest(0, pack([0] * length), 0, pack([0]), params)
    engine.run(Step(0, 1, new=[new], chunk_slots=pack([0]), chunk_lengths=pack([length])))
    engine.run(Step(0, 2))
    engine.reset()
    find_loop("draw", torch.float32, torch.device("cpu"))  # for requests that change their logits
