"""Mass transfer in the CPU kernel.

A row's source keys are left out of the online softmax and kept by their logits, so that what remains
has no cancellation in it; keys of the destination are summed beside the others. At the end the gate
is known, and the parts are put together:

    o = [(1 + f l_S / l_D) acc_D + acc_T + (1 - f) acc_S] / (l_D + l_T + l_S)

with f = 0 where the gate is shut.
"""

import math
from typing import Any

import numpy as np

from heed_kernels.compiled import FOUND, FRACTION, LEAST, RATIO
from heed_kernels.cpu.memory import (
    blend,
    call_product,
    fill,
    float_at,
    int32_at,
    int64_at,
    set_float,
    set_int64,
    uint8_at,
)
from heed_kernels.cpu.parameters import (
    CURSOR,
    FIRST_HEAD,
    FIRST_ROW,
    FOUND_COUNT,
    FOUND_KEYS,
    FOUND_RANGE,
    HEAD_DIM,
    HEADS,
    LARGEST,
    LAYER,
    LAYERS,
    LEFT_OUT,
    LOCAL_HEADS,
    LOGITS,
    MASSES,
    MOVED,
    PRODUCT,
    RANGE_CLASS,
    RANGE_COUNT,
    RANGE_START,
    ROWS,
    RUN_END,
    RUN_START,
    SLOT,
    SOURCE_COUNT,
    SOURCE_KEYS,
    SOURCE_RANGE,
    SPLIT,
    STATE,
    STATE_FIELDS,
    SUMS,
    SUMS_BESIDE,
    TOTAL,
    VECTORS,
)
from heed_kernels.cpu.runtime import compiled
from heed_kernels.cpu.unit import line_of, phase_of
from heed_kernels.cpu.vector import KEY_TILE, summed
from heed_kernels.edits import SOURCES
from heed_kernels.ranges import DENOMINATOR, RANGES

INFINITY = np.float32(np.inf)
ZERO, ONE = np.float32(0), np.float32(1)


@compiled()
def sources_of(p: Any, slot: Any, head: Any) -> Any:
    """Number of a head's source keys, and the addresses of the keys and of their ranges."""
    count = int32_at(int64_at(p, SOURCE_COUNT), slot)
    if count != FOUND:
        at = slot * SOURCES * 4
        return count, int64_at(p, SOURCE_KEYS) + at, int64_at(p, SOURCE_RANGE) + at
    index = (slot * int64_at(p, LAYERS) + int64_at(p, LAYER)) * int64_at(p, LOCAL_HEADS) + head
    at = index * SOURCES * 4
    count = int32_at(int64_at(p, FOUND_COUNT), index)
    return count, int64_at(p, FOUND_KEYS) + at, int64_at(p, FOUND_RANGE) + at


@compiled()
def prepare_transfer(p: Any, u: Any) -> None:
    """Set SPLIT, and for each vector MOVED: the fraction to be moved, 0 where nothing is."""
    slot, rows, first_row = int64_at(u, SLOT), int64_at(u, ROWS), int64_at(u, FIRST_ROW)
    heads, first_head = int64_at(p, LOCAL_HEADS), int64_at(u, FIRST_HEAD)
    state, split = int64_at(u, STATE), 0
    for r in range(rows):
        fraction_at = int32_at(line_of(p, slot, phase_of(p, slot, first_row + r)), FRACTION)
        for g in range(int64_at(u, HEADS)):
            i, head = g * rows + r, first_head + g
            fraction = ZERO
            if fraction_at:
                fraction = float_at(int64_at(p, VECTORS), fraction_at * heads + head)
                if sources_of(p, slot, head)[0] == 0:
                    fraction = ZERO
            set_float(state, i * STATE_FIELDS + MOVED, fraction)
            if fraction > 0:
                split = 1
                fill(int64_at(u, LEFT_OUT) + i * SOURCES * 4, SOURCES, -INFINITY)
                fill(state + 4 * (i * STATE_FIELDS + MASSES), 3, ZERO)
    if split:
        set_int64(u, SPLIT, 1)
        fill(int64_at(u, SUMS_BESIDE), rows * int64_at(u, HEADS) * int64_at(p, HEAD_DIM), ZERO)


@compiled()
def leave_out_sources(p: Any, u: Any, i: Any, head: Any, first_key: Any, used: Any) -> None:
    """Keep the logits of a vector's source keys in this tile, and hide the keys."""
    count, keys, _ = sources_of(p, int64_at(u, SLOT), head)
    logits = int64_at(u, LOGITS) + i * 4 * KEY_TILE
    left_out = int64_at(u, LEFT_OUT) + i * SOURCES * 4
    for s in range(count):
        t = int32_at(keys, s) - first_key
        if t >= used:
            break
        if t >= 0:
            set_float(left_out, s, float_at(logits, t))
            set_float(logits, t, -INFINITY)


@compiled()
def add_classes(
    p: Any, u: Any, weights: Any, first_key: Any, used: Any, masses: Any, shift: Any, classes: Any
) -> None:
    """Add a vector's weights in this tile to the masses of `classes` key classes.

    masses: address of the first; bit `shift` of a range's class is that of the first.
    """
    slot = int64_at(u, SLOT)
    starts = int64_at(p, RANGE_START) + slot * 4 * RANGES
    kinds = int64_at(p, RANGE_CLASS) + slot * RANGES
    ranges = int32_at(int64_at(p, RANGE_COUNT), slot)
    for j in range(int64_at(u, CURSOR), ranges):
        start = max(int32_at(starts, j) - first_key, 0)
        if start >= used:
            break
        end = used
        if j + 1 < ranges:
            end = min(int32_at(starts, j + 1) - first_key, used)
        kind = uint8_at(kinds, j) >> shift & ((1 << classes) - 1)
        if kind:
            part = summed(weights + 4 * start, end - start)
            for c in range(classes):
                if kind >> c & 1:
                    set_float(masses, c, float_at(masses, c) + part)


@compiled()
def add_values_split(p: Any, u: Any, first_key: Any, run: Any) -> None:
    """A run of the destination: vectors with a transfer sum it beside, the others with the rest.

    The sums of a vector without one are the same as if nobody had one.
    """
    vectors, state = int64_at(u, ROWS) * int64_at(u, HEADS), int64_at(u, STATE)
    head_bytes, tile_bytes = 4 * int64_at(p, HEAD_DIM), 4 * KEY_TILE
    start, end = int64_at(run, RUN_START), int64_at(run, RUN_END)
    i = 0
    while i < vectors:
        beside = float_at(state, i * STATE_FIELDS + MOVED) > 0
        j = i + 1
        while j < vectors and (float_at(state, j * STATE_FIELDS + MOVED) > 0) == beside:
            j += 1
        sums = int64_at(u, SUMS_BESIDE) if beside else int64_at(u, SUMS)
        call_product(int64_at(p, PRODUCT), p, u,
                     int64_at(u, LOGITS) + i * tile_bytes + 4 * start, tile_bytes,
                     sums + i * head_bytes, head_bytes, j - i, first_key + start, end - start,
                     1)  # fmt: skip
        i = j


@compiled()
def settle(p: Any, u: Any, i: Any, line: Any, head: Any) -> None:
    """Put a vector's parts together in SUMS, divided by its total weight."""
    slot, head_dim = int64_at(u, SLOT), int64_at(p, HEAD_DIM)
    heads, vectors = int64_at(p, LOCAL_HEADS), int64_at(p, VECTORS)
    state = int64_at(u, STATE) + i * STATE_FIELDS * 4
    sums, beside = int64_at(u, SUMS) + i * 4 * head_dim, int64_at(u, SUMS_BESIDE) + i * 4 * head_dim
    left_out = int64_at(u, LEFT_OUT) + i * SOURCES * 4
    count, keys, ranges = sources_of(p, slot, head)
    largest = float_at(state, LARGEST)
    for s in range(count):
        largest = max(largest, float_at(left_out, s))
    if largest == -INFINITY:
        return
    decay = np.float32(math.exp(float_at(state, LARGEST) - largest))
    destination = float_at(state, MASSES) * decay
    numerator = float_at(state, MASSES + 1) * decay
    denominator = float_at(state, MASSES + 2) * decay
    sources = ZERO
    for s in range(count):
        weight = np.float32(math.exp(float_at(left_out, s) - largest))
        set_float(left_out, s, weight)
        sources += weight
        if uint8_at(int64_at(p, RANGE_CLASS), slot * RANGES + int32_at(ranges, s)) & DENOMINATOR:
            denominator += weight
    inverse = ONE / (float_at(state, TOTAL) * decay + sources)
    fraction = float_at(state, MOVED)
    ratio = float_at(vectors, int32_at(line, RATIO) * heads + head)
    least = float_at(vectors, int32_at(line, LEAST) * heads + head)
    if numerator < ratio * denominator or denominator * inverse < least or destination <= 0:
        fraction = ZERO
    gain = ONE
    if fraction > 0:
        gain += fraction * sources / destination
    blend(sums, head_dim, beside, gain, decay * inverse)
    for s in range(count):
        # A source that the row does not see may lie in a block that is not the request's.
        weight = float_at(left_out, s) * (ONE - fraction) * inverse
        if weight > 0:
            set_float(left_out, s, weight)
            call_product(int64_at(p, PRODUCT), p, u, left_out + 4 * s, 4, sums, 4 * head_dim, 1,
                         int32_at(keys, s), 1, 1)  # fmt: skip
