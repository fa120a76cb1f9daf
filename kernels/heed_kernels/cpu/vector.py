"""Vector instructions for the CPU kernel, written as LLVM IR.

A loop over keys with several query heads in registers is beyond what the loop vectoriser finds, and
the order of every sum must be fixed. So the inner loops are spelled out here. All take memory by
address in bytes (int64) and check nothing. Queries, outputs and caches hold float32, bfloat16 or
float16, told apart by a code at run time, outside of the inner loops: one compilation serves all.
Arithmetic is float32.
"""

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm  # type: ignore[import-untyped]
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_FEATURES = llvm.get_host_cpu_features()
LANES = 16 if _FEATURES.get("avx512f") else 8 if _FEATURES.get("avx2") else 4
"""Floats per vector."""

STRIP = 16
"""Columns of a product come in multiples of this, whatever the vector length."""

KEY_TILE = 128
"""Keys per tile, aligned to absolute positions: softmax is rescaled once per tile."""

BLOCK_ROWS = 3 if LANES == 8 else 4
"""Rows of the register block of a product; AVX2 has half as many registers."""

FLOAT32, BFLOAT16, FLOAT16 = range(3)
"""Codes of element types."""

_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_FLOAT = ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, LANES)
_INTEGERS = ir.VectorType(_I32, LANES)
_SHORTS = ir.VectorType(_I16, LANES)
_HALVES = ir.VectorType(ir.HalfType(), LANES)
_WORD = types.int64

Builder = Any
Value = Any


def splat(builder: Builder, scalar: Value) -> Value:
    """A vector of equal elements."""
    shape = ir.VectorType(scalar.type, LANES)
    one = builder.insert_element(ir.Constant(shape, ir.Undefined), scalar, _I32(0))
    return builder.shuffle_vector(one, one, ir.Constant(_INTEGERS, [0] * LANES))


def _floats(value: float) -> Value:
    return ir.Constant(_VECTOR, [value] * LANES)


def _integers(value: int) -> Value:
    return ir.Constant(_INTEGERS, [value] * LANES)


def fused(builder: Builder, a: Value, b: Value, c: Value) -> Value:
    """a * b + c, rounded once."""
    name = f"llvm.fmuladd.v{LANES}f32"
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [a, b, c])


def offset(builder: Builder, address: Value, by: Value | int) -> Value:
    """`address` plus `by` bytes."""
    return builder.add(address, _I64(by) if isinstance(by, int) else by)


def pointer(builder: Builder, address: Value, kind: Any) -> Value:
    """`address` as a pointer to `kind`."""
    return builder.inttoptr(address, kind.as_pointer())


def load(builder: Builder, address: Value, dtype: int = FLOAT32) -> Value:
    """A vector of LANES elements as float32."""
    vector = builder.load(pointer(builder, address, _VECTOR if dtype == FLOAT32 else _SHORTS))
    vector.align = 4 if dtype == FLOAT32 else 2
    if dtype == FLOAT32:
        return vector
    if dtype == BFLOAT16:  # the upper half of a float32
        wide = builder.shl(builder.zext(vector, _INTEGERS), _integers(16))
        return builder.bitcast(wide, _VECTOR)
    return builder.fpext(builder.bitcast(vector, _HALVES), _VECTOR)


def store(builder: Builder, vector: Value, address: Value, dtype: int = FLOAT32) -> None:
    """LANES floats as elements of `dtype`, rounded to nearest even."""
    if dtype == BFLOAT16:
        bits = builder.bitcast(vector, _INTEGERS)
        odd = builder.and_(builder.lshr(bits, _integers(16)), _integers(1))
        bits = builder.add(builder.add(bits, odd), _integers(0x7FFF))
        number = builder.fcmp_ordered("==", vector, vector)
        bits = builder.select(number, bits, _integers(0x7FC00000))
        vector = builder.trunc(builder.lshr(bits, _integers(16)), _SHORTS)
    elif dtype == FLOAT16:
        vector = builder.bitcast(builder.fptrunc(vector, _HALVES), _SHORTS)
    stored = builder.store(vector, pointer(builder, address, vector.type))
    stored.align = 4 if dtype == FLOAT32 else 2


def each_dtype(builder: Builder, code: Value, emit: Callable[[int], None]) -> None:
    """What `emit(dtype)` emits, once per element type; `code` chooses one when it runs."""
    with builder.if_else(builder.icmp_signed("==", code, _I64(FLOAT32))) as (yes, no):
        with yes:
            emit(FLOAT32)
        with no, builder.if_else(builder.icmp_signed("==", code, _I64(BFLOAT16))) as (one, other):
            with one:
                emit(BFLOAT16)
            with other:
                emit(FLOAT16)


def item_bytes(dtype: int) -> int:
    """Size of an element."""
    return 4 if dtype == FLOAT32 else 2


def loop(
    builder: Builder, count: Value, start: list[Value], body: Callable[[Value, list[Value]], Any]
) -> list[Value]:
    """`for m in range(count): values = body(m, values)` with the values in registers; count >= 0."""
    before = builder.block
    head = builder.append_basic_block("head")
    inside = builder.append_basic_block("inside")
    after = builder.append_basic_block("after")
    builder.branch(head)
    builder.position_at_end(head)
    m = builder.phi(count.type)
    m.add_incoming(count.type(0), before)
    phis = []
    for value in start:
        phi = builder.phi(value.type)
        phi.add_incoming(value, before)
        phis.append(phi)
    builder.cbranch(builder.icmp_signed("<", m, count), inside, after)
    builder.position_at_end(inside)
    for phi, value in zip(phis, body(m, phis), strict=True):
        phi.add_incoming(value, builder.block)
    m.add_incoming(builder.add(m, count.type(1)), builder.block)
    builder.branch(head)
    builder.position_at_end(after)
    return phis


def _vectors(builder: Builder, count: Value) -> Value:
    return builder.sdiv(count, _I64(LANES))


def _reduce(builder: Builder, vector: Value, combine: Callable[[Value, Value], Value]) -> Value:
    """One float from a vector, halves first: a fixed order."""
    width = LANES
    while width > 1:
        width //= 2
        index = [(i + width) % LANES for i in range(LANES)]
        other = builder.shuffle_vector(vector, vector, ir.Constant(_INTEGERS, index))
        vector = combine(vector, other)
    return builder.extract_element(vector, _I32(0))


@intrinsic
def maximum(typing: Any, address: Any, count: Any) -> Any:
    """Largest of `count` floats, a positive multiple of STRIP."""

    def codegen(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        def larger(x: Value, y: Value) -> Value:
            return builder.select(builder.fcmp_ordered(">", x, y), x, y)

        def body(m: Value, values: list[Value]) -> list[Value]:
            at = offset(builder, args[0], builder.mul(m, _I64(4 * LANES)))
            return [larger(load(builder, at), values[0])]

        start = [load(builder, args[0])]
        return _reduce(builder, loop(builder, _vectors(builder, args[1]), start, body)[0], larger)

    return types.float32(_WORD, _WORD), codegen


@intrinsic
def summed(typing: Any, address: Any, count: Any) -> Any:
    """Sum of `count` floats, in an order that `count` alone decides."""

    def codegen(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        whole = _vectors(builder, args[1])

        def add_vector(m: Value, values: list[Value]) -> list[Value]:
            at = offset(builder, args[0], builder.mul(m, _I64(4 * LANES)))
            return [builder.fadd(values[0], load(builder, at))]

        def add_one(m: Value, values: list[Value]) -> list[Value]:
            at = offset(builder, rest, builder.mul(m, _I64(4)))
            return [builder.fadd(values[0], builder.load(pointer(builder, at, _FLOAT)))]

        (lanes,) = loop(builder, whole, [_floats(0.0)], add_vector)
        rest = offset(builder, args[0], builder.mul(whole, _I64(4 * LANES)))
        left = builder.sub(args[1], builder.mul(whole, _I64(LANES)))
        return loop(builder, left, [_reduce(builder, lanes, builder.fadd)], add_one)[0]

    return types.float32(_WORD, _WORD), codegen


# exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln 2 / 2; ln 2 in two parts; the polynomial is
# Cephes' expf (Moshier), within 2 units in the last place.
_LOG2_E, _LN2_HIGH, _LN2_LOW = 1.44269504088896341, 0.693359375, -2.12194440e-4
_ROUND = 12582912.0  # 1.5 * 2^23: adding and subtracting it rounds to an integer
_POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2,
               1.6666665459e-1, 5.0000001201e-1)  # fmt: skip
_SMALLEST = -87.0


@intrinsic
def exponential(typing: Any, address: Any, count: Any, shift: Any) -> Any:
    """Replace `count` floats s, a multiple of STRIP, by exp(s - shift), s <= shift; returns their sum.

    exp(0) is exactly 1, and what lies below exp(-87), exp(-inf) with it, is exactly 0: more such
    elements at the end leave every bit of the sum as it is.
    """

    def codegen(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        shift_vector = splat(builder, args[2])

        def body(m: Value, values: list[Value]) -> list[Value]:
            at = offset(builder, args[0], builder.mul(m, _I64(4 * LANES)))
            x = builder.fsub(load(builder, at), shift_vector)
            # Unordered: a NaN stays in the computation.
            kept = builder.fcmp_unordered(">=", x, _floats(_SMALLEST))
            x = builder.select(kept, x, _floats(_SMALLEST))
            scaled = fused(builder, x, _floats(_LOG2_E), _floats(_ROUND))
            n = builder.fsub(scaled, _floats(_ROUND))
            r = fused(builder, n, _floats(-_LN2_HIGH), x)
            r = fused(builder, n, _floats(-_LN2_LOW), r)
            p = _floats(_POLYNOMIAL[0])
            for coefficient in _POLYNOMIAL[1:]:
                p = fused(builder, p, r, _floats(coefficient))
            p = fused(builder, builder.fmul(r, r), p, builder.fadd(r, _floats(1.0)))
            exponent = builder.shl(builder.bitcast(scaled, _INTEGERS), _integers(23))
            p = builder.bitcast(builder.add(builder.bitcast(p, _INTEGERS), exponent), _VECTOR)
            p = builder.select(kept, p, _floats(0.0))
            store(builder, p, at)
            return [builder.fadd(values[0], p)]

        (total,) = loop(builder, _vectors(builder, args[1]), [_floats(0.0)], body)
        return _reduce(builder, total, builder.fadd)

    return types.float32(_WORD, _WORD, types.float32), codegen


@intrinsic
def load_scaled(typing: Any, dtype: Any, source: Any, target: Any, count: Any, factor: Any) -> Any:
    """`count` elements of `source`, a multiple of STRIP, times `factor` as float32 in `target`."""

    def codegen(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        times, count = splat(builder, args[4]), _vectors(builder, args[3])

        def emit(dtype: int) -> None:
            def body(m: Value, values: list[Value]) -> list[Value]:
                step = builder.mul(m, _I64(item_bytes(dtype) * LANES))
                vector = load(builder, offset(builder, args[1], step), dtype)
                step = builder.mul(m, _I64(4 * LANES))
                store(builder, builder.fmul(vector, times), offset(builder, args[2], step))
                return []

            loop(builder, count, [], body)

        each_dtype(builder, args[0], emit)
        return context.get_dummy_value()

    return types.void(_WORD, _WORD, _WORD, _WORD, types.float32), codegen


@intrinsic
def store_scaled(typing: Any, source: Any, factor: Any, dtype: Any, target: Any, count: Any) -> Any:
    """`count` floats of `source`, a multiple of STRIP, times `factor` as `dtype` in `target`."""

    def codegen(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        times, count = splat(builder, args[1]), _vectors(builder, args[4])

        def emit(dtype: int) -> None:
            def body(m: Value, values: list[Value]) -> list[Value]:
                step = builder.mul(m, _I64(4 * LANES))
                vector = builder.fmul(load(builder, offset(builder, args[0], step)), times)
                step = builder.mul(m, _I64(item_bytes(dtype) * LANES))
                store(builder, vector, offset(builder, args[3], step), dtype)
                return []

            loop(builder, count, [], body)

        each_dtype(builder, args[2], emit)
        return context.get_dummy_value()

    return types.void(_WORD, types.float32, _WORD, _WORD, _WORD), codegen
