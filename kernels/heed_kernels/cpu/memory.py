"""Scalars in memory by address, loops over a few floats, and calls by address, for the CPU kernel.

Addresses are int64 in bytes; an index counts elements of the type that the name says. Nothing is
checked. The loops have no sums in them, so LLVM may vectorise them as it likes.
"""

from collections.abc import Callable
from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from heed_kernels.cpu.vector import BFLOAT16, FLOAT32, Builder, Value, each_dtype, loop, pointer

_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_FLOAT = ir.FloatType()
_WORD = types.int64


def _at(builder: Builder, kind: Any, address: Value, index: Value) -> Value:
    return builder.gep(pointer(builder, address, kind), [index])


@intrinsic
def int32_at(typing: Any, address: Any, index: Any) -> Any:
    """int64 from an int32."""

    def codegen(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        return builder.sext(builder.load(_at(builder, _I32, *args)), _I64)

    return _WORD(_WORD, _WORD), codegen


@intrinsic
def int64_at(typing: Any, address: Any, index: Any) -> Any:
    def codegen(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        return builder.load(_at(builder, _I64, *args))

    return _WORD(_WORD, _WORD), codegen


@intrinsic
def uint8_at(typing: Any, address: Any, index: Any) -> Any:
    """int64 from a uint8."""

    def codegen(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        return builder.zext(builder.load(_at(builder, ir.IntType(8), *args)), _I64)

    return _WORD(_WORD, _WORD), codegen


@intrinsic
def float64_at(typing: Any, address: Any, index: Any) -> Any:
    def codegen(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        return builder.load(_at(builder, ir.DoubleType(), *args))

    return types.float64(_WORD, _WORD), codegen


@intrinsic
def float_at(typing: Any, address: Any, index: Any) -> Any:
    def codegen(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        return builder.load(_at(builder, _FLOAT, *args))

    return types.float32(_WORD, _WORD), codegen


@intrinsic
def element_at(typing: Any, dtype: Any, address: Any) -> Any:
    """float32 from an element of `dtype`."""

    def codegen(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        result = cgutils.alloca_once(builder, _FLOAT)

        def emit(dtype: int) -> None:
            if dtype == FLOAT32:
                value = builder.load(pointer(builder, args[1], _FLOAT))
            elif dtype == BFLOAT16:
                bits = builder.zext(builder.load(pointer(builder, args[1], _I16)), _I32)
                value = builder.bitcast(builder.shl(bits, _I32(16)), _FLOAT)
            else:
                value = builder.load(pointer(builder, args[1], ir.HalfType()))
                value = builder.fpext(value, _FLOAT)
            builder.store(value, result)

        each_dtype(builder, args[0], emit)
        return builder.load(result)

    return types.float32(_WORD, _WORD), codegen


@intrinsic
def set_float(typing: Any, address: Any, index: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        builder.store(args[2], _at(builder, _FLOAT, *args[:2]))
        return context.get_dummy_value()

    return types.void(_WORD, _WORD, types.float32), codegen


@intrinsic
def set_float64(typing: Any, address: Any, index: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        builder.store(args[2], _at(builder, ir.DoubleType(), *args[:2]))
        return context.get_dummy_value()

    return types.void(_WORD, _WORD, types.float64), codegen


@intrinsic
def set_int64(typing: Any, address: Any, index: Any, value: Any) -> Any:
    def codegen(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        builder.store(args[2], _at(builder, _I64, *args[:2]))
        return context.get_dummy_value()

    return types.void(_WORD, _WORD, _WORD), codegen


def _change(
    builder: Builder, address: Value, count: Value, change: Callable[[Value], Value]
) -> None:
    """Each of `count` floats becomes `change` of itself."""

    def body(m: Value, values: list[Value]) -> list[Value]:
        at = _at(builder, _FLOAT, address, m)
        builder.store(change(builder.load(at)), at)
        return []

    loop(builder, count, [], body)


@intrinsic
def fill(typing: Any, address: Any, count: Any, value: Any) -> Any:
    """Set `count` floats; none when it is not positive."""

    def codegen(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        _change(builder, args[0], args[1], lambda _: args[2])
        return context.get_dummy_value()

    return types.void(_WORD, _WORD, types.float32), codegen


@intrinsic
def scale(typing: Any, address: Any, count: Any, factor: Any) -> Any:
    """Multiply `count` floats."""

    def codegen(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        _change(builder, args[0], args[1], lambda x: builder.fmul(x, args[2]))
        return context.get_dummy_value()

    return types.void(_WORD, _WORD, types.float32), codegen


@intrinsic
def edit(typing: Any, address: Any, count: Any, scale: Any, absolute: Any, bias: Any) -> Any:
    """`count` floats s become scale * s + (absolute * |s| + bias)."""

    def codegen(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        def change(s: Value) -> Value:
            size = builder.and_(builder.bitcast(s, _I32), _I32(0x7FFFFFFF))
            bent = builder.fmul(args[3], builder.bitcast(size, _FLOAT))
            return builder.fadd(builder.fmul(args[2], s), builder.fadd(bent, args[4]))

        _change(builder, args[0], args[1], change)
        return context.get_dummy_value()

    return types.void(_WORD, _WORD, types.float32, types.float32, types.float32), codegen


@intrinsic
def blend(typing: Any, target: Any, count: Any, source: Any, weight: Any, factor: Any) -> Any:
    """`count` floats x of `target` become (x + weight * y) * factor, y those of `source`."""

    def codegen(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        def body(m: Value, values: list[Value]) -> list[Value]:
            at = _at(builder, _FLOAT, args[0], m)
            other = builder.load(_at(builder, _FLOAT, args[2], m))
            total = builder.fadd(builder.load(at), builder.fmul(args[3], other))
            builder.store(builder.fmul(total, args[4]), at)
            return []

        loop(builder, args[1], [], body)
        return context.get_dummy_value()

    return types.void(_WORD, _WORD, _WORD, types.float32, types.float32), codegen


@intrinsic
def add_whole(typing: Any, target: Any, count: Any, source: Any, factor: Any) -> Any:
    """To `count` float64 add those floats of `source`, not negative, times `factor`, rounded to whole
    numbers. Sums are exact in any order: products are below 2^51, and the sums below 2^53."""

    def codegen(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        double = ir.DoubleType()
        # Above it doubles are whole numbers: adding it rounds.
        whole = double(2.0**52)

        def body(m: Value, values: list[Value]) -> list[Value]:
            wide = builder.fpext(builder.load(_at(builder, _FLOAT, args[2], m)), double)
            product = builder.fmul(wide, args[3])
            rounded = builder.fsub(builder.fadd(product, whole), whole)
            at = _at(builder, double, args[0], m)
            builder.store(builder.fadd(builder.load(at), rounded), at)
            return []

        loop(builder, args[1], [], body)
        return context.get_dummy_value()

    return types.void(_WORD, _WORD, _WORD, types.float64), codegen


@intrinsic
def fetch_add(typing: Any, address: Any, value: Any) -> Any:
    """Add to an int64 atomically; returns the value before."""

    def codegen(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        return builder.atomic_rmw("add", pointer(builder, args[0], _I64), args[1], "monotonic")

    return _WORD(_WORD, _WORD), codegen


def _call(builder: Builder, args: Any, result: Any = None) -> Value:
    kind = ir.FunctionType(result or ir.VoidType(), [_I64] * (len(args) - 1))
    return builder.call(pointer(builder, args[0], kind), args[1:])


@intrinsic
def call_thread(typing: Any, function: Any, parameters: Any, thread: Any) -> Any:
    """function(parameters, thread)."""

    def codegen(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        _call(builder, args)
        return context.get_dummy_value()

    return types.void(*[_WORD] * 3), codegen


@intrinsic
def call_begin(
    typing: Any, function: Any, p: Any, item: Any, first_head: Any, heads: Any, u: Any
) -> Any:
    """See `unit.begin`."""

    def codegen(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        _call(builder, args)
        return context.get_dummy_value()

    return types.void(*[_WORD] * 6), codegen


@intrinsic
def call_tile(typing: Any, function: Any, p: Any, u: Any, first_key: Any) -> Any:
    """See `tile.tile_logits`."""

    def codegen(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        return _call(builder, args, _I64)

    return _WORD(*[_WORD] * 4), codegen


@intrinsic
def call_product(
    typing: Any, function: Any, p: Any, u: Any, left: Any, left_row: Any, result: Any,
    result_row: Any, rows: Any, first_key: Any, keys: Any, values: Any,
) -> Any:  # fmt: skip
    """See `tile.product`."""

    def codegen(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        _call(builder, args)
        return context.get_dummy_value()

    return types.void(*[_WORD] * 11), codegen


@intrinsic
def call_multiply_add(
    typing: Any, function: Any, dtype: Any, a: Any, a_row: Any, b: Any, b_row: Any, c: Any,
    c_row: Any, rows: Any, columns: Any, count: Any,
) -> Any:  # fmt: skip
    """See `product.multiply_add`."""

    def codegen(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        _call(builder, args)
        return context.get_dummy_value()

    return types.void(*[_WORD] * 11), codegen
