"""A unit of work: a tile of query rows of some query heads that share a KV head, made ready for going over
the keys."""

import math
from typing import Any

import numpy as np
from numba import types

from heed_kernels.compiled import FIELDS, PHASES
from heed_kernels.cpu.memory import (
    float64_at,
    float_at,
    int32_at,
    int64_at,
    set_float,
    set_float64,
    set_int64,
    uint8_at,
)
from heed_kernels.cpu.parameters import (
    ANGLES,
    BLOCK_ROW,
    BLOCK_TABLE,
    BLOCK_TABLE_STEP,
    CACHE,
    COLUMNS,
    CURSOR,
    EDITED,
    EVICTED_END,
    EXTRA,
    FIRST_HEAD,
    FIRST_ROW,
    FIRST_TOKEN,
    GROUP_HEADS,
    HALF_ROTARY,
    HEAD_DIM,
    HEAD_STEP,
    HEADS,
    HIDING,
    HOLE_END,
    HOLE_START,
    INTERLEAVED,
    INV_FREQ,
    KEPT,
    KV_HEADS,
    LAYER,
    LAYERS,
    LEFT_OUT,
    LINE,
    LINE_STEP,
    LINES,
    LOGITS,
    PAGES,
    PHASE_START,
    PHASES_HERE,
    QUERIES,
    QUERY,
    QUERY_STEP,
    QUERY_TYPE,
    RANGE_COUNT,
    RANGE_GROUP,
    RANGE_SHIFT,
    RANGE_VISIBLE,
    ROLLING,
    ROWS,
    RUN_FIELDS,
    RUNS,
    SCALE_BITS,
    SCRATCH,
    SINKS,
    SLOT,
    SPLIT,
    STATE,
    SUMS,
    SUMS_BESIDE,
    TRAILING,
    TURNED,
    TURNED_BY,
    VISIBLE,
    WALKED,
    WINDOW,
)
from heed_kernels.cpu.runtime import compiled, compiled_for_calls
from heed_kernels.cpu.vector import FLOAT32, KEY_TILE, load_scaled
from heed_kernels.edits import SOURCES
from heed_kernels.ranges import RANGES


@compiled()
def phase_of(p: Any, slot: Any, q: Any) -> Any:
    """Phase of row `q`."""
    starts = int64_at(p, PHASE_START) + slot * 4 * PHASES
    phase = 0
    while phase + 1 < PHASES and int32_at(starts, phase + 1) <= q:
        phase += 1
    return phase


@compiled()
def line_of(p: Any, slot: Any, phase: Any) -> Any:
    """Address of the line that holds in a phase."""
    line = int32_at(int64_at(p, LINE) + slot * int64_at(p, LINE_STEP), phase)
    return int64_at(p, LINES) + line * 4 * FIELDS


@compiled()
def set_angles(p: Any, u: Any, distance: Any) -> None:
    """Cosines and sines of a turn by `distance` positions."""
    half, angles, inv_freq = int64_at(p, HALF_ROTARY), int64_at(u, ANGLES), int64_at(p, INV_FREQ)
    for i in range(half):
        angle = distance * float64_at(inv_freq, i)
        set_float64(angles, i, math.cos(angle))
        set_float64(angles, half + i, math.sin(angle))


@compiled()
def rotate_back(p: Any, u: Any, i: Any) -> None:
    """Write the query of vector `i` to TURNED, turned back by the angles that are set."""
    half, angles, head_dim = int64_at(p, HALF_ROTARY), int64_at(u, ANGLES), int64_at(p, HEAD_DIM)
    interleaved = int64_at(p, INTERLEAVED)
    source = int64_at(u, QUERIES) + i * 4 * head_dim
    target = int64_at(u, TURNED) + i * 4 * head_dim
    for d in range(2 * half, head_dim):
        set_float(target, d, float_at(source, d))
    for d in range(half):
        first, second = (2 * d, 2 * d + 1) if interleaved else (d, d + half)
        cos, sin = float64_at(angles, d), float64_at(angles, half + d)
        x, y = float_at(source, first), float_at(source, second)
        set_float(target, first, np.float32(x * cos + y * sin))
        set_float(target, second, np.float32(y * cos - x * sin))


@compiled()
def set_flags(p: Any, u: Any, slot: Any, first_row: Any, last_row: Any) -> None:
    """What the slot's edits mean for the rows of the unit."""
    visible = int64_at(p, VISIBLE)
    sinks, window = int32_at(visible, 3 * slot), int32_at(visible, 3 * slot + 1)
    rolls = int32_at(visible, 3 * slot + 2) != 0 and window > 0
    phases = (2 << phase_of(p, slot, last_row)) - (1 << phase_of(p, slot, first_row))
    count = int32_at(int64_at(p, RANGE_COUNT), slot)
    edited = (
        count > 1
        or int32_at(int64_at(p, RANGE_GROUP), slot * RANGES) > 0
        or int32_at(int64_at(p, TRAILING), 2 * slot + 1) > 0
    )
    hiding = shifting = False
    seen = int64_at(p, RANGE_VISIBLE) + slot * RANGES
    shift = int64_at(p, RANGE_SHIFT) + slot * 4 * RANGES
    for j in range(count):
        hiding |= uint8_at(seen, j) & phases != phases
        shifting |= int32_at(shift, j) != 0
    set_int64(u, SINKS, sinks)
    set_int64(u, WINDOW, window)
    set_int64(u, ROLLING, 1 if rolls and last_row - window - sinks + 1 > 0 else 0)
    set_int64(u, EDITED, 1 if edited or hiding else 0)
    set_int64(u, HIDING, 1 if hiding else 0)
    set_int64(u, WALKED, 1 if hiding or shifting or int64_at(u, HOLE_END) > 0 else 0)
    set_int64(u, SPLIT, 0)
    set_int64(u, PHASES_HERE, phases)
    set_int64(u, TURNED_BY, 0)
    set_int64(u, CURSOR, 0)


@compiled()
def set_hole(p: Any, u: Any, slot: Any, kv_head: Any) -> None:
    """Keys that an eviction let go: rows of the unit come after it."""
    end, start = int32_at(int64_at(p, EVICTED_END), slot), 0
    if end > 0:
        line = (slot * int64_at(p, LAYERS) + int64_at(p, LAYER)) * int64_at(p, KV_HEADS)
        start = min(int32_at(int64_at(p, KEPT), line + kv_head), end)
    set_int64(u, HOLE_START, start)
    set_int64(u, HOLE_END, end)


@compiled_for_calls(types.void(*[types.int64] * 5))
def begin(p: Any, item: Any, first_head: Any, heads: Any, u: Any) -> None:
    """Set the unit's fields at `u`, the start of the thread's memory, and load its queries.

    item: address of int32 [5], see `Pattern.items`. first_head, heads: query heads of one KV head.
    """
    slot, first_token, rows = int32_at(item, 0), int32_at(item, 1), int32_at(item, 2)
    first_row = int32_at(item, 3)
    kv_head, head_dim = first_head // int64_at(p, GROUP_HEADS), int64_at(p, HEAD_DIM)
    vectors = rows * heads
    block_row = int64_at(p, BLOCK_TABLE) + int32_at(item, 4) * int64_at(p, BLOCK_TABLE_STEP)
    set_int64(u, SLOT, slot)
    set_int64(u, FIRST_TOKEN, first_token)
    set_int64(u, ROWS, rows)
    set_int64(u, FIRST_ROW, first_row)
    set_int64(u, BLOCK_ROW, block_row)
    set_int64(u, PAGES, int64_at(p, CACHE) + kv_head * int64_at(p, HEAD_STEP))
    set_int64(u, FIRST_HEAD, first_head)
    set_int64(u, HEADS, heads)

    # The sum of these sizes is `parameters.thread_floats`.
    at = u + 32 * 8
    set_int64(u, RUNS, at)
    at += KEY_TILE * RUN_FIELDS * 8
    set_int64(u, ANGLES, at)
    at += head_dim * 8
    set_int64(u, QUERIES, at)
    set_int64(u, TURNED, at + vectors * head_dim * 4)
    set_int64(u, SUMS, at + vectors * head_dim * 8)
    set_int64(u, SUMS_BESIDE, at + vectors * head_dim * 12)
    at += vectors * head_dim * 16
    set_int64(u, LOGITS, at)
    set_int64(u, EXTRA, at + vectors * KEY_TILE * 4)
    at += vectors * KEY_TILE * 8
    set_int64(u, SCRATCH, at)
    at += KEY_TILE * head_dim * 4
    set_int64(u, COLUMNS, at)
    at += KEY_TILE * 8
    set_int64(u, LEFT_OUT, at)
    at += vectors * SOURCES * 4
    set_int64(u, STATE, at)

    set_hole(p, u, slot, kv_head)
    set_flags(p, u, slot, first_row, first_row + rows - 1)
    dtype = int64_at(p, QUERY_TYPE)
    item_bytes = 4 if dtype == FLOAT32 else 2
    factor = np.float32(float64_at(p, SCALE_BITS))
    rolling = int64_at(u, ROLLING)
    queries = int64_at(u, QUERIES)
    for r in range(rows):
        source = int64_at(p, QUERY) + (first_token + r) * int64_at(p, QUERY_STEP)
        if rolling:
            hidden = first_row + r - int64_at(u, WINDOW) - int64_at(u, SINKS) + 1
            set_angles(p, u, max(hidden, 0))
        for g in range(heads):
            i = g * rows + r
            load_scaled(dtype, source + (first_head + g) * head_dim * item_bytes,
                        queries + i * head_dim * 4, head_dim, factor)  # fmt: skip
            if rolling:
                rotate_back(p, u, i)
