"""What `benchmarks/kernels.py` measures: each kernel's shapes, its data, and the bytes and flops that it cannot avoid.

A case makes several copies of what lies in memory for long, the weights and the cache, and one call for each copy: so
they come from memory, as in a model whose other layers have been read in between. Copies of activations are fewer than
the second-level cache holds: in a model too they come from there.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from octavo.kernels import rope
from octavo.kernels.gpu.activation import gated
from octavo.kernels.gpu.chunks import TILE, Chunks
from octavo.kernels.gpu.decode_attention import decode_attention, page_boxes, scratch_size
from octavo.kernels.gpu.decode_few import decode_few
from octavo.kernels.gpu.few_rows import few_rows_linear, tile_of
from octavo.kernels.gpu.gated_linear import gated_linear
from octavo.kernels.gpu.linear import one_row_linear
from octavo.kernels.gpu.prefill_attention import prefill_attention
from octavo.kernels.gpu.qkv import Projection, split_qkv
from octavo.kernels.gpu.rms_norm import rms_norm
from octavo.kernels.gpu.sampler_state import pack_state
from octavo.kernels.gpu.sampling import sample
from octavo.kernels.gpu.work_list import most_together, plan_work

Call = Callable[[], object]

DTYPE = torch.bfloat16
PAGE = 64
HEADS, KV_HEADS, DIM = 32, 8, 128  # of Qwen3-8B
VOCAB = 151_936
SCALE = 1 / math.sqrt(DIM)
ROTATED_BYTES = 256 * 2**20  # four times the second-level cache
MOST_COPIES = 64

DECODING_FEW = ((1, 1024), (1, 32_768), (8, 4096))
DECODING = ((16, 1024), (32, 4096), (64, 1024), (256, 1024))
SHARING = ((512, 2112, 32, 2048),)  # requests of a length; so many each that have a prefix in common
PREFILLED = (1024, 4096, 16_384)
TOKENS = (1, 64, 256, 8192)
GATED = (1024, 8192)
CHOSEN = (1, 64, 256)
SAMPLED = {"greedy": (0.0, 0, 1.0), "random": (0.8, 0, 1.0), "top-k 50, top-p 0.95": (0.8, 50, 0.95)}
ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512)
# Rows of the weight, inputs, and what the kernel for one row does beside the product.
LINEAR = {
    "8b": (
        ("qkv", 6144, 4096, "norm"),
        ("o", 4096, 4096, "residual"),
        ("gate_up", 24_576, 4096, "norm, silu"),
        ("down", 4096, 12_288, "residual"),
        ("head", VOCAB, 4096, "norm"),
    ),
    "0.6b": (
        ("qkv", 4096, 1024, "norm"),
        ("o", 1024, 2048, "residual"),
        ("gate_up", 6144, 1024, "norm, silu"),
        ("down", 1024, 3072, "residual"),
        ("head", VOCAB, 1024, "norm"),
    ),
}


@dataclass(frozen=True)
class Case:
    """One kernel at one shape."""

    kernel: str
    shape: str
    num_bytes: float
    """Read and written at least."""
    flops: float
    make: Callable[[], list[Call]]
    """Puts random data on the device; one call for each copy of it."""


def all_cases(device: torch.device) -> Iterator[Case]:
    yield from (decoding_few(device, requests, length) for requests, length in DECODING_FEW)
    yield from (decoding(device, requests, length) for requests, length in DECODING)
    yield from (decoding(device, *one) for one in SHARING)
    yield from (prefilling(device, tokens) for tokens in PREFILLED)
    for tokens in TOKENS:
        yield splitting(device, tokens)
        yield norming(device, tokens, 4096)
        yield gating(device, tokens, 12_288)
    yield from (gated_product(device, rows, 12_288, 4096) for rows in GATED)
    for model, layers in LINEAR.items():
        yield from (one_row(device, f"{model} {name}", rows, inputs, beside) for name, rows, inputs, beside in layers)
    for name, params in SAMPLED.items():
        yield from (sampling(device, rows, name, *params) for rows in CHOSEN)
    for model, layers in LINEAR.items():
        for name, outputs, inputs, _ in layers:
            for rows in ROWS:
                shape = f"{model} {name}", outputs, inputs, rows
                if tile_of(rows, outputs, inputs) is not None:
                    yield product(device, "few_rows_linear", few_rows_linear, *shape)
                yield product(device, "cublas", F.linear, *shape)


def decoding(device: torch.device, requests: int, length: int, group: int = 1, prefix: int = 0) -> Case:
    """Neighbours share a prefix, so many as a group has; what they share is counted once."""
    num_read = requests * (length - prefix) + requests // group * prefix
    kv_bytes = 2 * num_read * KV_HEADS * DIM * DTYPE.itemsize

    def make() -> list[Call]:
        num_blocks = requests * length // PAGE
        tables = _shuffled(device, num_blocks).view(requests, -1)
        tables.view(-1, group, tables.shape[1])[:, 1:, : prefix // PAGE] = tables[::group, None, : prefix // PAGE]
        slots, positions = _range(device, requests), _full(device, requests, length - 1)
        q = _random(device, requests, HEADS, DIM)
        out, scratch = torch.empty_like(q), torch.empty(scratch_size(requests, HEADS, KV_HEADS, DIM), device=device)

        together = most_together(HEADS, KV_HEADS)
        # Once a step, for all layers.
        work = plan_work(slots, positions, tables, KV_HEADS, PAGE, requests, together=together)

        def call() -> Call:
            keys, values = (page_boxes(_random(device, num_blocks, KV_HEADS, PAGE, DIM)) for _ in range(2))
            return lambda: decode_attention(
                q, keys, values, tables, slots, positions, scratch, out, KV_HEADS, SCALE, work=work
            )

        return _copies(call, kv_bytes)

    q_bytes = requests * HEADS * DIM * DTYPE.itemsize
    flops = 4 * requests * length * HEADS * DIM
    shape = f"{requests} x {length}" + (f", {prefix} of each {group} shared" if prefix else "")
    return Case("decode_attention", shape, kv_bytes + 2 * q_bytes, flops, make)


def decoding_few(device: torch.device, requests: int, length: int) -> Case:
    """With norm, RoPE and cache write, as the engine does it for so few."""
    kv_bytes = 2 * requests * length * KV_HEADS * DIM * DTYPE.itemsize

    def make() -> list[Call]:
        num_blocks = requests * length // PAGE
        tables = _shuffled(device, num_blocks).view(requests, -1)
        slots, positions = _range(device, requests), _full(device, requests, length - 1)
        qkv = _random(device, requests, (HEADS + 2 * KV_HEADS) * DIM)
        turns = _random(device, length, 1, DIM), _random(device, length, 1, DIM)
        norms = _random(device, DIM), _random(device, DIM)
        out = _random(device, requests, HEADS, DIM)
        scratch = torch.empty(scratch_size(requests, HEADS, KV_HEADS, DIM), device=device)

        def call() -> Call:
            keys, values = (_random(device, num_blocks, KV_HEADS, PAGE, DIM) for _ in range(2))
            boxes, projection = (
                (page_boxes(keys), page_boxes(values)),
                Projection(qkv, HEADS, keys, values, *turns, False, *norms, 1e-6),
            )
            return lambda: decode_few(projection, *boxes, tables, slots, positions, scratch, out, SCALE)

        return _copies(call, kv_bytes)

    flops = 4 * requests * length * HEADS * DIM
    return Case("decode_few", f"{requests} x {length}", kv_bytes, flops, make)


def prefilling(device: torch.device, tokens: int) -> Case:
    kv_bytes = 2 * tokens * KV_HEADS * DIM * DTYPE.itemsize

    def make() -> list[Call]:
        num_blocks = tokens // PAGE
        tables, zero, count = _shuffled(device, num_blocks).view(1, -1), _full(device, 1, 0), _full(device, 1, tokens)
        starts = _range(device, tokens // TILE).flip(0) * TILE  # those with the most work first
        chunks = Chunks(zero, count, count, zero, torch.zeros_like(starts), starts, _full(device, 1, len(starts)))
        q = _random(device, tokens, HEADS, DIM)
        out = torch.empty_like(q)

        def call() -> Call:
            keys, values = (page_boxes(_random(device, num_blocks, KV_HEADS, PAGE, DIM)) for _ in range(2))
            return lambda: prefill_attention(q, keys, values, tables, chunks, out, KV_HEADS, SCALE)

        return _copies(call, kv_bytes)

    q_bytes = tokens * HEADS * DIM * DTYPE.itemsize
    flops = 4 * HEADS * DIM * tokens * (tokens + 1) / 2  # a token sees itself and those before it
    return Case("prefill_attention", f"{tokens}, causal", kv_bytes + 2 * q_bytes, flops, make)


def splitting(device: torch.device, tokens: int) -> Case:
    """Every token belongs to a request of its own, as in decoding."""
    heads = HEADS + 2 * KV_HEADS

    def make() -> list[Call]:
        tables, slots = _shuffled(device, tokens).view(tokens, 1), _range(device, tokens)
        positions = slots % PAGE
        angles = torch.rand(PAGE, DIM // 2, device=device) * 6
        cos, sin = (each[:, None].to(DTYPE) for each in rope.tables(angles, 1.0))
        weights = [_random(device, DIM) for _ in range(2)]
        keys, values = (_random(device, tokens, KV_HEADS, PAGE, DIM) for _ in range(2))

        def call() -> Call:
            qkv = _random(device, tokens, heads * DIM)
            projection = Projection(qkv, HEADS, keys, values, cos, sin, False, weights[0], weights[1], 1e-6)
            return lambda: split_qkv(projection, tables, slots, positions)

        return _copies(call, tokens * heads * DIM * DTYPE.itemsize)

    return Case("split_qkv", f"{tokens} tokens", 2 * tokens * heads * DIM * DTYPE.itemsize, 0, make)


def norming(device: torch.device, tokens: int, size: int) -> Case:
    num_bytes = tokens * size * DTYPE.itemsize

    def make() -> list[Call]:
        weight = _random(device, size)

        def call() -> Call:
            x = _random(device, tokens, size)
            return lambda: rms_norm(x, weight, 1e-6)

        return _copies(call, num_bytes)

    return Case("rms_norm", f"{tokens} x {size}", 2 * num_bytes, 0, make)


def gating(device: torch.device, tokens: int, size: int) -> Case:
    num_bytes = tokens * size * DTYPE.itemsize

    def call() -> Call:
        x = _random(device, tokens, 2 * size)
        return lambda: gated(x, False)

    return Case("gated", f"{tokens} x {size}", 3 * num_bytes, 0, lambda: _copies(call, 2 * num_bytes))


def gated_product(device: torch.device, rows: int, size: int, inputs: int) -> Case:
    """What `cublas` does for gate_up and `gated` after it."""
    num_bytes = 2 * size * inputs * DTYPE.itemsize

    def make() -> list[Call]:
        x = _random(device, rows, inputs)

        def call() -> Call:
            weight = _random(device, 2 * size, inputs) / math.sqrt(inputs)
            return lambda: gated_linear(x, weight, "silu")

        return _copies(call, num_bytes)

    around = rows * (inputs + size) * DTYPE.itemsize
    shape = f"{rows} rows, 2 x {size} x {inputs}"
    return Case("gated_linear", shape, num_bytes + around, 2 * rows * 2 * size * inputs, make)


def one_row(device: torch.device, name: str, rows: int, inputs: int, beside: str) -> Case:
    """With what the model has beside the product."""
    num_bytes = rows * inputs * DTYPE.itemsize

    def make() -> list[Call]:
        x, norm = _random(device, 1, inputs), (_random(device, inputs), 1e-6)
        residual = _random(device, 1, rows) if "residual" in beside else None

        def call() -> Call:
            weight = _random(device, rows, inputs) / math.sqrt(inputs)
            return lambda: one_row_linear(
                x, weight, residual, norm if "norm" in beside else None, "silu" if "silu" in beside else None
            )

        return _copies(call, num_bytes)

    return Case("one_row_linear", f"{name}, {rows} x {inputs}, {beside}", num_bytes, 2 * rows * inputs, make)


def product(
    device: torch.device,
    kernel: str,
    multiply: Callable[[Tensor, Tensor], Tensor],
    name: str,
    outputs: int,
    inputs: int,
    rows: int,
) -> Case:
    """multiply: of [rows, inputs] and [outputs, inputs]."""
    num_bytes = outputs * inputs * DTYPE.itemsize

    def make() -> list[Call]:
        x = _random(device, rows, inputs)

        def call() -> Call:
            weight = _random(device, outputs, inputs) / math.sqrt(inputs)
            return lambda: multiply(x, weight)

        return _copies(call, num_bytes)

    around = rows * (inputs + outputs) * DTYPE.itemsize
    return Case(kernel, f"{name}, {rows} rows", num_bytes + around, 2 * rows * outputs * inputs, make)


def sampling(device: torch.device, rows: int, name: str, temperature: float, top_k: int, top_p: float) -> Case:
    num_bytes = rows * VOCAB * DTYPE.itemsize

    def make() -> list[Call]:
        one = pack_state(temperature, top_k, top_p, math.inf, 7, 0, (1.0, 0.0, 0.0), None)
        state = torch.tensor([one] * rows, dtype=torch.int32, device=device)
        slots, out, last = _range(device, rows), _full(device, rows, 0), _full(device, rows, 0)
        positions = _full(device, rows, 1000)

        def call() -> Call:
            logits = _random(device, rows, VOCAB)
            return lambda: sample(logits, state, slots, positions, out, last)

        return _copies(call, num_bytes)

    return Case("sample", f"{name}, {rows} x {VOCAB}", num_bytes, 0, make)


def _copies(make: Callable[[], Call], num_bytes: float) -> list[Call]:
    """Calls on so many copies, of so many bytes each, that a copy has left the cache when it is used again."""
    return [make() for _ in range(min(MOST_COPIES, max(2, math.ceil(ROTATED_BYTES / num_bytes))))]


def _random(device: torch.device, *shape: int) -> Tensor:
    """Zeros would draw less power, and the clock would be higher than in a model."""
    return torch.randn(shape, dtype=DTYPE, device=device)


def _shuffled(device: torch.device, count: int) -> Tensor:
    return torch.randperm(count, device=device).to(torch.int32)


def _range(device: torch.device, count: int) -> Tensor:
    return torch.arange(count, dtype=torch.int32, device=device)


def _full(device: torch.device, count: int, value: int) -> Tensor:
    return torch.full((count,), value, dtype=torch.int32, device=device)
