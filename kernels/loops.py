"""CPU loops that numba compiles: the inner parts of the kernels, free of checks and of Python.

Each is whole in one file because numba's cache on disk notices changes of the file itself, not of its imports: here,
in draw_loop.py or in tile_loops.py. Each loop takes one argument, the address of a job: int64 words that
`native.Loop.run` fills. The argument's type tells the element type of the tensors: float* for float32, uint16* for
bfloat16. Word 0 counts the items that threads have taken; the others are sizes, strides in elements, addresses (0 for
none) and bits of floats. Word 1 is the number of rows or a multiple of it, and no other depends on that number:
replay.py builds on it. Arithmetic is in float32.
"""

# mypy: ignore-errors
# numba infers the types here: annotations would say nothing, and its decorators have none.

import math

import numpy as np
from llvmlite import binding
from numba import cfunc, njit, types
from numba.core import config

from octavo.kernels.draw_loop import draw
from octavo.kernels.intrinsics import (
    advance,
    at,
    call,
    doubles,
    exp,
    ints,
    load,
    prefetch,
    singles,
    store,
    take,
    words,
)
from octavo.kernels.tile_loops import tile_linear

# LLVM prefers half of AVX-512's width, for mixed code on CPUs whose clock drops with it. These loops are vectors
# from end to end: attention is 1.4 times faster at full width.
if config.CPU_FEATURES is None:
    config.CPU_NAME = config.CPU_NAME or binding.get_host_cpu_name()
    config.CPU_FEATURES = binding.get_host_cpu_features().flatten() + ",-prefer-256-bit"

PREFETCH_BYTES = 4096  # how far ahead weights are asked for: past the page where a hardware prefetcher stops
SUMS = {"reassoc", "contract", "nsz"}  # a sum may be taken in any order; NaN and inf stay what they are
CONTRACT = {"contract"}

_INF = np.float32(np.inf)


@njit(fastmath=SUMS, error_model="numpy", forceinline=True)
def _dot(a, b, size):
    total = np.float32(0)
    for i in range(size):
        total += load(a[i]) * load(b[i])
    return total


@njit(fastmath=SUMS, error_model="numpy", forceinline=True)
def _sum_of_squares(x, size):
    total = np.float32(0)
    for i in range(size):
        total += load(x[i]) * load(x[i])
    return total


def rms_norm(raw):
    """Items are rows. Words: rows, size, x, weight, out, eps."""
    job = words(raw)
    rows, size = job[1], job[2]
    x, weight, out = at(job[3], raw), at(job[4], raw), at(job[5], raw)
    eps = doubles(raw)[6]
    has_weight = job[4] != 0
    row = take(job)
    while row < rows:
        _norm_row(advance(x, row * size), weight, has_weight, advance(out, row * size), size, eps)
        row = take(job)


@njit(fastmath=CONTRACT, error_model="numpy", forceinline=True)
def _norm_row(x, weight, has_weight, out, size, eps):
    factor = np.float32(1.0 / math.sqrt(_sum_of_squares(x, size) / size + eps))
    if has_weight:
        for i in range(size):
            store(out, i, load(x[i]) * factor * load(weight[i]))
    else:
        for i in range(size):
            store(out, i, load(x[i]) * factor)


def rope(raw):
    """Items are tokens. Words: tokens, heads, head_dim, dim, token and head strides of x, is_interleaved,
    x, cos, sin, out."""
    job = words(raw)
    tokens, heads, head_dim, dim = job[1], job[2], job[3], job[4]
    x, cos, sin, out = at(job[8], raw), at(job[9], raw), at(job[10], raw), at(job[11], raw)
    token = take(job)
    while token < tokens:
        c, s = advance(cos, token * dim), advance(sin, token * dim)
        for head in range(heads):
            source = advance(x, token * job[5] + head * job[6])
            _turn(source, c, s, advance(out, (token * heads + head) * head_dim), dim, job[7] != 0)
            for i in range(dim, head_dim):
                advance(out, (token * heads + head) * head_dim)[i] = source[i]
        token = take(job)


@njit(fastmath=CONTRACT, error_model="numpy", forceinline=True)
def _turn(x, cos, sin, out, dim, is_interleaved):
    half = dim // 2
    if is_interleaved:
        for i in range(half):
            a, b = load(x[2 * i]), load(x[2 * i + 1])
            store(out, 2 * i, a * load(cos[2 * i]) + b * load(sin[2 * i]))
            store(out, 2 * i + 1, b * load(cos[2 * i + 1]) + a * load(sin[2 * i + 1]))
    else:
        for i in range(half):
            store(out, i, load(x[i]) * load(cos[i]) + load(x[half + i]) * load(sin[i]))
        for i in range(half, dim):
            store(out, i, load(x[i]) * load(cos[i]) + load(x[i - half]) * load(sin[i]))


def cache_write(raw):
    """Items are tokens. Words: tokens, kv_heads, head_dim, block_size, places; then for keys and for values:
    source, its token and head strides, cache, its block, head and offset strides."""
    job = words(raw)
    tokens, heads, dim, block_size, places = job[1], job[2], job[3], job[4], words(job[5])
    token = take(job)
    while token < tokens:
        block, offset = places[token] // block_size, places[token] % block_size
        for first in range(6, 20, 7):
            for head in range(heads):
                source = advance(at(job[first], raw), token * job[first + 1] + head * job[first + 2])
                place = block * job[first + 4] + head * job[first + 5] + offset * job[first + 6]
                target = advance(at(job[first + 3], raw), place)
                for i in range(dim):
                    target[i] = source[i]
        token = take(job)


def gated(raw):
    """Items are rows. Words: rows, size, gate_up [rows, 2 * size], out, is_gelu (else silu)."""
    job = words(raw)
    rows, size, gate_up, out = job[1], job[2], at(job[3], raw), at(job[4], raw)
    row = take(job)
    while row < rows:
        gate = advance(gate_up, 2 * row * size)
        _gate_row(gate, advance(gate, size), advance(out, row * size), size, job[5] != 0)
        row = take(job)


@njit(fastmath=CONTRACT, error_model="numpy", forceinline=True)
def _gate_row(gate, up, out, size, is_gelu):
    one = np.float32(1)
    if is_gelu:
        # tanh's form of gelu: x * (1 + tanh(u)) / 2 = x / (1 + exp(-2 u))
        for i in range(size):
            x = load(gate[i])
            u = x * (np.float32(1.5957691216) + np.float32(0.0713548162726) * x * x)
            store(out, i, x / (one + exp(-u)) * load(up[i]))
    else:
        for i in range(size):
            x = load(gate[i])
            store(out, i, x / (one + exp(-x)) * load(up[i]))


def linear(raw):
    """Items are runs of outputs. Words: rows, inputs, outputs, outputs per item, bytes per weight row,
    x, weight, bias, residual, out."""
    job = words(raw)
    rows, inputs, outputs, run = job[1], job[2], job[3], job[4]
    x, weight, out = at(job[6], raw), at(job[7], raw), at(job[10], raw)
    bias, residual = at(job[8], raw), at(job[9], raw)
    item = take(job)
    while item * run < outputs:
        for n in range(item * run, min(outputs, (item + 1) * run)):
            line = job[7] + n * job[5] + PREFETCH_BYTES
            for ahead in range(0, job[5], 64):
                prefetch(line + ahead)
            for row in range(rows):
                y = _dot(advance(x, row * inputs), advance(weight, n * inputs), inputs)
                if job[8] != 0:
                    y += load(bias[n])
                if job[9] != 0:
                    y += load(residual[row * outputs + n])
                store(out, row * outputs + n, y)
        item = take(job)


def decode_attention(raw):
    """Items are the kv heads of each request. Words: requests, kv_heads, group, head_dim, block_size, window,
    q, its request and head strides, out, tables, their row stride, lengths, scratch, scale, softcap (0 for
    none); then twice, for keys and values: cache, its block, head and offset strides.

    scratch has group * (2 * head_dim + 2) + block_size floats an item: the scaled queries, the sums of
    values, the greatest score and the sum of weights of each head, and the weights of one block.
    """
    job = words(raw)
    requests, kv_heads, group, dim, block_size = job[1], job[2], job[3], job[4], job[5]
    scale = np.float32(doubles(raw)[15])
    num_floats = group * (2 * dim + 2) + block_size
    item = take(job)
    while item < requests * kv_heads:
        request, kv_head = item // kv_heads, item % kv_heads
        length = np.int64(ints(job[13])[request])
        first, last = max(np.int64(0), length - job[6]), (length - 1) // block_size
        table = advance(ints(job[11]), request * job[12])
        queries = advance(singles(job[14]), item * num_floats)
        sums, greatest = advance(queries, group * dim), advance(queries, 2 * group * dim)
        totals, weights = advance(greatest, group), advance(greatest, 2 * group)
        for head in range(group):
            source = advance(at(job[7], raw), request * job[8] + (kv_head * group + head) * job[9])
            for i in range(dim):
                queries[head * dim + i] = load(source[i]) * scale
                sums[head * dim + i] = np.float32(0)
            greatest[head], totals[head] = -_INF, np.float32(0)
        for block in range(first // block_size, last + 1):
            low = max(first - block * block_size, np.int64(0))
            count = min(block_size, length - block * block_size) - low
            place = np.int64(table[block])
            keys = advance(at(job[17], raw), place * job[18] + kv_head * job[19] + low * job[20])
            values = advance(at(job[21], raw), place * job[22] + kv_head * job[23] + low * job[24])
            for head in range(group):
                _attend_block(
                    advance(queries, head * dim), advance(sums, head * dim), advance(greatest, head),
                    advance(totals, head), weights, keys, job[20], values, job[24], count, dim,
                    np.float32(doubles(raw)[16]),
                )  # fmt: skip
        for head in range(group):
            out = advance(at(job[10], raw), (request * kv_heads * group + kv_head * group + head) * dim)
            for i in range(dim):
                store(out, i, sums[head * dim + i] / totals[head])
        item = take(job)


@njit(fastmath=CONTRACT, error_model="numpy", forceinline=True)
def _attend_block(query, sums, greatest, totals, weights, keys, key_stride, values, value_stride, count, dim, softcap):
    """One head's softmax over one more block: earlier sums are scaled down when a greater score comes."""
    for j in range(count):
        weights[j] = _dot(query, advance(keys, j * key_stride), dim)
    if softcap != np.float32(0):
        for j in range(count):
            weights[j] = softcap * np.float32(math.tanh(weights[j] / softcap))
    peak = greatest[0]
    for j in range(count):
        peak = max(peak, weights[j])
    if peak > greatest[0]:
        shrink = exp(greatest[0] - peak)
        totals[0] *= shrink
        for i in range(dim):
            sums[i] *= shrink
        greatest[0] = peak
    for j in range(count):
        weights[j] = exp(weights[j] - peak)
    for j in range(count):
        totals[0] += weights[j]
    # Four values at a time, so that the sums are read and written a quarter as often.
    fours = count - count % 4
    for j in range(0, fours, 4):
        a, b, c, d = weights[j], weights[j + 1], weights[j + 2], weights[j + 3]
        first = advance(values, j * value_stride)
        second = advance(first, value_stride)
        third = advance(second, value_stride)
        fourth = advance(third, value_stride)
        for i in range(dim):
            sums[i] += a * load(first[i]) + b * load(second[i]) + c * load(third[i]) + d * load(fourth[i])
    for j in range(fours, count):
        weight, value = weights[j], advance(values, j * value_stride)
        for i in range(dim):
            sums[i] += weight * load(value[i])


def replay(raw):
    """Other jobs, one after another: every thread takes part in each, and waits for all at its end. Words: jobs,
    table of their words, bytes from job to job, addresses of their loops, a barrier of the threads or 0."""
    job = words(raw)
    for i in range(job[1]):
        call(words(job[4])[i], job[2] + i * job[3])
        if job[5] != 0:
            call(job[5], 0)


LOOPS = {
    "cache_write": cache_write,
    "decode_attention": decode_attention,
    "draw": draw,
    "gated": gated,
    "linear": linear,
    "replay": replay,
    "rms_norm": rms_norm,
    "rope": rope,
}
if "+amx-bf16" in config.CPU_FEATURES:  # without, LLVM would abort the process
    LOOPS["tile_linear"] = tile_linear


def compile_loop(name, element, cache):
    """The address of a loop's machine code, and its owner. A zero divisor gives inf, not an exception."""
    signature = types.void(types.CPointer({"float32": types.float32, "bfloat16": types.uint16}[element]))
    compiled = cfunc(signature, cache=cache, fastmath=CONTRACT, error_model="numpy")(LOOPS[name])
    return compiled.address, compiled
