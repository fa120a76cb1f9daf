"""The CPU kernel: units of work, each a tile of query rows of one KV head.

A unit goes over the keys once, in tiles aligned to absolute positions, with an online softmax. What
a row computes depends on its position and keys alone: a tile of keys that it does not see leaves it
as it was, so neither chunks nor neighbours in its row tile change a bit of it.
"""

import math
from typing import Any

import numba
import numpy as np
from numba import types

from heed_kernels.compiled import GAIN, MIX
from heed_kernels.cpu.memory import (
    blend,
    call_begin,
    call_product,
    call_thread,
    call_tile,
    fetch_add,
    fill,
    float_at,
    int32_at,
    int64_at,
    scale,
    set_float,
)
from heed_kernels.cpu.parameters import (
    BEGIN,
    FIRST_HEAD,
    FIRST_ROW,
    FIRST_TOKEN,
    GROUP_HEADS,
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    LARGEST,
    LOCAL_HEADS,
    LOGITS,
    MASSES,
    MIX_HEADS,
    MIXES,
    MOVED,
    OUTPUT,
    OUTPUT_STEP,
    PRODUCT,
    QUERY_TYPE,
    ROWS,
    RUN_CLASS,
    RUN_END,
    RUN_FIELDS,
    RUN_START,
    RUNS,
    SLOT,
    STATE,
    STATE_FIELDS,
    SUMS,
    SUMS_BESIDE,
    TAKEN,
    TILE,
    TOTAL,
    UNIT_COUNT,
    UNITS,
    VECTORS,
    WORK,
    WORK_STEP,
)
from heed_kernels.cpu.runtime import compiled, compiled_for_calls
from heed_kernels.cpu.tile import used_strips
from heed_kernels.cpu.transfer import (
    add_classes,
    add_values_split,
    leave_out_sources,
    prepare_transfer,
    settle,
)
from heed_kernels.cpu.unit import line_of, phase_of
from heed_kernels.cpu.vector import FLOAT32, KEY_TILE, exponential, maximum, store_scaled

INFINITY = np.float32(np.inf)
ZERO, ONE = np.float32(0), np.float32(1)


@compiled()
def weigh(p: Any, u: Any, i: Any, head: Any, first_key: Any, used: Any) -> None:
    """Turn a vector's logits of this tile into weights, relative to its largest logit so far."""
    state, head_dim = int64_at(u, STATE) + i * STATE_FIELDS * 4, int64_at(p, HEAD_DIM)
    at = int64_at(u, LOGITS) + i * 4 * KEY_TILE
    moved = float_at(state, MOVED) > 0
    if moved:
        leave_out_sources(p, u, i, head, first_key, used)
    before = float_at(state, LARGEST)
    largest = max(before, maximum(at, used))
    if largest == -INFINITY:
        fill(at, KEY_TILE, ZERO)
        return
    total = exponential(at, used, largest)
    fill(at + 4 * used, KEY_TILE - used, ZERO)
    if before != largest:
        decay = np.float32(math.exp(before - largest))
        total += float_at(state, TOTAL) * decay
        scale(int64_at(u, SUMS) + i * 4 * head_dim, head_dim, decay)
        if moved:
            scale(int64_at(u, SUMS_BESIDE) + i * 4 * head_dim, head_dim, decay)
            scale(state + 4 * MASSES, 3, decay)
    else:
        total += float_at(state, TOTAL)
    set_float(state, LARGEST, largest)
    set_float(state, TOTAL, total)
    if moved:
        add_classes(p, u, at, first_key, used, state + 4 * MASSES, 0, 3)


@compiled()
def write_row(p: Any, u: Any, r: Any) -> None:
    """Outputs of one row, all query heads of the unit."""
    slot, rows, q = int64_at(u, SLOT), int64_at(u, ROWS), int64_at(u, FIRST_ROW) + r
    head_dim, heads = int64_at(p, HEAD_DIM), int64_at(p, LOCAL_HEADS)
    dtype = int64_at(p, QUERY_TYPE)
    line = line_of(p, slot, phase_of(p, slot, q))
    target = int64_at(p, OUTPUT) + (int64_at(u, FIRST_TOKEN) + r) * int64_at(p, OUTPUT_STEP)
    mix_line = int32_at(line, MIX)
    for g in range(int64_at(u, HEADS)):
        i, head = g * rows + r, int64_at(u, FIRST_HEAD) + g
        state, sums = (
            int64_at(u, STATE) + i * STATE_FIELDS * 4,
            int64_at(u, SUMS) + i * 4 * head_dim,
        )
        factor = float_at(int64_at(p, VECTORS), int32_at(line, GAIN) * heads + head)
        total = float_at(state, TOTAL)
        if float_at(state, MOVED) > 0:
            settle(p, u, i, line, head)
        elif total == 0:
            factor = ZERO
        else:
            factor *= ONE / total
        mix = int32_at(int64_at(p, MIX_HEADS), mix_line * heads + head) if mix_line else 0
        if mix:
            scale(sums, head_dim, factor)
            blend(sums, head_dim, int64_at(p, MIXES) + mix * 4 * head_dim, ONE, ONE)
            factor = ONE
        store_scaled(sums, factor, dtype, target + head * head_dim * (4 if dtype == FLOAT32 else 2),
                     head_dim)  # fmt: skip


@compiled()
def attend_unit(p: Any, item: Any, kv_head: Any, u: Any) -> None:
    """All rows of one unit, for the query heads of one KV head. u: the thread's memory."""
    group_heads, head_dim = int64_at(p, GROUP_HEADS), int64_at(p, HEAD_DIM)
    first_head = kv_head * group_heads
    call_begin(int64_at(p, BEGIN), p, item, first_head, group_heads, u)
    rows, first_row = int64_at(u, ROWS), int64_at(u, FIRST_ROW)
    vectors, head_bytes, tile_bytes = rows * group_heads, 4 * head_dim, 4 * KEY_TILE
    sums, logits, state = int64_at(u, SUMS), int64_at(u, LOGITS), int64_at(u, STATE)
    fill(sums, vectors * head_dim, ZERO)
    for i in range(vectors):
        set_float(state, i * STATE_FIELDS + LARGEST, -INFINITY)
        set_float(state, i * STATE_FIELDS + TOTAL, ZERO)
    prepare_transfer(p, u)
    for first_key in range(0, first_row + rows, KEY_TILE):
        count = call_tile(int64_at(p, TILE), p, u, first_key)
        if count == 0:
            continue
        for r in range(rows):
            q = first_row + r
            for g in range(group_heads):
                i = g * rows + r
                if q < first_key:
                    fill(logits + i * tile_bytes, KEY_TILE, ZERO)
                else:
                    weigh(p, u, i, first_head + g, first_key, used_strips(q, first_key))
        for n in range(count):
            run = int64_at(u, RUNS) + n * RUN_FIELDS * 8
            start, end = int64_at(run, RUN_START), int64_at(run, RUN_END)
            if int64_at(run, RUN_CLASS):
                add_values_split(p, u, first_key, run)
            else:
                call_product(int64_at(p, PRODUCT), p, u, logits + 4 * start, tile_bytes, sums,
                             head_bytes, vectors, first_key + start, end - start, 1)  # fmt: skip
    for r in range(rows):
        write_row(p, u, r)


@compiled_for_calls(types.void(types.int64, types.int64))
def attend_thread(p: Any, thread: Any) -> None:
    """Take units from the shared counter until none is left. p: address of the parameters."""
    kv_heads, work = int64_at(p, KV_HEADS), int64_at(p, WORK) + thread * int64_at(p, WORK_STEP)
    end = int64_at(p, UNIT_COUNT) * kv_heads
    index = fetch_add(p + 8 * TAKEN, 1)
    while index < end:
        item = int64_at(p, UNITS) + index // kv_heads * 20
        attend_unit(p, item, index % kv_heads, work)
        index = fetch_add(p + 8 * TAKEN, 1)


@compiled(parallel=True)
def run_threads(function: Any, parameters: Any, threads: Any) -> None:
    """function(parameters, thread) on each of `threads` threads; addresses."""
    for thread in numba.prange(threads):
        call_thread(function, parameters, thread)
