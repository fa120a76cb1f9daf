"""The matrix product of the CPU kernel, from register blocks."""

from typing import Any

from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.extending import intrinsic

from heed_kernels.cpu.runtime import compiled_for_calls
from heed_kernels.cpu.vector import (
    BLOCK_ROWS,
    LANES,
    Builder,
    Value,
    each_dtype,
    fused,
    item_bytes,
    load,
    loop,
    offset,
    splat,
    store,
)

_I64 = ir.IntType(64)
_WORD = types.int64
_BYTES = 4 * LANES


def multiply_add_block(rows: int, vectors: int) -> Any:
    """c[r, n] += sum_m a[r, m] b[m, n] for `rows` rows and `vectors` * LANES columns.

    Products are summed in ascending m by fused multiply-adds, so an element's value does not depend
    on the size of the block that it is computed in.
    """

    @intrinsic
    def block(
        typing: Any, dtype: Any, a: Any, a_row: Any, b: Any, b_row: Any, c: Any, c_row: Any,
        count: Any,
    ) -> Any:  # fmt: skip
        def codegen(context: Any, builder: Builder, signature: Any, args: Any) -> Value:
            code, a_from, a_step, b_from, b_step, c_from, c_step, count = args
            a_rows, c_parts = [], []
            for r in range(rows):
                at = offset(builder, a_from, builder.mul(a_step, _I64(r)))
                a_rows.append(builder.inttoptr(at, ir.FloatType().as_pointer()))
                at = offset(builder, c_from, builder.mul(c_step, _I64(r)))
                c_parts += [offset(builder, at, v * _BYTES) for v in range(vectors)]

            def emit(dtype: int) -> None:
                def body(m: Value, sums: list[Value]) -> list[Value]:
                    line = offset(builder, b_from, builder.mul(m, b_step))
                    columns = [
                        load(builder, offset(builder, line, v * LANES * item_bytes(dtype)), dtype)
                        for v in range(vectors)
                    ]
                    result = []
                    for r in range(rows):
                        factor = splat(builder, builder.load(builder.gep(a_rows[r], [m])))
                        for v in range(vectors):
                            total = sums[r * vectors + v]
                            result.append(fused(builder, factor, columns[v], total))
                    return result

                start = [load(builder, part) for part in c_parts]
                for part, total in zip(c_parts, loop(builder, count, start, body), strict=True):
                    store(builder, total, part)

            each_dtype(builder, code, emit)
            return context.get_dummy_value()

        return types.void(*[_WORD] * 8), codegen

    return block


_4x4, _4x2, _4x1 = (multiply_add_block(4, v) for v in (4, 2, 1))
_3x4, _3x2, _3x1 = (multiply_add_block(3, v) for v in (4, 2, 1))
_2x4, _2x2, _2x1 = (multiply_add_block(2, v) for v in (4, 2, 1))
_1x4, _1x2, _1x1 = (multiply_add_block(1, v) for v in (4, 2, 1))


@compiled_for_calls(types.void(*[_WORD] * 10))
def multiply_add(
    dtype: Any, a: Any, a_row: Any, b: Any, b_row: Any, c: Any, c_row: Any, rows: Any,
    columns: Any, count: Any,
) -> None:  # fmt: skip
    """c[r, n] += sum_m a[r, m] b[m, n] for r < rows, n < columns, m < count.

    a, c: float32, b: of `dtype`; addresses, and *_row: bytes from a row to the next. columns is a
    multiple of STRIP. Every element is summed in ascending m.
    """
    size = 4 if dtype == 0 else 2
    n = 0
    while n < columns:
        left = columns - n
        b_n = b + n * size
        a_r, c_r, r = a, c + n * 4, 0
        if left >= 4 * LANES:
            while rows - r >= BLOCK_ROWS:
                if BLOCK_ROWS == 4:
                    _4x4(dtype, a_r, a_row, b_n, b_row, c_r, c_row, count)
                else:
                    _3x4(dtype, a_r, a_row, b_n, b_row, c_r, c_row, count)
                r += BLOCK_ROWS
                a_r += BLOCK_ROWS * a_row
                c_r += BLOCK_ROWS * c_row
            if rows - r == 3:
                _3x4(dtype, a_r, a_row, b_n, b_row, c_r, c_row, count)
            elif rows - r == 2:
                _2x4(dtype, a_r, a_row, b_n, b_row, c_r, c_row, count)
            elif rows - r == 1:
                _1x4(dtype, a_r, a_row, b_n, b_row, c_r, c_row, count)
            n += 4 * LANES
        elif left >= 2 * LANES:
            while rows - r >= 4:
                _4x2(dtype, a_r, a_row, b_n, b_row, c_r, c_row, count)
                r += 4
                a_r += 4 * a_row
                c_r += 4 * c_row
            if rows - r == 3:
                _3x2(dtype, a_r, a_row, b_n, b_row, c_r, c_row, count)
            elif rows - r == 2:
                _2x2(dtype, a_r, a_row, b_n, b_row, c_r, c_row, count)
            elif rows - r == 1:
                _1x2(dtype, a_r, a_row, b_n, b_row, c_r, c_row, count)
            n += 2 * LANES
        else:
            while rows - r >= 4:
                _4x1(dtype, a_r, a_row, b_n, b_row, c_r, c_row, count)
                r += 4
                a_r += 4 * a_row
                c_r += 4 * c_row
            if rows - r == 3:
                _3x1(dtype, a_r, a_row, b_n, b_row, c_r, c_row, count)
            elif rows - r == 2:
                _2x1(dtype, a_r, a_row, b_n, b_row, c_r, c_row, count)
            elif rows - r == 1:
                _1x1(dtype, a_r, a_row, b_n, b_row, c_r, c_row, count)
            n += LANES
