"""A model on a GPU: what is not supported is refused, weights stream in, memory is planned, kernels and graphs made."""

import logging
import math
from pathlib import Path

import torch

from octavo.kernels.fp8 import FP8
from octavo.kernels.gpu.compile_hooks import on_compile
from octavo.kernels.gpu.decode_attention import scratch_size
from octavo.services.executor.cache import bytes_per_block, uniform_attention
from octavo.services.executor.fp8_weights import check_device, is_linear, settle
from octavo.services.executor.gpu.engine import GpuEngine
from octavo.services.executor.gpu.late_compiles import LateCompiles
from octavo.services.executor.gpu.limits import check_supported, memory_for
from octavo.services.executor.gpu.mixed import mixed_sizes
from octavo.services.executor.gpu.weight_stream import Arriving, to_device
from octavo.services.executor.grammars import Grammars
from octavo.services.executor.memory import GIB, GpuPlan, check_weights_fit, longest_request, plan_gpu, step_bytes
from octavo.services.executor.models.decoder import DecoderModel
from octavo.services.executor.source import Source, open_model
from octavo.services.executor.weights import expected_shapes
from octavo.shared.config import Config
from octavo.shared.messages import ModelInfo
from octavo.shared.model_files import ModelFiles
from octavo.shared.process import Stopwatch

log = logging.getLogger(__name__)

BLOCK_SIZE = 64


def load_gpu(config: Config, files: ModelFiles, watch: Stopwatch, folder: Path | None) -> GpuEngine:
    """An engine that is ready to run. Raises ModelError or ConfigError."""
    # An engine that this process had before watches no longer: what a start compiles is not late.
    on_compile(None, None)
    device = torch.device("cuda")
    source = open_model(config, files, "cuda")
    block_size = config.block_size or BLOCK_SIZE
    kv_dtype = FP8 if config.kv_cache_dtype == "fp8" else source.dtype
    check_supported(source.spec, source.dtype, kv_dtype, block_size)
    with memory_for("the weights", "free memory that other processes hold, or take a smaller model"):
        model = _load_model(config, source, device)
    watch.report("weights", detail=f"{torch.cuda.memory_allocated() / GIB:.1f} GiB as {source.dtype_name}")
    grammars = None if folder is None else Grammars(folder)
    plan, info = _plan(config, source, block_size, kv_dtype)
    with memory_for("the KV cache", "lower --gpu-memory-utilization or --num-kv-blocks"):
        engine = GpuEngine(model, info, device, kv_dtype, grammars)
    watch.report("model", detail=f"{info.num_blocks * block_size} tokens of KV in {plan.kv / GIB:.1f} GiB")
    remedy = "lower --gpu-memory-utilization, --max-num-batched-tokens or --max-num-seqs"
    with memory_for("the largest steps", remedy):
        engine.warm_up()
    torch.cuda.synchronize()
    left = torch.cuda.mem_get_info()[0]
    log.info("memory in GiB", extra=_in_gib(plan, left))
    watch.report("graphs", detail=f"{left / GIB:.1f} of {plan.total / GIB:.1f} GiB are left")
    # What a step does on the host is small: threads that share it wait for each other longer than one takes.
    torch.set_num_threads(1)
    late = LateCompiles()
    on_compile(late.begin, late.end)
    return engine


def _load_model(config: Config, source: Source, device: torch.device) -> DecoderModel:
    spec, dtype = source.spec, source.dtype
    check_device(config.quantization, True, dtype, source.model_config)
    shapes, quantization = expected_shapes(spec), source.quantization(config)
    is_fp8 = bool(quantization or source.model_config.get("quantization_config"))
    num_bytes = sum(
        math.prod(shape) * (1 if is_fp8 and is_linear(name) else dtype.itemsize) for name, shape in shapes.items()
    )
    check_weights_fit(num_bytes, source.dtype_name, *torch.cuda.mem_get_info())
    weights = source.weights(config, device)
    if config.load_format != "dummy":
        weights = to_device(weights, dtype, device)
    arriving = Arriving(shapes, settle(weights, quantization, None))
    model = DecoderModel(spec, arriving, dtype, config.max_model_len or source.limit)
    arriving.finish()
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    return model


def _plan(config: Config, source: Source, block_size: int, kv_dtype: torch.dtype) -> tuple[GpuPlan, ModelInfo]:
    spec, dtype = source.spec, source.dtype
    num_slots, num_tokens = config.max_num_seqs or 1024, config.max_num_batched_tokens or 8192
    attention = uniform_attention(spec)
    most_heads = max(layer.attention.heads for layer in spec.layers)
    recorded = mixed_sizes(num_tokens, min(config.max_model_len or source.limit, source.limit))
    most_tokens = num_tokens + max(recorded, default=0)  # recorded steps have memory of their own
    steps = step_bytes(spec, dtype.itemsize, most_tokens, num_slots, num_slots)
    steps += 4 * scratch_size(num_slots, most_heads, attention.kv_heads, attention.head_dim)
    steps += sum(min(rows, num_slots) for rows in recorded) * spec.hidden * dtype.itemsize
    free, total = torch.cuda.mem_get_info()
    per_block = bytes_per_block(spec, block_size, kv_dtype)
    plan = plan_gpu(config, total, free, torch.cuda.memory_allocated(), steps, per_block)
    remedy = "raise --num-kv-blocks or --gpu-memory-utilization"
    info = ModelInfo(
        vocab_size=spec.vocab,
        max_model_len=longest_request(config, source.limit, plan.num_blocks, block_size, remedy),
        block_size=block_size,
        num_blocks=plan.num_blocks,
        num_slots=num_slots,
        max_num_batched_tokens=num_tokens,
        device="cuda",
        dtype=source.dtype_name,
    )
    return plan, info


def _in_gib(plan: GpuPlan, left: int) -> dict[str, str]:
    parts = {"total": plan.total, "weights": plan.weights, "steps": plan.steps, "kv": plan.kv, "left": left}
    return {name: f"{num_bytes / GIB:.2f}" for name, num_bytes in parts.items()}
