"""A tile of keys: which of them anybody sees, their edited logits, and products with them.

What no row of a unit sees may have been freed and belong to somebody else. So keys and values are
read in runs of keys that some row sees, keys rounded outwards to strips, which lie inside of a block.
"""

from typing import Any

import numpy as np
from numba import types

from heed_kernels.compiled import ABSOLUTE, BIAS, GROUP_FIELDS, PHASES, SCALE, TRAILING_BIAS
from heed_kernels.cpu.memory import (
    call_multiply_add,
    call_product,
    edit,
    element_at,
    fill,
    float_at,
    int32_at,
    int64_at,
    set_float,
    set_int64,
    uint8_at,
)
from heed_kernels.cpu.parameters import (
    BLOCK_ROW,
    BLOCK_SIZE,
    BLOCK_STEP,
    CACHE_TYPE,
    CURSOR,
    EDITED,
    EXTRA,
    FIRST_HEAD,
    FIRST_ROW,
    HEAD_DIM,
    HEADS,
    HIDING,
    HOLE_END,
    HOLE_START,
    KEY_OFFSET,
    KEY_ROW,
    LOCAL_HEADS,
    LOGITS,
    MULTIPLY_ADD,
    PAGES,
    PHASE_START,
    PHASES_HERE,
    PRODUCT,
    QUERIES,
    RANGE_CLASS,
    RANGE_COUNT,
    RANGE_GROUP,
    RANGE_SHIFT,
    RANGE_START,
    RANGE_VISIBLE,
    ROLLING,
    ROWS,
    RUN_CLASS,
    RUN_END,
    RUN_FIELDS,
    RUN_SHIFT,
    RUN_START,
    RUNS,
    SCRATCH,
    SINKS,
    SLOT,
    SPLIT,
    TRAILING,
    TURNED,
    TURNED_BY,
    VALUE_OFFSET,
    VALUE_ROW,
    VECTORS,
    WALKED,
    WINDOW,
)
from heed_kernels.cpu.runtime import compiled, compiled_for_calls
from heed_kernels.cpu.unit import line_of, phase_of, rotate_back, set_angles
from heed_kernels.cpu.vector import FLOAT32, KEY_TILE, STRIP, load_scaled
from heed_kernels.ranges import DESTINATION, RANGES

INFINITY = np.float32(np.inf)
ZERO, ONE = np.float32(0), np.float32(1)
WIDEN_ROWS = 8
"""A 16-bit tile is widened once when at least so many rows use it, else in each register block."""


@compiled_for_calls(types.void(*[types.int64] * 10))
def product(
    p: Any, u: Any, left: Any, left_row: Any, result: Any, result_row: Any, rows: Any,
    first_key: Any, keys: Any, values: Any,
) -> None:  # fmt: skip
    """Products with `keys` keys from `first_key`, added to `result`, as `values` says:

    0: result[r, t] += left[r] . key[first_key + t]; first_key and keys are multiples of STRIP.
    1: result[r] += sum_t left[r, t] value[first_key + t].

    left, result: addresses of float32, *_row: bytes.
    """
    block_size, head_dim = int64_at(p, BLOCK_SIZE), int64_at(p, HEAD_DIM)
    dtype, multiply_add = int64_at(p, CACHE_TYPE), int64_at(p, MULTIPLY_ADD)
    scratch, pages, block_row = int64_at(u, SCRATCH), int64_at(u, PAGES), int64_at(u, BLOCK_ROW)
    size = 4 if dtype == FLOAT32 else 2
    row = int64_at(p, VALUE_ROW if values else KEY_ROW)
    offsets = int64_at(p, VALUE_OFFSET if values else KEY_OFFSET)
    done = 0
    while done < keys:
        key = first_key + done
        token = key % block_size
        count = min(block_size - token, keys - done)
        page = pages + int32_at(block_row, key // block_size) * int64_at(p, BLOCK_STEP)
        # What is multiplied: dimensions of `count` keys, or `count` values of all dimensions.
        inner, columns = (count, head_dim) if values else (head_dim, count)
        first = left + done * 4 if values else left
        target = result if values else result + done * 4
        if row:
            source = page + size * (block_size * head_dim + token * row if values else token)
            if dtype != FLOAT32 and rows >= WIDEN_ROWS:
                for i in range(inner):
                    at = source + i * row * size
                    load_scaled(dtype, at, scratch + i * columns * 4, columns, ONE)
                call_multiply_add(multiply_add, FLOAT32, first, left_row, scratch, columns * 4,
                                  target, result_row, rows, columns, inner)  # fmt: skip
            else:
                call_multiply_add(multiply_add, dtype, first, left_row, source, row * size,
                                  target, result_row, rows, columns, inner)  # fmt: skip
        else:
            for t in range(count):
                for d in range(head_dim):
                    at = page + size * int32_at(offsets, (token + t) * head_dim + d)
                    to = t * head_dim + d if values else d * count + t
                    set_float(scratch, to, element_at(dtype, at))
            call_multiply_add(multiply_add, FLOAT32, first, left_row, scratch, columns * 4,
                              target, result_row, rows, columns, inner)  # fmt: skip
        done += count


@compiled()
def add_run(runs: Any, count: Any, start: Any, end: Any, kind: Any, shift: Any) -> Any:
    """Append a run, or lengthen the last one; returns the number of runs."""
    if start >= end:
        return count
    last = runs + (count - 1) * RUN_FIELDS * 8
    if (
        count > 0
        and int64_at(last, RUN_END) == start
        and int64_at(last, RUN_CLASS) == kind
        and int64_at(last, RUN_SHIFT) == shift
    ):
        set_int64(last, RUN_END, end)
        return count
    at = runs + count * RUN_FIELDS * 8
    set_int64(at, RUN_START, start)
    set_int64(at, RUN_END, end)
    set_int64(at, RUN_CLASS, kind)
    set_int64(at, RUN_SHIFT, shift)
    return count + 1


@compiled()
def add_seen(
    u: Any, count: Any, first_key: Any, start: Any, end: Any, kind: Any, shift: Any
) -> Any:
    """Append what an eviction left of the tile's keys [start, end); returns the number of runs."""
    runs, gone_to = int64_at(u, RUNS), int64_at(u, HOLE_END) - first_key
    if gone_to > start:
        gone_from = int64_at(u, HOLE_START) - first_key
        count = add_run(runs, count, start, min(end, gone_from), kind, shift)
        start = gone_to
    return add_run(runs, count, start, end, kind, shift)


@compiled()
def find_runs(p: Any, u: Any, first_key: Any, keys: Any, cursor: Any) -> Any:
    """Runs of the tile's first `keys` keys that some row sees; returns their number."""
    slot, first_row, runs = int64_at(u, SLOT), int64_at(u, FIRST_ROW), int64_at(u, RUNS)
    sinks, window = int64_at(u, SINKS), int64_at(u, WINDOW)
    # Keys [low, high) of the tile are hidden by the window from a row, and from later ones with it.
    low = min(max(sinks - first_key, 0), keys) if window > 0 else keys
    if not (int64_at(u, WALKED) or int64_at(u, SPLIT)):
        high = max(min(first_row - window + 1 - first_key, keys), low)
        count = add_run(runs, 0, 0, low, 0, 0)
        return add_run(runs, count, high, keys, 0, 0)
    starts = int64_at(p, RANGE_START) + slot * 4 * RANGES
    ranges = int32_at(int64_at(p, RANGE_COUNT), slot)
    count = 0
    for j in range(cursor, ranges):
        start = max(int32_at(starts, j) - first_key, 0)
        if start >= keys:
            break
        end = keys
        if j + 1 < ranges:
            end = min(int32_at(starts, j + 1) - first_key, keys)
        seen = uint8_at(int64_at(p, RANGE_VISIBLE), slot * RANGES + j) & int64_at(u, PHASES_HERE)
        if seen == 0:
            continue
        kind = 0
        if int64_at(u, SPLIT):
            kind = uint8_at(int64_at(p, RANGE_CLASS), slot * RANGES + j) & DESTINATION
        shift = int32_at(int64_at(p, RANGE_SHIFT), slot * RANGES + j)
        phase = 0
        while not seen >> phase & 1:
            phase += 1
        row = max(first_row, int32_at(int64_at(p, PHASE_START), slot * PHASES + phase))
        high = max(min(row - window + 1 - first_key, keys), low)
        count = add_seen(u, count, first_key, start, min(end, low), kind, shift)
        count = add_seen(u, count, first_key, max(start, high), end, kind, shift)
    return count


@compiled()
def edit_row(
    p: Any, logits: Any, slot: Any, q: Any, first_key: Any, keys: Any, head: Any, line: Any,
    cursor: Any,
) -> None:  # fmt: skip
    """Scales, absolutes and biases of one row and head on the first `keys` logits of a key tile."""
    starts = int64_at(p, RANGE_START) + slot * 4 * RANGES
    groups = int64_at(p, RANGE_GROUP) + slot * 4 * RANGES
    vectors, heads = int64_at(p, VECTORS), int64_at(p, LOCAL_HEADS)
    ranges = int32_at(int64_at(p, RANGE_COUNT), slot)
    j = cursor
    start = int32_at(starts, j)
    while j < ranges and start < first_key + keys:
        end = first_key + keys
        next_start = end
        if j + 1 < ranges:
            next_start = int32_at(starts, j + 1)
            end = min(next_start, end)
        group = int32_at(groups, j)
        if group > 0:
            field = GROUP_FIELDS + 3 * (group - 1)
            scale_at = int32_at(line, field + SCALE)
            absolute_at = int32_at(line, field + ABSOLUTE)
            bias_at = int32_at(line, field + BIAS)
            if scale_at != 1 or absolute_at != 0 or bias_at != 0:
                low = max(start - first_key, 0)
                edit(logits + 4 * low, end - first_key - low,
                     float_at(vectors, scale_at * heads + head),
                     float_at(vectors, absolute_at * heads + head),
                     float_at(vectors, bias_at * heads + head))  # fmt: skip
        start = next_start
        j += 1
    trailing_at = int32_at(line, TRAILING_BIAS)
    if trailing_at != 0:
        first = int32_at(int64_at(p, TRAILING), 2 * slot)
        width = int32_at(int64_at(p, TRAILING), 2 * slot + 1)
        low = max(max(first, q - width) - first_key, 0)
        high = min(q - first_key, keys)
        if low < high:
            bias = float_at(vectors, trailing_at * heads + head)
            edit(logits + 4 * low, high - low, ONE, ZERO, bias)


@compiled()
def hide_ranges(
    p: Any, logits: Any, slot: Any, phase: Any, first_key: Any, keys: Any, cursor: Any
) -> None:
    """-inf for the keys among the tile's first `keys` that rows of a phase do not see."""
    starts = int64_at(p, RANGE_START) + slot * 4 * RANGES
    ranges = int32_at(int64_at(p, RANGE_COUNT), slot)
    for j in range(cursor, ranges):
        start = max(int32_at(starts, j) - first_key, 0)
        if start >= keys:
            break
        end = keys
        if j + 1 < ranges:
            end = min(int32_at(starts, j + 1) - first_key, keys)
        if not uint8_at(int64_at(p, RANGE_VISIBLE), slot * RANGES + j) >> phase & 1:
            fill(logits + 4 * start, end - start, -INFINITY)


@compiled()
def meet_turned(p: Any, u: Any, first_key: Any, start: Any, end: Any, vectors: Any) -> None:
    """Logits of the tile's keys [start, end) with the queries of TURNED."""
    head_bytes, tile_bytes = 4 * int64_at(p, HEAD_DIM), 4 * KEY_TILE
    logits, extra = int64_at(u, LOGITS), int64_at(u, EXTRA)
    low, high = start // STRIP * STRIP, (end + STRIP - 1) // STRIP * STRIP
    for i in range(vectors):
        fill(extra + i * tile_bytes + 4 * low, high - low, ZERO)
    call_product(int64_at(p, PRODUCT), p, u, int64_at(u, TURNED), head_bytes, extra + 4 * low,
                 tile_bytes, vectors, first_key + low, high - low, 0)  # fmt: skip
    for i in range(vectors):
        for t in range(start, end):
            set_float(logits, i * KEY_TILE + t, float_at(extra, i * KEY_TILE + t))


@compiled()
def meet_runs(p: Any, u: Any, first_key: Any, count: Any, vectors: Any) -> None:
    """Logits of the runs' keys, not yet edited; 0 elsewhere."""
    runs, head_bytes, tile_bytes = int64_at(u, RUNS), 4 * int64_at(p, HEAD_DIM), 4 * KEY_TILE
    logits, rolling = int64_at(u, LOGITS), int64_at(u, ROLLING)
    fill(logits, vectors * KEY_TILE, ZERO)
    turned = 1 if rolling and first_key < int64_at(u, SINKS) else 0
    done = 0
    for n in range(count):
        run = runs + n * RUN_FIELDS * 8
        if int64_at(run, RUN_SHIFT):
            turned = 1
            continue
        low = max(int64_at(run, RUN_START) // STRIP * STRIP, done)
        high = (int64_at(run, RUN_END) + STRIP - 1) // STRIP * STRIP
        if low < high:
            call_product(int64_at(p, PRODUCT), p, u, int64_at(u, QUERIES), head_bytes,
                         logits + 4 * low, tile_bytes, vectors, first_key + low, high - low,
                         0)  # fmt: skip
            done = high
    if not turned:
        return
    for n in range(count):
        run = runs + n * RUN_FIELDS * 8
        start, end, shift = (
            int64_at(run, RUN_START),
            int64_at(run, RUN_END),
            int64_at(run, RUN_SHIFT),
        )
        if shift:
            if int64_at(u, TURNED_BY) != shift:
                set_angles(p, u, shift)
                for i in range(vectors):
                    rotate_back(p, u, i)
                set_int64(u, TURNED_BY, shift)
        elif rolling:
            end = min(end, int64_at(u, SINKS) - first_key)
        else:
            continue
        if start < end:
            meet_turned(p, u, first_key, start, end, vectors)


@compiled_for_calls(types.int64(*[types.int64] * 3))
def tile_logits(p: Any, u: Any, first_key: Any) -> Any:
    """Edited logits of the tile in LOGITS, -inf where a row sees no key; returns the number of RUNS.

    Row q has `used_strips(q, first_key)` of them. Tiles are taken in ascending order, from 0 on.
    """
    slot, rows, first_row = int64_at(u, SLOT), int64_at(u, ROWS), int64_at(u, FIRST_ROW)
    heads, first_head = int64_at(u, HEADS), int64_at(u, FIRST_HEAD)
    vectors = rows * heads
    keys = min(KEY_TILE, first_row + rows - first_key)
    starts = int64_at(p, RANGE_START) + slot * 4 * RANGES
    ranges = int32_at(int64_at(p, RANGE_COUNT), slot)
    cursor = int64_at(u, CURSOR) if first_key > 0 else 0
    while cursor + 1 < ranges and int32_at(starts, cursor + 1) <= first_key:
        cursor += 1
    set_int64(u, CURSOR, cursor)
    count = find_runs(p, u, first_key, keys, cursor)
    if count == 0:
        return 0
    meet_runs(p, u, first_key, count, vectors)
    edited, hiding = int64_at(u, EDITED), int64_at(u, HIDING)
    sinks, window, logits = int64_at(u, SINKS), int64_at(u, WINDOW), int64_at(u, LOGITS)
    gone_from = max(int64_at(u, HOLE_START) - first_key, 0)
    gone_to = int64_at(u, HOLE_END) - first_key
    for r in range(rows):
        q = first_row + r
        seen = min(q + 1 - first_key, KEY_TILE)
        if seen <= 0:
            continue
        used = used_strips(q, first_key)
        hide_from, hide_to = 0, 0
        if window > 0:
            hide_from = max(sinks - first_key, 0)
            hide_to = min(q - window + 1 - first_key, used)
        phase = phase_of(p, slot, q) if edited else 0
        line = line_of(p, slot, phase) if edited else 0
        for g in range(heads):
            at = logits + (g * rows + r) * 4 * KEY_TILE
            if edited:
                edit_row(p, at, slot, q, first_key, seen, first_head + g, line, cursor)
            fill(at + 4 * seen, used - seen, -INFINITY)
            fill(at + 4 * hide_from, hide_to - hide_from, -INFINITY)
            fill(at + 4 * gone_from, min(gone_to, used) - gone_from, -INFINITY)
            if hiding:
                hide_ranges(p, at, slot, phase, first_key, seen, cursor)
    return count


@compiled()
def used_strips(q: Any, first_key: Any) -> Any:
    """Keys of the tile, rounded up to strips, that a row which sees some of them takes part with."""
    return min((q + 1 - first_key + STRIP - 1) // STRIP * STRIP, KEY_TILE)
