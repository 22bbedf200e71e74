"""Everything that the GPU engine launches, for models and dtypes as people serve them; see `tests.tools.sm90`.

A model is its config, with one layer of each kind. The decoder itself runs the steps, so that what is launched here is
what is launched there. What is launched outside of the decoder has a line in OTHERS.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from octavo.kernels.gpu.chunks import Chunks
from octavo.kernels.gpu.embedding import gather
from octavo.kernels.gpu.logprobs import logprobs
from octavo.kernels.gpu.masks import masked_rows
from octavo.kernels.gpu.pages import begin_pages
from octavo.kernels.gpu.sampler_state import COLUMNS
from octavo.kernels.gpu.sampling import sample
from octavo.services.executor.cache import KvCache
from octavo.services.executor.fp8_weights import settle
from octavo.services.executor.gpu.batch import GpuAttention, GpuCache
from octavo.services.executor.gpu.load import BLOCK_SIZE
from octavo.services.executor.models.decoder import DecoderModel
from octavo.services.executor.models.families import build_spec
from octavo.services.executor.weights import expected_shapes
from octavo.shared.sampling import MAX_LOGPROBS

FP8 = "-fp8"
MAX_POSITIONS = 4096
META = torch.device("meta")
NUM_SLOTS, MAX_BLOCKS, NUM_BLOCKS = 1024, MAX_POSITIONS // BLOCK_SIZE, 4096
BATCHES = (1, 8, 256)  # of decoding requests: one row, few and many; attention is split in 16, 4 and 1 for 8 kv heads

COMMON = {"num_hidden_layers": 1, "max_position_embeddings": MAX_POSITIONS, "rms_norm_eps": 1e-6, "hidden_act": "silu"}
QWEN3 = {"model_type": "qwen3", "vocab_size": 151936, "num_key_value_heads": 8, "head_dim": 128}
LLAMA = {"model_type": "llama", "vocab_size": 128256, "num_attention_heads": 32, "num_key_value_heads": 8}
GEMMA = {"num_hidden_layers": 2, "layer_types": ["sliding_attention", "full_attention"], "vocab_size": 256000,
         "hidden_activation": "gelu_pytorch_tanh", "head_dim": 256, "query_pre_attn_scalar": 256}  # fmt: skip
GEMMA2 = GEMMA | {"model_type": "gemma2", "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0}
GEMMA3 = GEMMA | {"model_type": "gemma3_text"}


def sizes(hidden: int, mlp: int, heads: int, **more: Any) -> dict[str, Any]:
    return {"hidden_size": hidden, "intermediate_size": mlp, "num_attention_heads": heads, **more}


MODELS: dict[str, dict[str, Any]] = {
    "Qwen3-0.6B": QWEN3 | sizes(1024, 3072, 16, tie_word_embeddings=True),
    "Qwen3-8B": QWEN3 | sizes(4096, 12288, 32),
    "Llama-3.2-1B": LLAMA | sizes(2048, 8192, 32, head_dim=64),
    "Llama-3.1-8B": LLAMA | sizes(4096, 14336, 32, head_dim=128),
    "SmolLM2-135M": LLAMA | sizes(576, 1536, 9, num_key_value_heads=3, vocab_size=49152, tie_word_embeddings=True),
    "Gemma-2-9B": GEMMA2 | sizes(3584, 14336, 16, num_key_value_heads=8, sliding_window=4096),
    "Gemma-3-1B": GEMMA3 | sizes(1152, 6912, 4, num_key_value_heads=1, sliding_window=512),
}


def empty(*shape: int, dtype: torch.dtype = torch.int32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device=META)


def choose(dtype: torch.dtype) -> None:
    """What chooses tokens and tells their logprobs."""
    logits, state, rows = empty(8, 151936, dtype=dtype), empty(NUM_SLOTS + 1, COLUMNS), empty(8)
    sample(logits, state, rows, rows, rows, empty(NUM_SLOTS + 1))
    masked_rows(logits, empty(8, dtype=torch.int64), empty(8, 151936 // 32))
    chosen, top = empty(8, dtype=torch.float32), empty(8, MAX_LOGPROBS, dtype=torch.float32)
    logprobs(logits, state, rows, rows, chosen, top, empty(8, MAX_LOGPROBS))


def change_pages(dtype: torch.dtype) -> None:
    """What a step changes before it runs."""
    cache = torch.empty(2, 2, 10, 8, 64, 128, dtype=torch.int32 if dtype == torch.float32 else torch.int16, device=META)
    begin_pages(empty(NUM_SLOTS + 1, MAX_BLOCKS), empty(3), empty(3), empty(3), cache, empty(2))


OTHERS: dict[str, Callable[[torch.dtype], object]] = {"choose": choose, "change_pages": change_pages}


def launch(name: str, dtype: torch.dtype) -> None:
    """All of a model of MODELS, with FP8 weights if its name ends so, or one of OTHERS."""
    if name in OTHERS:
        OTHERS[name](dtype)
    else:
        _run_steps(MODELS[name.removesuffix(FP8)], dtype, "fp8" if name.endswith(FP8) else None)


def _run_steps(config: dict[str, Any], dtype: torch.dtype, quantization: str | None) -> None:
    """Decoding at all of BATCHES, and two chunks beside eight requests that decode, also as a graph records it.

    Chunks are of few rows, and of so many that the kernels for these are launched.
    """
    _, spec = build_spec(COMMON | config)
    shapes = expected_shapes(spec).items()
    weights = settle(((name, empty(*shape, dtype=dtype)) for name, shape in shapes), quantization, dense=None)
    model = DecoderModel(spec, dict(weights), dtype, MAX_POSITIONS)
    cache = GpuCache(spec, KvCache(spec, NUM_BLOCKS, BLOCK_SIZE, dtype, META), NUM_SLOTS, MAX_BLOCKS)
    chunks = Chunks(*(empty(2) for _ in range(4)), *(empty(9) for _ in range(2)), empty(1))
    steps = [*((batch, 0, None) for batch in BATCHES), (8, 500, None), (8, 4088, empty(8))]
    for decoding, num_new, positions in steps:
        rows, new = decoding + num_new, chunks if num_new else None
        attention = GpuAttention(cache, empty(rows), empty(rows), decoding, new, positions)
        embedded = gather(model.embed, empty(NUM_SLOTS + 1), empty(rows), empty(rows) if new else None)
        model.logits(model.hidden_of(embedded, empty(rows), attention)[:decoding])
