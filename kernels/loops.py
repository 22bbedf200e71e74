"""CPU loops that numba compiles: the inner parts of the kernels, free of checks and of Python.

They are all in this one file because numba's cache on disk notices changes of the file itself, not of its
imports. Each loop takes one argument, the address of a job: int64 words that `native.Loop.run` fills. The
argument's type tells the element type of the tensors: float* for float32, uint16* for bfloat16. Word 0 counts
the items that threads have taken; the others are sizes, strides in elements, addresses (0 for none) and bits
of floats. Arithmetic is in float32.
"""

# mypy: ignore-errors
# numba infers the types here: annotations would say nothing, and its decorators have none.

import math

import numpy as np
from llvmlite import binding, ir
from numba import cfunc, njit, types
from numba.core import config
from numba.extending import intrinsic

# LLVM prefers half of AVX-512's width, for mixed code on CPUs whose clock drops with it. These loops are vectors
# from end to end: attention is 1.4 times faster at full width.
if config.CPU_FEATURES is None:
    config.CPU_NAME = config.CPU_NAME or binding.get_host_cpu_name()
    config.CPU_FEATURES = binding.get_host_cpu_features().flatten() + ",-prefer-256-bit"

PREFETCH_BYTES = 4096  # how far ahead weights are asked for: past the page where a hardware prefetcher stops
SUMS = {"reassoc", "contract", "nsz"}  # a sum may be taken in any order; NaN and inf stay what they are
CONTRACT = {"contract"}

_WORD = ir.IntType(32)
_INF = np.float32(np.inf)


@intrinsic
def _load(typing, x):
    """An element as float32."""

    def generate(context, builder, signature, args):
        if x == types.float32:
            return args[0]
        return builder.bitcast(builder.shl(builder.zext(args[0], _WORD), _WORD(16)), ir.FloatType())

    return types.float32(x), generate


@intrinsic
def _at(typing, address, like):
    """The pointer to `address`, of the type of `like`."""

    def generate(context, builder, signature, args):
        return builder.inttoptr(args[0], args[1].type)

    return like(types.int64, like), generate


@intrinsic
def _advance(typing, pointer, count):
    def generate(context, builder, signature, args):
        return builder.gep(args[0], [args[1]])

    return pointer(pointer, types.int64), generate


def _points_to(element):
    @intrinsic
    def pointer(typing, address):
        def generate(context, builder, signature, args):
            target = context.get_value_type(types.CPointer(element))
            is_pointer = isinstance(args[0].type, ir.PointerType)
            return builder.bitcast(args[0], target) if is_pointer else builder.inttoptr(args[0], target)

        return types.CPointer(element)(address), generate

    return pointer


_words, _ints, _singles, _doubles = (
    _points_to(element) for element in (types.int64, types.int32, types.float32, types.float64)
)


@intrinsic
def _take(typing, job):
    """The number of the next item that no thread has taken."""

    def generate(context, builder, signature, args):
        return builder.atomic_rmw("add", args[0], ir.IntType(64)(1), "monotonic")

    return types.int64(job), generate


@intrinsic
def _prefetch(typing, address):
    def generate(context, builder, signature, args):
        pointer = builder.inttoptr(args[0], ir.IntType(8).as_pointer())
        kind = ir.FunctionType(ir.VoidType(), [pointer.type, _WORD, _WORD, _WORD])
        function = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
        builder.call(function, [pointer, _WORD(0), _WORD(3), _WORD(1)])
        return context.get_dummy_value()

    return types.void(types.int64), generate


def _bitcast(source, target):
    @intrinsic
    def cast(typing, x):
        def generate(context, builder, signature, args):
            return builder.bitcast(args[0], context.get_value_type(target))

        return target(source), generate

    return cast


_bits_of, _float_of = _bitcast(types.float32, types.uint32), _bitcast(types.uint32, types.float32)


@intrinsic
def _is_single(typing, pointer):
    answer = pointer.dtype == types.float32

    def generate(context, builder, signature, args):
        return context.get_constant(types.boolean, answer)

    return types.boolean(pointer), generate


@intrinsic
def _narrow(typing, bits, pointer):
    """float32 bits as an element of `pointer`: all of them, or the upper half."""

    def generate(context, builder, signature, args):
        if pointer.dtype == types.float32:
            return builder.bitcast(args[0], ir.FloatType())
        return builder.trunc(builder.lshr(args[0], _WORD(16)), ir.IntType(16))

    return pointer.dtype(types.uint32, pointer), generate


@njit(error_model="numpy", forceinline=True)
def _store(pointer, index, value):
    """Round to the nearest element, ties to even."""
    bits = _bits_of(np.float32(value))
    if not _is_single(pointer):
        rounded = np.uint32(bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
        bits = rounded if value == value else np.uint32(0x7FC00000)
    pointer[index] = _narrow(bits, pointer)


@njit(fastmath=CONTRACT, error_model="numpy", forceinline=True)
def _exp(x):
    """exp in steps that vectorize, after Cephes' expf; saturates where that gives inf or denormals."""
    x = min(max(x, np.float32(-87.0)), np.float32(88.0)) if x == x else x
    # Adding 1.5 * 2^23 rounds to an integer, which then lies in the low bits.
    shifted = x * np.float32(1.44269504) + np.float32(12582912.0)
    n = shifted - np.float32(12582912.0)
    r = x - n * np.float32(0.693359375) - n * np.float32(-2.12194440e-4)
    p = np.float32(1.9875691500e-4)
    p = p * r + np.float32(1.3981999507e-3)
    p = p * r + np.float32(8.3334519073e-3)
    p = p * r + np.float32(4.1665795894e-2)
    p = p * r + np.float32(1.6666665459e-1)
    p = p * r + np.float32(5.0000001201e-1)
    p = p * r * r + r + np.float32(1.0)
    power = np.uint32((_bits_of(shifted) + np.uint32(127)) << np.uint32(23))
    return p * _float_of(power)


@njit(fastmath=SUMS, error_model="numpy", forceinline=True)
def _dot(a, b, size):
    total = np.float32(0)
    for i in range(size):
        total += _load(a[i]) * _load(b[i])
    return total


@njit(fastmath=SUMS, error_model="numpy", forceinline=True)
def _sum_of_squares(x, size):
    total = np.float32(0)
    for i in range(size):
        total += _load(x[i]) * _load(x[i])
    return total


def rms_norm(raw):
    """Items are rows. Words: rows, size, x, weight, out, eps."""
    job = _words(raw)
    rows, size = job[1], job[2]
    x, weight, out = _at(job[3], raw), _at(job[4], raw), _at(job[5], raw)
    eps = _doubles(raw)[6]
    has_weight = job[4] != 0
    row = _take(job)
    while row < rows:
        _norm_row(_advance(x, row * size), weight, has_weight, _advance(out, row * size), size, eps)
        row = _take(job)


@njit(fastmath=CONTRACT, error_model="numpy", forceinline=True)
def _norm_row(x, weight, has_weight, out, size, eps):
    factor = np.float32(1.0 / math.sqrt(_sum_of_squares(x, size) / size + eps))
    if has_weight:
        for i in range(size):
            _store(out, i, _load(x[i]) * factor * _load(weight[i]))
    else:
        for i in range(size):
            _store(out, i, _load(x[i]) * factor)


def rope(raw):
    """Items are tokens. Words: tokens, heads, head_dim, dim, token and head strides of x, is_interleaved,
    x, cos, sin, out."""
    job = _words(raw)
    tokens, heads, head_dim, dim = job[1], job[2], job[3], job[4]
    x, cos, sin, out = _at(job[8], raw), _at(job[9], raw), _at(job[10], raw), _at(job[11], raw)
    token = _take(job)
    while token < tokens:
        c, s = _advance(cos, token * dim), _advance(sin, token * dim)
        for head in range(heads):
            source = _advance(x, token * job[5] + head * job[6])
            _turn(source, c, s, _advance(out, (token * heads + head) * head_dim), dim, job[7] != 0)
            for i in range(dim, head_dim):
                _advance(out, (token * heads + head) * head_dim)[i] = source[i]
        token = _take(job)


@njit(fastmath=CONTRACT, error_model="numpy", forceinline=True)
def _turn(x, cos, sin, out, dim, is_interleaved):
    half = dim // 2
    if is_interleaved:
        for i in range(half):
            a, b = _load(x[2 * i]), _load(x[2 * i + 1])
            _store(out, 2 * i, a * _load(cos[2 * i]) + b * _load(sin[2 * i]))
            _store(out, 2 * i + 1, b * _load(cos[2 * i + 1]) + a * _load(sin[2 * i + 1]))
    else:
        for i in range(half):
            _store(out, i, _load(x[i]) * _load(cos[i]) + _load(x[half + i]) * _load(sin[i]))
        for i in range(half, dim):
            _store(out, i, _load(x[i]) * _load(cos[i]) + _load(x[i - half]) * _load(sin[i]))


def cache_write(raw):
    """Items are tokens. Words: tokens, kv_heads, head_dim, block_size, places; then for keys and for values:
    source, its token and head strides, cache, its block, head and offset strides."""
    job = _words(raw)
    tokens, heads, dim, block_size, places = job[1], job[2], job[3], job[4], _words(job[5])
    token = _take(job)
    while token < tokens:
        block, offset = places[token] // block_size, places[token] % block_size
        for first in range(6, 20, 7):
            for head in range(heads):
                source = _advance(_at(job[first], raw), token * job[first + 1] + head * job[first + 2])
                place = block * job[first + 4] + head * job[first + 5] + offset * job[first + 6]
                target = _advance(_at(job[first + 3], raw), place)
                for i in range(dim):
                    target[i] = source[i]
        token = _take(job)


def gated(raw):
    """Items are rows. Words: rows, size, gate_up [rows, 2 * size], out, is_gelu (else silu)."""
    job = _words(raw)
    rows, size, gate_up, out = job[1], job[2], _at(job[3], raw), _at(job[4], raw)
    row = _take(job)
    while row < rows:
        gate = _advance(gate_up, 2 * row * size)
        _gate_row(gate, _advance(gate, size), _advance(out, row * size), size, job[5] != 0)
        row = _take(job)


@njit(fastmath=CONTRACT, error_model="numpy", forceinline=True)
def _gate_row(gate, up, out, size, is_gelu):
    one = np.float32(1)
    if is_gelu:
        # tanh's form of gelu: x * (1 + tanh(u)) / 2 = x / (1 + exp(-2 u))
        for i in range(size):
            x = _load(gate[i])
            u = x * (np.float32(1.5957691216) + np.float32(0.0713548162726) * x * x)
            _store(out, i, x / (one + _exp(-u)) * _load(up[i]))
    else:
        for i in range(size):
            x = _load(gate[i])
            _store(out, i, x / (one + _exp(-x)) * _load(up[i]))


def linear(raw):
    """Items are runs of outputs. Words: rows, inputs, outputs, outputs per item, bytes per weight row,
    x, weight, bias, residual, out."""
    job = _words(raw)
    rows, inputs, outputs, run = job[1], job[2], job[3], job[4]
    x, weight, out = _at(job[6], raw), _at(job[7], raw), _at(job[10], raw)
    bias, residual = _at(job[8], raw), _at(job[9], raw)
    item = _take(job)
    while item * run < outputs:
        for n in range(item * run, min(outputs, (item + 1) * run)):
            line = job[7] + n * job[5] + PREFETCH_BYTES
            for ahead in range(0, job[5], 64):
                _prefetch(line + ahead)
            for row in range(rows):
                y = _dot(_advance(x, row * inputs), _advance(weight, n * inputs), inputs)
                if job[8] != 0:
                    y += _load(bias[n])
                if job[9] != 0:
                    y += _load(residual[row * outputs + n])
                _store(out, row * outputs + n, y)
        item = _take(job)


def decode_attention(raw):
    """Items are the kv heads of each request. Words: requests, kv_heads, group, head_dim, block_size, window,
    q, its request and head strides, out, tables, their row stride, lengths, scratch, scale, softcap (0 for
    none); then twice, for keys and values: cache, its block, head and offset strides.

    scratch has group * (2 * head_dim + 2) + block_size floats an item: the scaled queries, the sums of
    values, the greatest score and the sum of weights of each head, and the weights of one block.
    """
    job = _words(raw)
    requests, kv_heads, group, dim, block_size = job[1], job[2], job[3], job[4], job[5]
    scale = np.float32(_doubles(raw)[15])
    num_floats = group * (2 * dim + 2) + block_size
    item = _take(job)
    while item < requests * kv_heads:
        request, kv_head = item // kv_heads, item % kv_heads
        length = np.int64(_ints(job[13])[request])
        first, last = max(np.int64(0), length - job[6]), (length - 1) // block_size
        table = _advance(_ints(job[11]), request * job[12])
        queries = _advance(_singles(job[14]), item * num_floats)
        sums, greatest = _advance(queries, group * dim), _advance(queries, 2 * group * dim)
        totals, weights = _advance(greatest, group), _advance(greatest, 2 * group)
        for head in range(group):
            source = _advance(_at(job[7], raw), request * job[8] + (kv_head * group + head) * job[9])
            for i in range(dim):
                queries[head * dim + i] = _load(source[i]) * scale
                sums[head * dim + i] = np.float32(0)
            greatest[head], totals[head] = -_INF, np.float32(0)
        for block in range(first // block_size, last + 1):
            low = max(first - block * block_size, np.int64(0))
            count = min(block_size, length - block * block_size) - low
            place = np.int64(table[block])
            keys = _advance(_at(job[17], raw), place * job[18] + kv_head * job[19] + low * job[20])
            values = _advance(_at(job[21], raw), place * job[22] + kv_head * job[23] + low * job[24])
            for head in range(group):
                _attend_block(
                    _advance(queries, head * dim), _advance(sums, head * dim), _advance(greatest, head),
                    _advance(totals, head), weights, keys, job[20], values, job[24], count, dim,
                    np.float32(_doubles(raw)[16]),
                )  # fmt: skip
        for head in range(group):
            out = _advance(_at(job[10], raw), (request * kv_heads * group + kv_head * group + head) * dim)
            for i in range(dim):
                _store(out, i, sums[head * dim + i] / totals[head])
        item = _take(job)


@njit(fastmath=CONTRACT, error_model="numpy", forceinline=True)
def _attend_block(query, sums, greatest, totals, weights, keys, key_stride, values, value_stride, count, dim, softcap):
    """One head's softmax over one more block: earlier sums are scaled down when a greater score comes."""
    for j in range(count):
        weights[j] = _dot(query, _advance(keys, j * key_stride), dim)
    if softcap != np.float32(0):
        for j in range(count):
            weights[j] = softcap * np.float32(math.tanh(weights[j] / softcap))
    peak = greatest[0]
    for j in range(count):
        peak = max(peak, weights[j])
    if peak > greatest[0]:
        shrink = _exp(greatest[0] - peak)
        totals[0] *= shrink
        for i in range(dim):
            sums[i] *= shrink
        greatest[0] = peak
    for j in range(count):
        weights[j] = _exp(weights[j] - peak)
    for j in range(count):
        totals[0] += weights[j]
    # Four values at a time, so that the sums are read and written a quarter as often.
    fours = count - count % 4
    for j in range(0, fours, 4):
        a, b, c, d = weights[j], weights[j + 1], weights[j + 2], weights[j + 3]
        first = _advance(values, j * value_stride)
        second = _advance(first, value_stride)
        third = _advance(second, value_stride)
        fourth = _advance(third, value_stride)
        for i in range(dim):
            sums[i] += a * _load(first[i]) + b * _load(second[i]) + c * _load(third[i]) + d * _load(fourth[i])
    for j in range(fours, count):
        weight, value = weights[j], _advance(values, j * value_stride)
        for i in range(dim):
            sums[i] += weight * _load(value[i])


LOOPS = {
    "cache_write": cache_write,
    "decode_attention": decode_attention,
    "gated": gated,
    "linear": linear,
    "rms_norm": rms_norm,
    "rope": rope,
}


def compile_loop(name, element, cache):
    """The address of a loop's machine code, and its owner. A zero divisor gives inf, not an exception."""
    signature = types.void(types.CPointer({"float32": types.float32, "bfloat16": types.uint16}[element]))
    compiled = cfunc(signature, cache=cache, fastmath=CONTRACT, error_model="numpy")(LOOPS[name])
    return compiled.address, compiled
