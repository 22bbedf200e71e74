"""The loop of a linear layer on Intel's matrix tiles (AMX): see loops.py for what a loop is.

A tile is a register of 16 rows of 64 bytes. Tiles 0 to 3 hold sums, 4 and 5 rows of x, 6 and 7 weights:

             6: outputs 0-15  7: outputs 16-31
    4: x 0-15      0                1
    5: x 16-31     2                3

One instruction adds the products of 16 rows, 16 outputs and 32 inputs. Sums are float32; what is denormal counts as
zero. The operating system must have granted this process the use of tiles.
"""

# mypy: ignore-errors
# numba infers the types here: annotations would say nothing, and its decorators have none.

from llvmlite import ir
from numba import njit
from numba.core import cgutils, types
from numba.extending import intrinsic

from octavo.kernels.intrinsics import prefetch, take, words

OUTPUTS = 32  # of one panel of the weight: two tiles beside each other
ROWS = 32  # of x that are multiplied at a time: two tiles below each other
TILE_BYTES = 1024
PREFETCH_BYTES = 4096  # how far ahead weights are asked for: past the page where a hardware prefetcher stops

_BYTE, _LONG = ir.IntType(8), ir.IntType(64)
_CONFIG_BYTES = 64
_ALL_WIDTHS = 0x0040_0040_0040_0040  # 64 bytes a row, for four tiles


def _emit(builder, name, *args):
    kind = ir.FunctionType(ir.VoidType(), [each.type for each in args])
    builder.call(cgutils.get_or_insert_function(builder.module, kind, f"llvm.x86.{name}"), args)


def _instruction(name, *tiles):
    """An instruction of nothing but tiles, whose numbers are part of it."""

    @intrinsic
    def instruction(typing):
        def generate(context, builder, signature, args):
            _emit(builder, name, *(_BYTE(tile) for tile in tiles))
            return context.get_dummy_value()

        return types.void(), generate

    return instruction


def _move(name, tile):
    """Between a tile and memory: the address of its first row, and the bytes from row to row."""

    @intrinsic
    def move(typing, address, stride):
        def generate(context, builder, signature, args):
            _emit(builder, name, _BYTE(tile), builder.inttoptr(args[0], _BYTE.as_pointer()), args[1])
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), generate

    return move


_zero_0, _zero_1, _zero_2, _zero_3 = (_instruction("tilezero", tile) for tile in range(4))
_multiply_0, _multiply_1, _multiply_2, _multiply_3 = (
    _instruction("tdpbf16ps", tile, 4 + tile // 2, 6 + tile % 2) for tile in range(4)
)
_load_4, _load_5, _load_6, _load_7 = (_move("tileloadd64", tile) for tile in range(4, 8))
_store_0, _store_1, _store_2, _store_3 = (_move("tilestored64", tile) for tile in range(4))
_release = _instruction("tilerelease")


@intrinsic
def _configure(typing, address):
    def generate(context, builder, signature, args):
        _emit(builder, "ldtilecfg", builder.inttoptr(args[0], _BYTE.as_pointer()))
        return context.get_dummy_value()

    return types.void(types.int64), generate


@intrinsic
def _workspace(typing):
    """The address of room on the stack: the configuration of the tiles, then float32 sums [ROWS, OUTPUTS]."""

    def generate(context, builder, signature, args):
        room = cgutils.alloca_once(builder, ir.ArrayType(_BYTE, _CONFIG_BYTES + 4 * ROWS * OUTPUTS))
        room.align = 64
        return builder.ptrtoint(room, _LONG)

    return types.int64(), generate


def _vector(bits):
    return ir.VectorType(ir.IntType(bits), OUTPUTS)


def _splat(bits, value):
    return ir.Constant(_vector(bits), [value] * OUTPUTS)


_FLOATS = ir.VectorType(ir.FloatType(), OUTPUTS)


def _read(builder, address, vector):
    return builder.load(builder.inttoptr(address, vector.as_pointer()), align=2)


@intrinsic
def _add(typing, sums, elements):
    """Add bfloat16 [OUTPUTS] to float32 [OUTPUTS]; both are addresses.

    This and `_round` are vectors by hand: LLVM cannot know that their memory is not the same.
    """

    def generate(context, builder, signature, args):
        wide = builder.zext(_read(builder, args[1], _vector(16)), _vector(32))
        addends = builder.bitcast(builder.shl(wide, _splat(32, 16)), _FLOATS)
        total = builder.fadd(_read(builder, args[0], _FLOATS), addends)
        builder.store(total, builder.inttoptr(args[0], _FLOATS.as_pointer()), align=64)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


@intrinsic
def _round(typing, sums, out):
    """Round float32 [OUTPUTS] to the nearest bfloat16 [OUTPUTS], ties to even; both are addresses."""

    def generate(context, builder, signature, args):
        total = _read(builder, args[0], _FLOATS)
        bits = builder.bitcast(total, _vector(32))
        is_odd = builder.and_(builder.lshr(bits, _splat(32, 16)), _splat(32, 1))
        rounded = builder.add(bits, builder.add(is_odd, _splat(32, 0x7FFF)))
        kept = builder.select(builder.fcmp_unordered("uno", total, total), _splat(32, 0x7FC0_0000), rounded)
        upper = builder.trunc(builder.lshr(kept, _splat(32, 16)), _vector(16))
        builder.store(upper, builder.inttoptr(args[1], upper.type.as_pointer()), align=2)
        return context.get_dummy_value()

    return types.void(types.int64, types.int64), generate


def tile_linear(raw):
    """Items are runs of outputs. Words: rows, inputs, outputs, outputs per item, x, tiles, bias, residual, out.

    tiles is the weight as `linear.pack_tiles` lays it out.
    """
    job = words(raw)
    rows, inputs, outputs, run = job[1], job[2], job[3], job[4]
    config, configured = _workspace(), 0
    row_bytes = 2 * inputs
    item = take(job)
    while item * run < outputs:
        for n in range(item * run, min(outputs, (item + 1) * run), OUTPUTS):
            for row in range(0, rows, ROWS):
                count = min(rows - row, ROWS)
                if count != configured:
                    _configure_for(config, count)
                    configured = count
                _multiply(job[5] + row * row_bytes, job[6] + n * row_bytes, row_bytes, count, config + _CONFIG_BYTES)
                _finish(job, config + _CONFIG_BYTES, row, count, n)
        item = take(job)
    _release()


@njit(error_model="numpy", forceinline=True)
def _configure_for(config, count):
    """Set all tiles to rows of 64 bytes: `count` of them for x and sums, 16 for weights."""
    fields = words(config)
    upper, lower = min(count, 16), max(count - 16, 1)
    fields[0], fields[1] = 1, 0  # the one palette that there is
    fields[2], fields[3], fields[4], fields[5] = _ALL_WIDTHS, _ALL_WIDTHS, 0, 0
    # One byte a tile, from tile 0 up.
    fields[6] = upper * 0x01_0000_0101 + lower * 0x0100_0101_0000 + 16 * 0x0101_0000_0000_0000
    fields[7] = 0
    _configure(config)


@njit(error_model="numpy", forceinline=True)
def _multiply(x, panel, row_bytes, count, sums):
    """sums [count, OUTPUTS] of `count` rows of x and one panel; all are addresses."""
    below = x + 16 * row_bytes
    _zero_0()
    _zero_1()
    _zero_2()
    _zero_3()
    for at_input in range(0, row_bytes, 64):
        weights = panel + OUTPUTS * at_input
        for ahead in range(0, 2 * TILE_BYTES, 64):
            prefetch(weights + PREFETCH_BYTES + ahead)
        _load_6(weights, 64)
        _load_4(x + at_input, row_bytes)
        _multiply_0()
        _load_7(weights + TILE_BYTES, 64)
        _multiply_1()
        if count > 16:
            _load_5(below + at_input, row_bytes)
            _multiply_2()
            _multiply_3()
    _store_0(sums, 4 * OUTPUTS)
    _store_1(sums + 64, 4 * OUTPUTS)
    if count > 16:
        _store_2(sums + 64 * OUTPUTS, 4 * OUTPUTS)
        _store_3(sums + 64 * OUTPUTS + 64, 4 * OUTPUTS)


@njit(error_model="numpy", forceinline=True)
def _finish(job, sums, row, count, n):
    """Add bias and residual to the sums of a panel, and round them."""
    bias, residual, out = job[7], job[8], job[9]
    for r in range(count):
        total, place = sums + 4 * OUTPUTS * r, 2 * ((row + r) * job[3] + n)
        if bias != 0:
            _add(total, bias + 2 * n)
        if residual != 0:
            _add(total, residual + place)
        _round(total, out + place)
