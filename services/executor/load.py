"""From a config to an engine that is ready to run: device, dtype, weights, and how many KV blocks there are."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from octavo.services.executor.sim import SimEngine
from octavo.shared.config import Config
from octavo.shared.errors import ConfigError, ModelError
from octavo.shared.messages import ModelInfo, NewRequest, Step, pack
from octavo.shared.model_files import ModelFiles, locate, read_config
from octavo.shared.process import Stopwatch
from octavo.shared.sampling import SamplingParams

if TYPE_CHECKING:
    import torch

    from octavo.services.executor.engine import Engine
    from octavo.services.executor.gpu_engine import GpuEngine
    from octavo.services.executor.models.spec import Decoder

BLOCK_SIZE = 16
GPU_BLOCK_SIZE = 64
MOST_HEAD_BYTES = 512  # of one key on a GPU: its pages in flight must fit into shared memory
LEAST_CAPABILITY = (9, 0)
"""Of a GPU: older ones have no tensor memory accelerator, and nobody has tried the kernels on them."""
SIM_BLOCKS = 65_536
SIM_VOCAB = 32_000
DEFAULT_MAX_LEN = 32_768
"""Of a model that does not say how long its context may be."""


def load_engine(config: Config, watch: Stopwatch) -> "Engine | GpuEngine | SimEngine":
    """The engine that a config asks for; reports each stage to `watch`.

    Raises:
        ModelError: the model cannot be read or is not supported.
        ConfigError: the device or dtype cannot be had here, or memory does not suffice.
    """
    if config.device == "sim":
        return _load_sim(config, watch)
    import torch

    device = choose_device(config)
    torch.set_grad_enabled(False)
    threads = torch.get_num_threads()
    watch.report("torch", detail=f"{torch.__version__}, {device}, {threads} threads")
    # Beside the other services, which start at the same time, threads that wait for each other at each of several
    # thousand small operators have taken 40 s; alone they save 0.1 s.
    torch.set_num_threads(1)
    if device == "cuda":
        return _load_gpu(config, watch)
    engine = _load_cpu(config, watch)
    torch.set_num_threads(threads)
    warm_up(engine)
    watch.report("warm-up")
    return engine


def _load_sim(config: Config, watch: Stopwatch) -> SimEngine:
    files = locate(config.model)
    model: Mapping[str, Any] = read_config(files)
    info = ModelInfo(
        vocab_size=int(model.get("vocab_size", SIM_VOCAB)),
        max_model_len=_max_model_len(config, model, DEFAULT_MAX_LEN, config.num_kv_blocks or SIM_BLOCKS, BLOCK_SIZE),
        block_size=config.block_size or BLOCK_SIZE,
        num_blocks=config.num_kv_blocks or SIM_BLOCKS,
        num_slots=config.max_num_seqs or 1024,
        max_num_batched_tokens=config.max_num_batched_tokens or 8192,
        device="sim",
        dtype="none",
    )
    engine = SimEngine(info, config.sim_step_ms)
    watch.report("model", detail="simulated")
    return engine


def _load_cpu(config: Config, watch: Stopwatch) -> "Engine":
    from octavo.services.executor.cache import available_memory_bytes, bytes_per_block
    from octavo.services.executor.engine import Engine
    from octavo.services.executor.models.decoder import DecoderModel
    from octavo.services.executor.models.families import build_spec

    files = locate(config.model)
    model_config = read_config(files)
    family, spec = build_spec(model_config)
    dtype = _choose_dtype(config, model_config)
    named = _read_named(config, files, family, model_config, spec, dtype)
    block_size = config.block_size or BLOCK_SIZE
    num_bytes = sum(tensor.numel() for tensor in named.values()) * dtype.itemsize
    watch.report("weights", detail=f"{num_bytes / 2**20:.0f} MiB as {str(dtype).removeprefix('torch.')}")
    # The packed copy doubles the weights: only where it is small beside what is free.
    pack = num_bytes * 4 < available_memory_bytes()
    per_block = bytes_per_block(spec, block_size, dtype)
    budget = min(config.cpu_kv_cache_gib * 2**30, available_memory_bytes() / 2 - (num_bytes if pack else 0))
    num_blocks = config.num_kv_blocks or int(budget // per_block)
    if num_blocks < 1:
        raise ConfigError(f"no memory is left for KV blocks of {per_block} bytes: lower --block-size or free memory")
    limit = spec.positions - spec.position_offset if spec.positions else DEFAULT_MAX_LEN
    info = ModelInfo(
        vocab_size=spec.vocab,
        max_model_len=_max_model_len(config, model_config, limit, num_blocks, block_size),
        block_size=block_size,
        num_blocks=num_blocks,
        num_slots=config.max_num_seqs or 64,
        max_num_batched_tokens=config.max_num_batched_tokens or 512,
        device="cpu",
        dtype=str(dtype).removeprefix("torch."),
    )
    engine = Engine(DecoderModel(spec, named, dtype, info.max_model_len, pack), info)
    tokens = num_blocks * block_size
    watch.report("model", detail=f"{tokens} tokens of KV; the first start on a machine compiles its CPU loops")
    return engine


def warm_up(engine: "Engine") -> None:
    """Run a short prompt and a token after it, so that no request waits for what happens at the first use."""
    params = SamplingParams(max_tokens=2, temperature=0.0)
    length = min(3, engine.info.max_model_len - 1, engine.info.max_num_batched_tokens)
    new = NewRequest(0, pack([0] * length), 0, pack([0]), params)
    engine.run(Step(0, 1, new=[new], chunk_slots=pack([0]), chunk_lengths=pack([length])))
    engine.run(Step(0, 2))
    engine.reset()


def _load_gpu(config: Config, watch: Stopwatch) -> "GpuEngine":
    import torch

    from octavo.services.executor.cache import bytes_per_block, uniform_attention
    from octavo.services.executor.gpu_engine import GpuEngine
    from octavo.services.executor.models.decoder import DecoderModel
    from octavo.services.executor.models.families import build_spec

    device = torch.device("cuda")
    files = locate(config.model)
    model_config = read_config(files)
    family, spec = build_spec(model_config)
    dtype = _choose_dtype(config, model_config)
    head_dim = uniform_attention(spec).head_dim
    if head_dim not in (16, 32, 64, 128, 256) or head_dim * dtype.itemsize > MOST_HEAD_BYTES:
        raise ModelError(f"no GPU kernel for heads of {head_dim} dimensions in {dtype}: use --device cpu")
    named = _read_named(config, files, family, model_config, spec, dtype, device)
    limit = config.max_model_len or int(
        model_config.get("max_position_embeddings") or model_config.get("n_positions") or DEFAULT_MAX_LEN  # type: ignore[call-overload]  # JSON
    )
    model = DecoderModel(spec, named, dtype, limit)
    del named
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    num_bytes, name = torch.cuda.memory_allocated(), str(dtype).removeprefix("torch.")
    watch.report("weights", detail=f"{num_bytes / 2**30:.1f} GiB as {name}")
    num_slots, num_tokens = config.max_num_seqs or 1024, config.max_num_batched_tokens or 8192
    block_size = config.block_size or GPU_BLOCK_SIZE
    per_block = bytes_per_block(spec, block_size, dtype)
    free, total = torch.cuda.mem_get_info()
    budget = free - (1 - config.gpu_memory_utilization) * total - activation_bytes(spec, num_tokens, num_slots, dtype)
    num_blocks = config.num_kv_blocks or int(budget // per_block)
    if num_blocks < 1:
        raise ConfigError(f"no GPU memory is left for KV blocks of {per_block} bytes: raise --gpu-memory-utilization")
    info = ModelInfo(
        vocab_size=spec.vocab,
        max_model_len=_max_model_len(config, model_config, limit, num_blocks, block_size),
        block_size=block_size,
        num_blocks=num_blocks,
        num_slots=num_slots,
        max_num_batched_tokens=num_tokens,
        device="cuda",
        dtype=name,
    )
    engine = GpuEngine(model, info, device)
    watch.report("model", detail=f"{num_blocks * block_size} tokens of KV")
    engine.warm_up()
    watch.report("graphs")
    return engine


def activation_bytes(spec: "Decoder", num_tokens: int, num_slots: int, dtype: "torch.dtype") -> int:
    """What a step needs at most beside weights and KV: a layer's intermediates, logits, and slack for libraries."""
    wide = max(layer.attention.heads * layer.attention.head_dim * 4 + layer.mlp.hidden * 3 for layer in spec.layers)
    return (num_tokens * (4 * spec.hidden + wide) + 3 * num_slots * spec.vocab) * dtype.itemsize + 2 * 2**30


def _read_named(
    config: Config,
    files: ModelFiles,
    family: Any,
    model_config: Mapping[str, Any],
    spec: Any,
    dtype: "torch.dtype",
    device: "torch.device | None" = None,
) -> "dict[str, torch.Tensor]":
    from octavo.services.executor.fp8_weights import check_device, settle
    from octavo.services.executor.weights import check_weights, dummy_weights, read_weights

    quantization = config.quantization
    check_device(quantization, device is not None, dtype, model_config)
    if config.load_format == "dummy":
        weights = dummy_weights(spec, config.seed, dtype, device)
        if device is not None and model_config.get("quantization_config"):
            quantization = "fp8"
    else:
        read = check_weights(spec, read_weights(files, family, model_config, dtype))
        weights = ((name, tensor if device is None else tensor.to(device)) for name, tensor in read)
    return dict(settle(weights, quantization, dense=dtype if device is None else None))


def choose_device(config: Config) -> str:
    """ "cuda" or "cpu". Raises ConfigError if a GPU is asked for and none is there that the kernels run on."""
    import torch

    if config.device == "cpu":
        return "cpu"
    capability = torch.cuda.get_device_capability() if torch.cuda.is_available() else (0, 0)
    if config.device == "cuda" and capability < LEAST_CAPABILITY:
        found = "compute capability {}.{}".format(*capability) if capability[0] else "no CUDA device on this machine"
        raise ConfigError(f"--device cuda needs a GPU of compute capability 9.0 (Hopper) or newer; torch finds {found}")
    return "cuda" if capability >= LEAST_CAPABILITY else "cpu"


def _choose_dtype(config: Config, model_config: Mapping[str, Any]) -> "torch.dtype":
    """The dtype asked for; else the model's, where 16 bits become bfloat16 if this CPU computes in it."""
    import torch

    if config.dtype != "auto":
        dtype: torch.dtype = getattr(torch, config.dtype)
        return dtype
    own = model_config.get("dtype") or model_config.get("torch_dtype") or "bfloat16"
    if choose_device(config) == "cuda":
        chosen: torch.dtype = getattr(torch, own)
        return chosen
    return torch.bfloat16 if own != "float32" and has_bfloat16() else torch.float32


def has_bfloat16() -> bool:
    """Whether this CPU has instructions for products of bfloat16."""
    import torch

    return bool(torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def _max_model_len(
    config: Config, model_config: Mapping[str, Any], default: int, num_blocks: int, block_size: int
) -> int:
    """Prompt and completion together: what is asked for, or what the model and the KV blocks allow."""
    own = int(model_config.get("max_position_embeddings") or model_config.get("n_positions") or default)
    if config.max_model_len is not None and config.max_model_len > own:
        raise ConfigError(f"--max-model-len {config.max_model_len}: this model takes at most {own}")
    room = num_blocks * block_size
    if config.max_model_len is not None and config.max_model_len > room:
        raise ConfigError(
            f"--max-model-len {config.max_model_len} needs {-(-config.max_model_len // block_size)} KV blocks; "
            f"there are {num_blocks}: lower it, or raise --num-kv-blocks or --cpu-kv-cache-gib"
        )
    longest = min(config.max_model_len or own, room)
    if longest < 2:
        raise ModelError(f"a context of {longest} tokens leaves no room for a completion")
    return longest
