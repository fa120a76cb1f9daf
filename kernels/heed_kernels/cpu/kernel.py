"""The CPU kernel: units of work, each a tile of query rows of one KV head.

A unit goes over the keys once, in tiles aligned to absolute positions, with an online softmax. What
a row computes depends on its position and keys alone: a tile of keys that it does not see leaves it
as it was, so neither chunks nor neighbours in its row tile change a bit of it.
"""

import math
from typing import Any

import numba
import numpy as np

from heed_kernels.compiled import ABSOLUTE, BIAS, GAIN, SCALE, TRAILING_BIAS
from heed_kernels.cpu.product import multiply_add
from heed_kernels.cpu.runtime import compiled
from heed_kernels.cpu.vector import (
    KEY_TILE,
    STRIP,
    fetch_add,
    load_strip,
    store_strip,
    tile_exponential,
    tile_maximum,
)

INFINITY = np.float32(np.inf)
ONE = np.float32(1)


@compiled()
def rotate_back(
    source: Any, source_at: Any, target: Any, target_at: Any, head_dim: Any, inv_freq: Any,
    interleaved: Any, distance: Any,
) -> None:  # fmt: skip
    """Copy a head's vector turned back by `distance` positions."""
    half = len(inv_freq)
    for i in range(2 * half, head_dim):
        target[target_at + i] = source[source_at + i]
    for i in range(half):
        first, second = (2 * i, 2 * i + 1) if interleaved else (i, i + half)
        angle = distance * inv_freq[i]
        cos, sin = math.cos(angle), math.sin(angle)
        x, y = source[source_at + first], source[source_at + second]
        target[target_at + first] = np.float32(x * cos + y * sin)
        target[target_at + second] = np.float32(y * cos - x * sin)


@compiled()
def tile_product(
    query: Any, query_at: Any, rows: Any, head_dim: Any, logits: Any, logits_at: Any,
    cache: Any, page_at: Any, block_step: Any, block_table: Any, block_row: Any, block_size: Any,
    key_row: Any, key_offset: Any, scratch: Any, scratch_at: Any, first_key: Any, columns: Any,
) -> None:  # fmt: skip
    """logits[r, t] = query[r] . key[first_key + t] for t < columns, a multiple of STRIP."""
    for r in range(rows):
        at = logits_at + r * KEY_TILE
        for t in range(columns):
            logits[at + t] = 0
    done = 0
    while done < columns:
        block = np.int64(block_table[block_row, (first_key + done) // block_size])
        token = (first_key + done) % block_size
        count = min(block_size - token, columns - done)
        page = page_at + block * block_step
        if key_row:
            multiply_add(query, query_at, head_dim, cache, page + token, key_row,
                         logits, logits_at + done, KEY_TILE, rows, count, head_dim)  # fmt: skip
        else:
            for d in range(head_dim):
                for t in range(count):
                    at = page + key_offset[token + t, d]
                    scratch[scratch_at + d * KEY_TILE + t] = widened(cache, at)
            multiply_add(query, query_at, head_dim, scratch, scratch_at, KEY_TILE,
                         logits, logits_at + done, KEY_TILE, rows, count, head_dim)  # fmt: skip
        done += count


@compiled()
def widened(cache: Any, at: Any) -> Any:
    """One cache element as float32."""
    line = np.empty(STRIP, np.float32)
    load_strip(cache, at, line, 0)
    return line[0]


@compiled()
def edit_row(
    logits: Any, at: Any, q: Any, first_key: Any, keys: Any, head: Any, line: Any, vectors: Any,
    range_start: Any, range_group: Any, range_count: Any, cursor: Any, trailing_from: Any,
) -> None:  # fmt: skip
    """Scales, absolutes and biases of one row and head on the logits of one key tile."""
    end = first_key + keys
    j = cursor
    while j < range_count and range_start[j] < end:
        group = range_group[j]
        if group > 0:
            field = 2 + 3 * (group - 1)
            scale_at, absolute_at, bias_at = (
                line[field + SCALE], line[field + ABSOLUTE], line[field + BIAS],
            )  # fmt: skip
            if scale_at != 1 or absolute_at != 0 or bias_at != 0:
                scale = vectors[scale_at, head]
                absolute = vectors[absolute_at, head]
                bias = vectors[bias_at, head]
                low = max(range_start[j] - first_key, 0)
                high = keys
                if j + 1 < range_count:
                    high = min(range_start[j + 1] - first_key, keys)
                for t in range(low, high):
                    s = logits[at + t]
                    logits[at + t] = scale * s + (absolute * abs(s) + bias)
        j += 1
    if line[TRAILING_BIAS] != 0 and trailing_from < q:
        bias = vectors[line[TRAILING_BIAS], head]
        for t in range(max(trailing_from - first_key, 0), min(q - first_key, keys)):
            logits[at + t] += bias


@compiled()
def attend_unit(
    query: Any, output: Any, query_step: Any, output_step: Any, cache: Any, block_step: Any,
    head_step: Any, block_table: Any, block_size: Any, unit: Any, kv_head: Any, group_heads: Any,
    head_dim: Any,
    scale: Any, key_row: Any, value_row: Any, key_offset: Any, value_offset: Any, phase_start: Any,
    range_count: Any, range_start: Any, range_group: Any, visible: Any, trailing: Any, line: Any,
    lines: Any, vectors: Any, inv_freq: Any, interleaved: Any, work: Any,
) -> None:  # fmt: skip
    """All rows of one unit, for the query heads of one KV head. See `attend_units`."""
    slot, first_token, rows = unit[0], np.int64(unit[1]), np.int64(unit[2])
    first_row, block_row = np.int64(unit[3]), np.int64(unit[4])
    last_row = first_row + rows - 1
    vectors_in = rows * group_heads
    sinks, window = np.int64(visible[slot, 0]), np.int64(visible[slot, 1])
    rolling = visible[slot, 2] != 0 and window > 0 and last_row - window - sinks + 1 > 0
    page_at = kv_head * head_step

    query_at = 0
    turned_at = query_at + vectors_in * head_dim
    sums_at = turned_at + vectors_in * head_dim
    logits_at = sums_at + vectors_in * head_dim
    extra_at = logits_at + vectors_in * KEY_TILE
    state_at = extra_at + vectors_in * KEY_TILE
    scratch_at = state_at + 2 * vectors_in

    for r in range(rows):
        for g in range(group_heads):
            i = r * group_heads + g
            at = query_at + i * head_dim
            source = (first_token + r) * query_step + (kv_head * group_heads + g) * head_dim
            for d in range(0, head_dim, STRIP):
                load_strip(query, source + d, work, at + d)
            for d in range(head_dim):
                work[at + d] *= scale
                work[sums_at + i * head_dim + d] = 0
            if rolling:
                hidden = max(first_row + r - window - sinks + 1, 0)
                rotate_back(work, at, work, turned_at + i * head_dim, head_dim, inv_freq,
                            interleaved, np.float64(hidden))  # fmt: skip
            work[state_at + 2 * i] = -INFINITY
            work[state_at + 2 * i + 1] = 0

    cursor = 0
    edited = range_count[slot] > 1 or range_group[slot, 0] > 0 or trailing[slot, 1] > 0
    for first_key in range(0, last_row + 1, KEY_TILE):
        if window > 0 and first_key >= sinks and first_key + KEY_TILE - 1 <= first_row - window:
            continue  # hidden from the first row, and so from all
        keys = min(KEY_TILE, last_row + 1 - first_key)
        columns = (keys + STRIP - 1) // STRIP * STRIP
        tile_product(work, query_at, vectors_in, head_dim, work, logits_at, cache, page_at,
                     block_step, block_table, block_row, block_size, key_row, key_offset,
                     work, scratch_at, first_key, columns)  # fmt: skip
        if rolling and first_key < sinks:
            tile_product(work, turned_at, vectors_in, head_dim, work, extra_at, cache, page_at,
                         block_step, block_table, block_row, block_size, key_row, key_offset,
                         work, scratch_at, first_key, columns)  # fmt: skip
            for i in range(vectors_in):
                for t in range(min(sinks - first_key, columns)):
                    work[logits_at + i * KEY_TILE + t] = work[extra_at + i * KEY_TILE + t]
        while cursor + 1 < range_count[slot] and range_start[slot, cursor + 1] <= first_key:
            cursor += 1

        for r in range(rows):
            q = first_row + r
            hide_from, hide_to = np.int64(0), np.int64(0)
            if window > 0:
                hide_from = max(sinks - first_key, 0)
                hide_to = min(q - window + 1 - first_key, KEY_TILE)
            phase = 0
            while phase + 1 < phase_start.shape[1] and phase_start[slot, phase + 1] <= q:
                phase += 1
            fields = lines[line[slot, phase]]
            for g in range(group_heads):
                i = r * group_heads + g
                at = logits_at + i * KEY_TILE
                if edited:
                    trailing_from = max(
                        np.int64(trailing[slot, 0]), q - np.int64(trailing[slot, 1])
                    )
                    edit_row(work, at, q, first_key, keys, kv_head * group_heads + g, fields,
                             vectors, range_start[slot], range_group[slot], range_count[slot],
                             cursor, trailing_from)  # fmt: skip
                for t in range(max(q + 1 - first_key, 0), KEY_TILE):
                    work[at + t] = -INFINITY
                for t in range(hide_from, hide_to):
                    work[at + t] = -INFINITY
                before = work[state_at + 2 * i]
                largest = max(before, tile_maximum(work, at))
                if largest == -INFINITY:
                    for t in range(KEY_TILE):
                        work[at + t] = 0
                    continue
                total = tile_exponential(work, at, largest)
                if before != largest:
                    decay = np.float32(math.exp(before - largest))
                    total += work[state_at + 2 * i + 1] * decay
                    for d in range(sums_at + i * head_dim, sums_at + (i + 1) * head_dim):
                        work[d] *= decay
                else:
                    total += work[state_at + 2 * i + 1]
                work[state_at + 2 * i] = largest
                work[state_at + 2 * i + 1] = total

        done = 0
        while done < keys:
            block = np.int64(block_table[block_row, (first_key + done) // block_size])
            token = (first_key + done) % block_size
            count = min(block_size - token, keys - done)
            page = page_at + block * block_step
            if value_row:
                start = page + block_size * head_dim + token * value_row
                multiply_add(work, logits_at + done, KEY_TILE, cache, start, value_row,
                             work, sums_at, head_dim, vectors_in, head_dim, count)  # fmt: skip
            else:
                for t in range(count):
                    for d in range(head_dim):
                        at = page + value_offset[token + t, d]
                        work[scratch_at + t * head_dim + d] = widened(cache, at)
                multiply_add(work, logits_at + done, KEY_TILE, work, scratch_at, head_dim,
                             work, sums_at, head_dim, vectors_in, head_dim, count)  # fmt: skip
            done += count

    for r in range(rows):
        phase = 0
        while phase + 1 < phase_start.shape[1] and phase_start[slot, phase + 1] <= first_row + r:
            phase += 1
        gain_at = lines[line[slot, phase], GAIN]
        for g in range(group_heads):
            i = r * group_heads + g
            head = kv_head * group_heads + g
            factor = vectors[gain_at, head] * (ONE / work[state_at + 2 * i + 1])
            target = (first_token + r) * output_step + head * head_dim
            for d in range(0, head_dim, STRIP):
                store_strip(work, sums_at + i * head_dim + d, factor, output, target + d)


@compiled(parallel=True)
def attend_units(
    query: Any, output: Any, query_step: Any, output_step: Any, cache: Any, block_step: Any,
    head_step: Any, block_table: Any, block_size: Any, units: Any, kv_heads: Any, group_heads: Any,
    head_dim: Any, scale: Any, key_row: Any, value_row: Any, key_offset: Any, value_offset: Any,
    phase_start: Any, range_count: Any, range_start: Any, range_group: Any, visible: Any,
    trailing: Any, line: Any, lines: Any, vectors: Any, inv_freq: Any, interleaved: Any,
    work: Any, counter: Any, threads: Any,
) -> None:  # fmt: skip
    """Threads take units from a shared counter until none is left.

    query, output: flat; *_step: elements from a token to the next (heads are contiguous);
    block_step, head_step: elements between pages and between the KV heads of a page; units: see
    `Pattern.units`; line: [slots, PHASES] of this layer; work: float32 [threads, size]; counter:
    int64 [1], 0. The rest is the edit table's and the layout's.
    """
    for thread in numba.prange(threads):
        while True:
            index = fetch_add(counter)
            if index >= len(units) * kv_heads:
                break
            attend_unit(
                query, output, query_step, output_step, cache, block_step, head_step, block_table,
                block_size, units[index // kv_heads], index % kv_heads, group_heads, head_dim,
                scale, key_row, value_row, key_offset, value_offset, phase_start, range_count,
                range_start, range_group, visible, trailing, line, lines, vectors, inv_freq,
                interleaved, work[thread],
            )  # fmt: skip
