"""The CPU kernel that observes: log-sum-exp and class masses in one pass over the keys. Where column sums
are wanted, the unit keeps its weights, and adds them up when it knows their totals. Tiles are those of
`attend`; units hold the query heads that are looked at, so that others cost nothing.

A weight enters a column sum as a whole number of 2^-40. Whole numbers add up to the same sum in any
order, so chunks, threads and units change no bit of it.
"""

import math
from typing import Any

import numpy as np
from numba import types

from heed_kernels.cpu.memory import (
    add_whole,
    call_begin,
    call_tile,
    fetch_add,
    fill,
    float64_at,
    float_at,
    int32_at,
    int64_at,
    scale,
    set_float,
    set_float64,
    set_int64,
)
from heed_kernels.cpu.parameters import (
    BEGIN,
    COLUMNS,
    FIRST_HEAD,
    FIRST_ROW,
    FIRST_TOKEN,
    HEADS,
    ITEM_FIELDS,
    LARGEST,
    LOCAL_HEADS,
    LOG_SUM_EXP,
    LOGITS,
    MASS,
    MASSES,
    ROWS,
    SLOT,
    STATE,
    STATE_FIELDS,
    TAKEN,
    TARGET_COUNT,
    TARGET_END,
    TARGET_FIELDS,
    TARGET_FIRST,
    TARGET_LINES,
    TARGET_SLOT,
    TARGET_STEP,
    TARGET_SUMS,
    TARGETS,
    TILE,
    TOTAL,
    UNIT_COUNT,
    UNITS,
    WORK,
    WORK_STEP,
)
from heed_kernels.cpu.runtime import compiled, compiled_for_calls
from heed_kernels.cpu.tile import used_strips
from heed_kernels.cpu.transfer import add_classes
from heed_kernels.cpu.vector import KEY_TILE, exponential, maximum
from heed_kernels.ranges import PROBE, PROBES

INFINITY = np.float32(np.inf)
ZERO, ONE = np.float32(0), np.float32(1)
FIRST_PROBE = PROBE.bit_length() - 1
ONE_FIXED = float(1 << 40)
"""The weight 1 in a column sum."""


@compiled()
def measure(p: Any, u: Any, i: Any, first_key: Any, used: Any) -> Any:
    """Take a vector's logits of this tile into its largest logit, total and class masses.

    The logits become weights relative to the largest logit so far, which is returned: -inf where the
    vector has seen no key yet, and they stay as they are.
    """
    state = int64_at(u, STATE) + i * STATE_FIELDS * 4
    at = int64_at(u, LOGITS) + i * 4 * KEY_TILE
    before = float_at(state, LARGEST)
    largest = max(before, maximum(at, used))
    if largest == -INFINITY:
        return largest
    total = exponential(at, used, largest)
    decay = np.float32(math.exp(before - largest))
    set_float(state, LARGEST, largest)
    set_float(state, TOTAL, total + float_at(state, TOTAL) * decay)
    if int64_at(p, MASS):
        scale(state + 4 * MASSES, PROBES, decay)
        add_classes(p, u, at, first_key, used, state + 4 * MASSES, FIRST_PROBE, PROBES)
    return largest


@compiled()
def write_masses(p: Any, u: Any) -> None:
    """Log-sum-exp and masses of the unit's rows."""
    rows, first_token, heads = int64_at(u, ROWS), int64_at(u, FIRST_TOKEN), int64_at(p, LOCAL_HEADS)
    for g in range(int64_at(u, HEADS)):
        for r in range(rows):
            state = int64_at(u, STATE) + (g * rows + r) * STATE_FIELDS * 4
            to = (first_token + r) * heads + int64_at(u, FIRST_HEAD) + g
            total = float_at(state, TOTAL)
            value = -INFINITY
            if total != 0:
                value = np.float32(float_at(state, LARGEST) + math.log(np.float64(total)))
            set_float(int64_at(p, LOG_SUM_EXP), to, value)
            if int64_at(p, MASS):
                for c in range(PROBES):
                    mass = ZERO if total == 0 else float_at(state, MASSES + c) / total
                    set_float(int64_at(p, MASS), to * PROBES + c, mass)


@compiled()
def add_columns(
    p: Any, u: Any, target: Any, g: Any, first_key: Any, weights: Any, largest: Any
) -> None:
    """Add the weights of this tile of one query head, over the target's rows, to its column sums.

    weights: of the tile, as `measure` left them; largest: what it returned, by vector.
    """
    rows, first_row, columns = int64_at(u, ROWS), int64_at(u, FIRST_ROW), int64_at(u, COLUMNS)
    keys = min(KEY_TILE, first_row + rows - first_key)
    for t in range(keys):
        set_float64(columns, t, 0.0)
    low = max(int64_at(target, TARGET_FIRST) - first_row, 0)
    for r in range(low, min(int64_at(target, TARGET_END) - first_row, rows)):
        i = g * rows + r
        state, then = int64_at(u, STATE) + i * STATE_FIELDS * 4, float_at(largest, i)
        total = float_at(state, TOTAL)
        if total != 0 and then != -INFINITY:
            seen = min(first_row + r + 1 - first_key, KEY_TILE)
            decay = math.exp(np.float64(then) - np.float64(float_at(state, LARGEST)))
            add_whole(columns, seen, weights + i * 4 * KEY_TILE, ONE_FIXED * decay / total)
    line = int32_at(int64_at(target, TARGET_LINES), int64_at(u, FIRST_HEAD) + g)
    sums = int64_at(target, TARGET_SUMS) + line * int64_at(target, TARGET_STEP) + first_key * 8
    for t in range(keys):
        value = np.int64(float64_at(columns, t))
        if value != 0:
            fetch_add(sums + 8 * t, value)


@compiled()
def wanted(target: Any, slot: Any, first_row: Any, rows: Any, head: Any) -> Any:
    """Whether a target takes any of the rows, of one query head."""
    return (
        int64_at(target, TARGET_SLOT) == slot
        and int64_at(target, TARGET_FIRST) < first_row + rows
        and int64_at(target, TARGET_END) > first_row
        and int32_at(int64_at(target, TARGET_LINES), head) >= 0
    )


@compiled()
def observe_unit(p: Any, item: Any, u: Any) -> None:
    """All rows and heads of one unit. item: its address; u: the thread's memory."""
    first_head, heads = int32_at(item, ITEM_FIELDS), int32_at(item, ITEM_FIELDS + 1)
    call_begin(int64_at(p, BEGIN), p, item, first_head, heads, u)
    rows, first_row = int64_at(u, ROWS), int64_at(u, FIRST_ROW)
    state, slot = int64_at(u, STATE), int64_at(u, SLOT)
    targets, count = int64_at(p, TARGETS), int64_at(p, TARGET_COUNT)
    measured, any_wanted = int64_at(p, LOG_SUM_EXP) != 0, False
    for n in range(count):
        for g in range(heads):
            target = targets + n * TARGET_FIELDS * 8
            any_wanted |= wanted(target, slot, first_row, rows, first_head + g)
    if not measured and not any_wanted:
        return
    vectors, end = rows * heads, first_row + rows
    fill(state, vectors * STATE_FIELDS, ZERO)
    for i in range(vectors):
        set_float(state, i * STATE_FIELDS + LARGEST, -INFINITY)
    # See `parameters.kept_floats`.
    weights = state + vectors * STATE_FIELDS * 4
    largest = weights + (end + KEY_TILE - 1) // KEY_TILE * vectors * KEY_TILE * 4
    for first_key in range(0, end, KEY_TILE):
        if any_wanted:
            set_int64(u, LOGITS, weights + first_key * vectors * 4)
            fill(largest + first_key // KEY_TILE * vectors * 4, vectors, -INFINITY)
        if call_tile(int64_at(p, TILE), p, u, first_key) == 0:
            continue
        for r in range(rows):
            q = first_row + r
            if q >= first_key:
                for g in range(heads):
                    i = g * rows + r
                    then = measure(p, u, i, first_key, used_strips(q, first_key))
                    if any_wanted:
                        set_float(largest, first_key // KEY_TILE * vectors + i, then)
    if measured:
        write_masses(p, u)
    if not any_wanted:
        return
    for first_key in range(0, end, KEY_TILE):
        for n in range(count):
            target = targets + n * TARGET_FIELDS * 8
            for g in range(heads):
                if wanted(target, slot, first_row, rows, first_head + g):
                    add_columns(p, u, target, g, first_key, weights + first_key * vectors * 4,
                                largest + first_key // KEY_TILE * vectors * 4)  # fmt: skip


@compiled_for_calls(types.void(types.int64, types.int64))
def observe_thread(p: Any, thread: Any) -> None:
    """Take units from the shared counter until none is left. p: address of the parameters."""
    work = int64_at(p, WORK) + thread * int64_at(p, WORK_STEP)
    index = fetch_add(p + 8 * TAKEN, 1)
    while index < int64_at(p, UNIT_COUNT):
        observe_unit(p, int64_at(p, UNITS) + index * 4 * (ITEM_FIELDS + 2), work)
        index = fetch_add(p + 8 * TAKEN, 1)
