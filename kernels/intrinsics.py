"""What the compiled loops are made of: memory by its address, elements as float32, and bits.

numba's cache on disk notices no change of this file: touch the files of the loops after one.
"""

# mypy: ignore-errors
# numba infers the types here: annotations would say nothing, and its decorators have none.

import numpy as np
from llvmlite import ir
from numba import njit, types
from numba.extending import intrinsic

_WORD = ir.IntType(32)


@intrinsic
def load(typing, x):
    """An element as float32."""

    def generate(context, builder, signature, args):
        if x == types.float32:
            return args[0]
        return builder.bitcast(builder.shl(builder.zext(args[0], _WORD), _WORD(16)), ir.FloatType())

    return types.float32(x), generate


@intrinsic
def at(typing, address, like):
    """The pointer to `address`, of the type of `like`."""

    def generate(context, builder, signature, args):
        return builder.inttoptr(args[0], args[1].type)

    return like(types.int64, like), generate


@intrinsic
def advance(typing, pointer, count):
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


words, ints, singles, doubles = (
    _points_to(element) for element in (types.int64, types.int32, types.float32, types.float64)
)


@intrinsic
def take(typing, job):
    """The number of the next item that no thread has taken."""

    def generate(context, builder, signature, args):
        return builder.atomic_rmw("add", args[0], ir.IntType(64)(1), "monotonic")

    return types.int64(job), generate


@intrinsic
def call(typing, function, argument):
    """Call a C function of one pointer; both are addresses."""

    def generate(context, builder, signature, args):
        kind = ir.FunctionType(ir.VoidType(), [ir.IntType(64)])
        builder.call(builder.inttoptr(args[0], kind.as_pointer()), [args[1]])
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def prefetch(typing, address):
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


bits_of, float_of = _bitcast(types.float32, types.uint32), _bitcast(types.uint32, types.float32)


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
def store(pointer, index, value):
    """Round to the nearest element, ties to even."""
    bits = bits_of(np.float32(value))
    if not _is_single(pointer):
        rounded = np.uint32(bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1)))
        bits = rounded if value == value else np.uint32(0x7FC00000)
    pointer[index] = _narrow(bits, pointer)


@njit(fastmath={"contract"}, error_model="numpy", forceinline=True)
def exp(x):
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
    power = np.uint32((bits_of(shifted) + np.uint32(127)) << np.uint32(23))
    return p * float_of(power)
