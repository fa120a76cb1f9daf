"""The matrix product of the CPU kernel, from register blocks."""

from typing import Any

from heed_kernels.cpu.runtime import compiled
from heed_kernels.cpu.vector import BLOCK_ROWS, LANES, multiply_add_block

_4x4, _4x2, _4x1 = (multiply_add_block(4, v) for v in (4, 2, 1))
_3x4, _3x2, _3x1 = (multiply_add_block(3, v) for v in (4, 2, 1))
_2x4, _2x2, _2x1 = (multiply_add_block(2, v) for v in (4, 2, 1))
_1x4, _1x2, _1x1 = (multiply_add_block(1, v) for v in (4, 2, 1))


@compiled()
def multiply_add(
    a: Any, a_at: Any, a_row: Any, b: Any, b_at: Any, b_row: Any, c: Any, c_at: Any, c_row: Any,
    rows: Any, columns: Any, count: Any,
) -> None:  # fmt: skip
    """c[r, n] += sum_m a[r, m] b[m, n] for r < rows, n < columns, m < count.

    a, c: float32, b: any cache type, flat arrays; *_at: offset of the first element, *_row: elements
    from a row to the next. columns is a multiple of STRIP. Every element is summed in ascending m.
    """
    n = 0
    while n < columns:
        left = columns - n
        r = 0
        if left >= 4 * LANES:
            while rows - r >= BLOCK_ROWS:
                if BLOCK_ROWS == 4:
                    _4x4(a, a_at + r * a_row, a_row, b, b_at + n, b_row,
                         c, c_at + r * c_row + n, c_row, count)  # fmt: skip
                else:
                    _3x4(a, a_at + r * a_row, a_row, b, b_at + n, b_row,
                         c, c_at + r * c_row + n, c_row, count)  # fmt: skip
                r += BLOCK_ROWS
            a_from, c_from = a_at + r * a_row, c_at + r * c_row + n
            if rows - r == 3:
                _3x4(a, a_from, a_row, b, b_at + n, b_row, c, c_from, c_row, count)
            elif rows - r == 2:
                _2x4(a, a_from, a_row, b, b_at + n, b_row, c, c_from, c_row, count)
            elif rows - r == 1:
                _1x4(a, a_from, a_row, b, b_at + n, b_row, c, c_from, c_row, count)
            n += 4 * LANES
        elif left >= 2 * LANES:
            while rows - r >= 4:
                _4x2(a, a_at + r * a_row, a_row, b, b_at + n, b_row,
                     c, c_at + r * c_row + n, c_row, count)  # fmt: skip
                r += 4
            a_from, c_from = a_at + r * a_row, c_at + r * c_row + n
            if rows - r == 3:
                _3x2(a, a_from, a_row, b, b_at + n, b_row, c, c_from, c_row, count)
            elif rows - r == 2:
                _2x2(a, a_from, a_row, b, b_at + n, b_row, c, c_from, c_row, count)
            elif rows - r == 1:
                _1x2(a, a_from, a_row, b, b_at + n, b_row, c, c_from, c_row, count)
            n += 2 * LANES
        else:
            while rows - r >= 4:
                _4x1(a, a_at + r * a_row, a_row, b, b_at + n, b_row,
                     c, c_at + r * c_row + n, c_row, count)  # fmt: skip
                r += 4
            a_from, c_from = a_at + r * a_row, c_at + r * c_row + n
            if rows - r == 3:
                _3x1(a, a_from, a_row, b, b_at + n, b_row, c, c_from, c_row, count)
            elif rows - r == 2:
                _2x1(a, a_from, a_row, b, b_at + n, b_row, c, c_from, c_row, count)
            elif rows - r == 1:
                _1x1(a, a_from, a_row, b, b_at + n, b_row, c, c_from, c_row, count)
            n += LANES
