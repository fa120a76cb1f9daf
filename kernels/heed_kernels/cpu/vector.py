"""Vector instructions for the CPU kernel, written as LLVM IR.

A loop over keys with several query heads in registers is beyond what the loop vectoriser finds, and
the order of every sum must be fixed. So the inner loops are spelled out here: all take flat arrays
and element offsets (int64), check nothing, and count in floats. Caches hold float32, bfloat16 (as
uint16) or float16 (as int16); arithmetic is float32.
"""

from collections.abc import Callable
from typing import Any

import llvmlite.binding as llvm
from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic
from numba.np import arrayobj

_FEATURES = llvm.get_host_cpu_features()
LANES = 16 if _FEATURES.get("avx512f") else 8 if _FEATURES.get("avx2") else 4
"""Floats per vector."""

STRIP = 16
"""Columns of a product come in multiples of this, whatever the vector length."""

KEY_TILE = 128
"""Keys per tile, aligned to absolute positions: softmax is rescaled once per tile."""

BLOCK_ROWS = 3 if LANES == 8 else 4
"""Rows of the register block of `multiply_add`; AVX2 has half as many registers."""

_I16, _I32, _I64 = ir.IntType(16), ir.IntType(32), ir.IntType(64)
_FLOAT = ir.FloatType()
_VECTOR = ir.VectorType(_FLOAT, LANES)
_INTEGERS = ir.VectorType(_I32, LANES)

Builder = Any
Value = Any


def _splat(builder: Builder, scalar: Value) -> Value:
    shape = ir.VectorType(scalar.type, LANES)
    one = builder.insert_element(ir.Constant(shape, ir.Undefined), scalar, _I32(0))
    return builder.shuffle_vector(one, one, ir.Constant(_INTEGERS, [0] * LANES))


def _floats(value: float) -> Value:
    return ir.Constant(_VECTOR, [value] * LANES)


def _integers(value: int) -> Value:
    return ir.Constant(_INTEGERS, [value] * LANES)


def _fma(builder: Builder, a: Value, b: Value, c: Value) -> Value:
    name = f"llvm.fmuladd.v{LANES}f32"
    kind = ir.FunctionType(_VECTOR, [_VECTOR] * 3)
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), [a, b, c])


def _element(builder: Builder, data: Value, at: Value) -> Value:
    return builder.gep(data, [at])


def _load(builder: Builder, pointer: Value) -> Value:
    """A vector of floats from memory of any of the three cache types."""
    stored = pointer.type.pointee
    kind = ir.VectorType(_FLOAT if stored == _FLOAT else _I16, LANES)
    vector = builder.load(builder.bitcast(pointer, kind.as_pointer()))
    vector.align = 4 if stored == _FLOAT else 2
    return vector


def _widen(builder: Builder, vector: Value, dtype: Any) -> Value:
    if dtype == types.float32:
        return vector
    if dtype == types.uint16:  # bfloat16 is the upper half of a float32
        wide = builder.shl(builder.zext(vector, _INTEGERS), _integers(16))
        return builder.bitcast(wide, _VECTOR)
    half = builder.bitcast(vector, ir.VectorType(ir.HalfType(), LANES))
    return builder.fpext(half, _VECTOR)


def _store(builder: Builder, vector: Value, pointer: Value) -> None:
    target = builder.bitcast(pointer, vector.type.as_pointer())
    builder.store(vector, target).align = 4 if vector.type.element == _FLOAT else 2


def _array(context: Any, builder: Builder, kind: Any, value: Value) -> Value:
    return arrayobj.make_array(kind)(context, builder, value).data


def _reduce(builder: Builder, vector: Value, combine: Callable[[Value, Value], Value]) -> Value:
    """One float from a vector, halves first: a fixed order."""
    width = LANES
    while width > 1:
        width //= 2
        index = [(i + width) % LANES for i in range(LANES)]
        other = builder.shuffle_vector(vector, vector, ir.Constant(_INTEGERS, index))
        vector = combine(vector, other)
    return builder.extract_element(vector, _I32(0))


def _loop(
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


def multiply_add_block(rows: int, vectors: int) -> Any:
    """c[r, n] += sum_m a[r, m] b[m, n] for `rows` rows and `vectors` * LANES columns.

    Products are summed in ascending m by fused multiply-adds, so an element's value does not depend
    on the size of the block that it is computed in.
    """

    @intrinsic  # type: ignore[untyped-decorator]
    def block(
        typing: Any, a: Any, a_at: Any, a_row: Any, b: Any, b_at: Any, b_row: Any, c: Any,
        c_at: Any, c_row: Any, count: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
            a_data = _array(context, builder, a, args[0])
            b_data = _array(context, builder, b, args[3])
            c_data = _array(context, builder, c, args[6])
            a_from, a_step, b_from, b_step, c_from, c_step = (args[i] for i in (1, 2, 4, 5, 7, 8))
            a_rows, c_parts = [], []
            for r in range(rows):
                offset = builder.add(a_from, builder.mul(a_step, _I64(r)))
                a_rows.append(_element(builder, a_data, offset))
                offset = builder.add(c_from, builder.mul(c_step, _I64(r)))
                for v in range(vectors):
                    at = builder.add(offset, _I64(v * LANES))
                    c_parts.append(_element(builder, c_data, at))
            b_first = _element(builder, b_data, b_from)

            def body(m: Value, sums: list[Value]) -> list[Value]:
                line = _element(builder, b_first, builder.mul(m, b_step))
                columns = []
                for v in range(vectors):
                    part = _load(builder, _element(builder, line, _I64(v * LANES)))
                    columns.append(_widen(builder, part, b.dtype))
                result = []
                for r in range(rows):
                    factor = _splat(builder, builder.load(_element(builder, a_rows[r], m)))
                    for v in range(vectors):
                        result.append(_fma(builder, factor, columns[v], sums[r * vectors + v]))
                return result

            start = [_load(builder, part) for part in c_parts]
            for part, total in zip(c_parts, _loop(builder, args[9], start, body), strict=True):
                _store(builder, total, part)
            return context.get_dummy_value()

        word = types.int64
        return types.void(a, word, word, b, word, word, c, word, word, word), codegen

    return block


@intrinsic  # type: ignore[untyped-decorator]
def tile_maximum(typing: Any, logits: Any, at: Any) -> Any:
    """Largest of the KEY_TILE floats from `at`."""

    def codegen(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        data = _element(builder, _array(context, builder, logits, args[0]), args[1])

        def larger(x: Value, y: Value) -> Value:
            return builder.select(builder.fcmp_ordered(">", x, y), x, y)

        best = _load(builder, data)
        for start in range(LANES, KEY_TILE, LANES):
            best = larger(_load(builder, _element(builder, data, _I64(start))), best)
        return _reduce(builder, best, larger)

    return types.float32(logits, types.int64), codegen


# exp(x) = 2^n exp(r), n = round(x / ln 2), |r| <= ln 2 / 2; ln 2 in two parts; the polynomial is
# Cephes' expf (Moshier), within 2 units in the last place.
_LOG2_E, _LN2_HIGH, _LN2_LOW = 1.44269504088896341, 0.693359375, -2.12194440e-4
_ROUND = 12582912.0  # 1.5 * 2^23: adding and subtracting it rounds to an integer
_POLYNOMIAL = (1.9875691500e-4, 1.3981999507e-3, 8.3334519073e-3, 4.1665795894e-2,
               1.6666665459e-1, 5.0000001201e-1)  # fmt: skip
_SMALLEST = -87.0


@intrinsic  # type: ignore[untyped-decorator]
def tile_exponential(typing: Any, logits: Any, at: Any, shift: Any) -> Any:
    """Replace the KEY_TILE floats s from `at` by exp(s - shift), s <= shift; returns their sum.

    exp(0) is exactly 1, and what lies below exp(-87), exp(-inf) with it, is exactly 0.
    """

    def codegen(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        data = _element(builder, _array(context, builder, logits, args[0]), args[1])
        shift_vector = _splat(builder, args[2])
        total = _floats(0.0)
        for start in range(0, KEY_TILE, LANES):
            pointer = _element(builder, data, _I64(start))
            x = builder.fsub(_load(builder, pointer), shift_vector)
            # Unordered: a NaN stays in the computation.
            kept = builder.fcmp_unordered(">=", x, _floats(_SMALLEST))
            x = builder.select(kept, x, _floats(_SMALLEST))
            scaled = _fma(builder, x, _floats(_LOG2_E), _floats(_ROUND))
            n = builder.fsub(scaled, _floats(_ROUND))
            r = _fma(builder, n, _floats(-_LN2_HIGH), x)
            r = _fma(builder, n, _floats(-_LN2_LOW), r)
            p = _floats(_POLYNOMIAL[0])
            for coefficient in _POLYNOMIAL[1:]:
                p = _fma(builder, p, r, _floats(coefficient))
            p = _fma(builder, builder.fmul(r, r), p, builder.fadd(r, _floats(1.0)))
            exponent = builder.shl(builder.bitcast(scaled, _INTEGERS), _integers(23))
            p = builder.bitcast(builder.add(builder.bitcast(p, _INTEGERS), exponent), _VECTOR)
            p = builder.select(kept, p, _floats(0.0))
            _store(builder, p, pointer)
            total = builder.fadd(total, p)
        return _reduce(builder, total, builder.fadd)

    return types.float32(logits, types.int64, types.float32), codegen


@intrinsic  # type: ignore[untyped-decorator]
def load_strip(typing: Any, source: Any, source_at: Any, target: Any, target_at: Any) -> Any:
    """STRIP elements of any cache type from `source` to float32 in `target`."""

    def codegen(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        data = _element(builder, _array(context, builder, source, args[0]), args[1])
        out = _element(builder, _array(context, builder, target, args[2]), args[3])
        for start in range(0, STRIP, LANES):
            vector = _load(builder, _element(builder, data, _I64(start)))
            wide = _widen(builder, vector, source.dtype)
            _store(builder, wide, _element(builder, out, _I64(start)))
        return context.get_dummy_value()

    return types.void(source, types.int64, target, types.int64), codegen


@intrinsic  # type: ignore[untyped-decorator]
def store_strip(
    typing: Any, source: Any, source_at: Any, factor: Any, target: Any, target_at: Any
) -> Any:
    """STRIP floats of `source` times `factor` to any cache type in `target`, rounded to nearest even."""

    def codegen(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        data = _element(builder, _array(context, builder, source, args[0]), args[1])
        out = _element(builder, _array(context, builder, target, args[3]), args[4])
        times = _splat(builder, args[2])
        for start in range(0, STRIP, LANES):
            vector = _load(builder, _element(builder, data, _I64(start)))
            vector = builder.fmul(vector, times)
            if target.dtype == types.uint16:
                bits = builder.bitcast(vector, _INTEGERS)
                odd = builder.and_(builder.lshr(bits, _integers(16)), _integers(1))
                bits = builder.add(builder.add(bits, odd), _integers(0x7FFF))
                number = builder.fcmp_ordered("==", vector, vector)
                bits = builder.select(number, bits, _integers(0x7FC00000))
                high = builder.lshr(bits, _integers(16))
                vector = builder.trunc(high, ir.VectorType(_I16, LANES))
            elif target.dtype == types.int16:
                half = builder.fptrunc(vector, ir.VectorType(ir.HalfType(), LANES))
                vector = builder.bitcast(half, ir.VectorType(_I16, LANES))
            _store(builder, vector, _element(builder, out, _I64(start)))
        return context.get_dummy_value()

    word = types.int64
    return types.void(source, word, types.float32, target, word), codegen


@intrinsic  # type: ignore[untyped-decorator]
def fetch_add(typing: Any, counter: Any) -> Any:
    """counter[0]++ atomically; returns the value before. counter: int64 array."""

    def codegen(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
        data = _array(context, builder, counter, args[0])
        return builder.atomic_rmw("add", data, _I64(1), "monotonic")

    return types.int64(counter), codegen
