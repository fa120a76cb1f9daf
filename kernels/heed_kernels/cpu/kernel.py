"""The CPU kernel: units of work, each a tile of query rows of one KV head.

A unit goes over the keys once, in tiles aligned to absolute positions, with an online softmax. What
a row computes depends on its position and keys alone: a tile of keys that it does not see leaves it
as it was, so neither chunks nor neighbours in its row tile change a bit of it.

Everything comes in one block of parameters, int64 each: sizes, addresses and codes of element types.
"""

import math
from typing import Any

import numba
import numpy as np
from numba import types

from heed_kernels.compiled import (
    ABSOLUTE,
    BIAS,
    FIELDS,
    GAIN,
    GROUP_FIELDS,
    PHASES,
    SCALE,
    TRAILING_BIAS,
)
from heed_kernels.cpu.memory import (
    call_product,
    call_thread,
    edit,
    element_at,
    fetch_add,
    fill,
    float64_at,
    float_at,
    int32_at,
    int64_at,
    scale,
    set_float,
)
from heed_kernels.cpu.runtime import compiled, compiled_for_calls
from heed_kernels.cpu.vector import (
    FLOAT32,
    KEY_TILE,
    STRIP,
    exponential,
    load_scaled,
    maximum,
    store_scaled,
)
from heed_kernels.ranges import RANGES

(
    QUERY, OUTPUT, QUERY_STEP, OUTPUT_STEP, QUERY_TYPE, CACHE, BLOCK_STEP, HEAD_STEP, CACHE_TYPE,
    BLOCK_TABLE, BLOCK_TABLE_STEP, BLOCK_SIZE, UNITS, UNIT_COUNT, KV_HEADS, GROUP_HEADS, HEAD_DIM,
    SCALE_BITS, KEY_ROW, VALUE_ROW, KEY_OFFSET, VALUE_OFFSET, PHASE_START, RANGE_COUNT, RANGE_START,
    RANGE_GROUP, VISIBLE, TRAILING, LINE, LINE_STEP, LINES, VECTORS, LOCAL_HEADS, INV_FREQ,
    HALF_ROTARY, INTERLEAVED, WORK, WORK_STEP, TAKEN, PRODUCT, PARAMETERS,
) = range(41)  # fmt: skip
"""Columns of the parameters. *_STEP: bytes from a token, block, KV head, block-table row, slot of this
layer's lines or thread's memory to the next; QUERY_TYPE, CACHE_TYPE: codes of `vector`; SCALE_BITS: a
float64; KEY_ROW, VALUE_ROW and the offsets are the layout's, in elements; TAKEN: units that
threads have taken, 0 at the start; PRODUCT: `multiply_add`. The rest is the edit table's, the plan's, the rope's.
"""

INFINITY = np.float32(np.inf)
ZERO, ONE = np.float32(0), np.float32(1)
WIDEN_ROWS = 8
"""A 16-bit tile is widened once when at least so many rows use it, else in each register block."""


@compiled()
def rotate_back(
    source: Any, target: Any, head_dim: Any, inv_freq: Any, half: Any, interleaved: Any,
    distance: Any,
) -> None:  # fmt: skip
    """Copy a head's float32 vector turned back by `distance` positions."""
    for i in range(2 * half, head_dim):
        set_float(target, i, float_at(source, i))
    for i in range(half):
        first, second = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
        angle = distance * float64_at(inv_freq, i)
        cos, sin = math.cos(angle), math.sin(angle)
        x, y = float_at(source, first), float_at(source, second)
        set_float(target, first, np.float32(x * cos + y * sin))
        set_float(target, second, np.float32(y * cos - x * sin))


@compiled()
def tile_product(
    p: Any, left: Any, left_row: Any, result: Any, result_row: Any, rows: Any, scratch: Any,
    page_at: Any, block_row: Any, first_key: Any, keys: Any, hidden_from: Any, hidden_to: Any,
    values: Any,
) -> None:  # fmt: skip
    """Products with `keys` keys from `first_key`, added to `result`, as `values` says:

    False: result[r, t] += left[r] . key[first_key + t]; keys is a multiple of STRIP.
    True: result[r] += sum_t left[r, t] value[first_key + t].

    left, result: addresses of float32, *_row: bytes. Blocks inside of the keys [hidden_from,
    hidden_to) are not read.
    """
    block_size, head_dim = int64_at(p, BLOCK_SIZE), int64_at(p, HEAD_DIM)
    dtype, product = int64_at(p, CACHE_TYPE), int64_at(p, PRODUCT)
    size = 4 if dtype == FLOAT32 else 2
    row = int64_at(p, VALUE_ROW if values else KEY_ROW)
    offsets = int64_at(p, VALUE_OFFSET if values else KEY_OFFSET)
    done = 0
    while done < keys:
        key = first_key + done
        token = key % block_size
        count = min(block_size - token, keys - done)
        if key >= hidden_from and key + count <= hidden_to:
            done += count
            continue
        page = page_at + int32_at(block_row, key // block_size) * int64_at(p, BLOCK_STEP)
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
                call_product(product, FLOAT32, first, left_row, scratch, columns * 4,
                             target, result_row, rows, columns, inner)  # fmt: skip
            else:
                call_product(product, dtype, first, left_row, source, row * size,
                             target, result_row, rows, columns, inner)  # fmt: skip
        else:
            for t in range(count):
                for d in range(head_dim):
                    at = page + size * int32_at(offsets, (token + t) * head_dim + d)
                    to = t * head_dim + d if values else d * count + t
                    set_float(scratch, to, element_at(dtype, at))
            call_product(product, FLOAT32, first, left_row, scratch, columns * 4,
                         target, result_row, rows, columns, inner)  # fmt: skip
        done += count


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
def line_of(p: Any, slot: Any, q: Any) -> Any:
    """Address of the line that holds for row `q`."""
    starts = int64_at(p, PHASE_START) + slot * 4 * PHASES
    phase = 0
    while phase + 1 < PHASES and int32_at(starts, phase + 1) <= q:
        phase += 1
    line = int32_at(int64_at(p, LINE) + slot * int64_at(p, LINE_STEP), phase)
    return int64_at(p, LINES) + line * 4 * FIELDS


@compiled()
def attend_unit(p: Any, unit: Any, kv_head: Any, work: Any) -> None:
    """All rows of one unit, for the query heads of one KV head. work: the thread's memory."""
    slot, first_token, rows = int32_at(unit, 0), int32_at(unit, 1), int32_at(unit, 2)
    first_row = int32_at(unit, 3)
    block_row = int64_at(p, BLOCK_TABLE) + int32_at(unit, 4) * int64_at(p, BLOCK_TABLE_STEP)
    group_heads, head_dim = int64_at(p, GROUP_HEADS), int64_at(p, HEAD_DIM)
    dtype = int64_at(p, QUERY_TYPE)
    item = 4 if dtype == FLOAT32 else 2
    factor = np.float32(float64_at(p, SCALE_BITS))
    last_row = first_row + rows - 1
    vectors_in = rows * group_heads
    first_head = kv_head * group_heads
    visible = int64_at(p, VISIBLE)
    sinks, window = int32_at(visible, 3 * slot), int32_at(visible, 3 * slot + 1)
    rolling = (
        int32_at(visible, 3 * slot + 2) != 0 and window > 0 and last_row - window - sinks + 1 > 0
    )
    page_at = int64_at(p, CACHE) + kv_head * int64_at(p, HEAD_STEP)
    # What is hidden from the first row, keys [sinks, hidden_to), is hidden from all; it may have been
    # freed and belong to somebody else, so whole blocks of it are not read.
    hidden_to = first_row - window + 1 if window > 0 else 0

    head_bytes, tile_bytes = 4 * head_dim, 4 * KEY_TILE
    queries = work
    turned = queries + vectors_in * head_bytes
    sums = turned + vectors_in * head_bytes
    logits = sums + vectors_in * head_bytes
    extra = logits + vectors_in * tile_bytes
    scratch = extra + vectors_in * tile_bytes
    state = scratch + KEY_TILE * head_bytes  # per vector: largest logit, total weight

    fill(sums, vectors_in * head_dim, ZERO)
    for i in range(vectors_in):
        r = i // group_heads
        at = queries + i * head_bytes
        source = int64_at(p, QUERY) + (first_token + r) * int64_at(p, QUERY_STEP)
        head = first_head + i % group_heads
        load_scaled(dtype, source + head * head_dim * item, at, head_dim, factor)
        if rolling:
            hidden = max(first_row + r - window - sinks + 1, 0)
            rotate_back(at, turned + i * head_bytes, head_dim, int64_at(p, INV_FREQ),
                        int64_at(p, HALF_ROTARY), int64_at(p, INTERLEAVED), hidden)  # fmt: skip
        set_float(state, 2 * i, -INFINITY)
        set_float(state, 2 * i + 1, ZERO)

    ranges, starts = int64_at(p, RANGE_COUNT), int64_at(p, RANGE_START) + slot * 4 * RANGES
    cursor = 0
    edited = (
        int32_at(ranges, slot) > 1
        or int32_at(int64_at(p, RANGE_GROUP), slot * RANGES) > 0
        or int32_at(int64_at(p, TRAILING), 2 * slot + 1) > 0
    )
    first_key = -KEY_TILE
    while first_key + KEY_TILE <= last_row:
        first_key += KEY_TILE
        if first_key >= sinks and first_key + KEY_TILE <= hidden_to:
            continue
        keys = min(KEY_TILE, last_row + 1 - first_key)
        columns = (keys + STRIP - 1) // STRIP * STRIP
        turns = 2 if rolling and first_key < sinks else 1
        for turn in range(turns):
            left, target = (turned, extra) if turn else (queries, logits)
            fill(target, vectors_in * KEY_TILE, ZERO)
            tile_product(p, left, head_bytes, target, tile_bytes, vectors_in, scratch, page_at,
                         block_row, first_key, columns, sinks, hidden_to, False)  # fmt: skip
        if turns == 2:
            for i in range(vectors_in):
                for t in range(min(sinks - first_key, columns)):
                    set_float(logits, i * KEY_TILE + t, float_at(extra, i * KEY_TILE + t))
        while cursor + 1 < int32_at(ranges, slot) and int32_at(starts, cursor + 1) <= first_key:
            cursor += 1

        for r in range(rows):
            q = first_row + r
            # The row sees nothing from `seen` on; its strips up to `used` take part in the softmax.
            seen = min(q + 1 - first_key, KEY_TILE)
            used = min((seen + STRIP - 1) // STRIP * STRIP, columns)
            hide_from, hide_to = 0, 0
            if window > 0:
                hide_from = max(sinks - first_key, 0)
                hide_to = min(q - window + 1 - first_key, used)
            line = line_of(p, slot, q) if edited else 0
            for g in range(group_heads):
                i = r * group_heads + g
                at = logits + i * tile_bytes
                if seen <= 0:
                    fill(at, columns, ZERO)
                    continue
                if edited:
                    edit_row(p, at, slot, q, first_key, seen, first_head + g, line, cursor)
                fill(at + 4 * seen, used - seen, -INFINITY)
                fill(at + 4 * hide_from, hide_to - hide_from, -INFINITY)
                fill(at + 4 * used, columns - used, ZERO)
                before = float_at(state, 2 * i)
                largest = max(before, maximum(at, used))
                if largest == -INFINITY:
                    fill(at, columns, ZERO)
                    continue
                total = exponential(at, used, largest)
                if before != largest:
                    decay = np.float32(math.exp(before - largest))
                    total += float_at(state, 2 * i + 1) * decay
                    scale(sums + i * head_bytes, head_dim, decay)
                else:
                    total += float_at(state, 2 * i + 1)
                set_float(state, 2 * i, largest)
                set_float(state, 2 * i + 1, total)
        tile_product(p, logits, tile_bytes, sums, head_bytes, vectors_in, scratch, page_at,
                     block_row, first_key, keys, sinks, hidden_to, True)  # fmt: skip

    for i in range(vectors_in):
        r, head = i // group_heads, first_head + i % group_heads
        gain_at = int32_at(line_of(p, slot, first_row + r), GAIN)
        gain = float_at(int64_at(p, VECTORS), gain_at * int64_at(p, LOCAL_HEADS) + head)
        target = int64_at(p, OUTPUT) + (first_token + r) * int64_at(p, OUTPUT_STEP)
        store_scaled(sums + i * head_bytes, gain * (ONE / float_at(state, 2 * i + 1)), dtype,
                     target + head * head_dim * item, head_dim)  # fmt: skip


@compiled_for_calls(types.void(types.int64, types.int64))
def attend_thread(p: Any, thread: Any) -> None:
    """Take units from the shared counter until none is left. p: address of the parameters."""
    kv_heads, work = int64_at(p, KV_HEADS), int64_at(p, WORK) + thread * int64_at(p, WORK_STEP)
    end = int64_at(p, UNIT_COUNT) * kv_heads
    index = fetch_add(p + 8 * TAKEN)
    while index < end:
        unit = int64_at(p, UNITS) + index // kv_heads * 20
        attend_unit(p, unit, index % kv_heads, work)
        index = fetch_add(p + 8 * TAKEN)


@compiled(parallel=True)
def run_threads(function: Any, parameters: Any, threads: Any) -> None:
    """function(parameters, thread) on each of `threads` threads; addresses."""
    for thread in numba.prange(threads):
        call_thread(function, parameters, thread)
