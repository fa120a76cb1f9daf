# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False
# ruff: noqa: E741, SIM109 (l is what papers call it; Triton needs whole tuples, and constexpr ifs alone)
"""The walk over a request's key ranges that attention, its corrections and the observations share.

Inside of a range all keys are treated alike, so everything that an edit needs is loaded once per
range. A range is read in key tiles that start at multiples of TILE. Most are *clean*: all of their keys
are in the range, seen by all rows, neither trailing nor sources. The others are masked per row. Which
tiles are clean follows from the whole query tile at its absolute place, so that each row goes through
the same arithmetic however the scheduler cuts the request; tiles in which a row sees nothing change
no bit of it.
"""

import triton
import triton.language as tl

from heed_kernels.triton import layout as at
from heed_kernels.triton.layout import CLASS_AT, COLUMN_UNIT, DESTINATION, OPEN, VISIBLE_AT
from heed_kernels.triton.primitives import (
    LOG2_E,
    edited,
    exponent,
    field_vector,
    group_vectors,
    hidden_before,
    load_keys,
    load_query,
    load_values,
    product,
)
from heed_kernels.triton.sources import next_source_tile, without_sources

ATTEND, REWEIGH = tl.constexpr(0), tl.constexpr(1)
MEASURE, COLUMNS = tl.constexpr(2), tl.constexpr(3)
"""ATTEND: weighted values, maximum, sums. REWEIGH: add `weight` times the values of the destination's
keys, against a known maximum. MEASURE: maximum and sums alone. COLUMNS: add `weight` times the weights
of each key to its column, `acc` being a pointer to the addresses of the heads' columns; m is the row's
log-sum-exp."""


@triton.jit
def add_columns(places, w, heads, head, k, inside, GROUP: tl.constexpr):
    """places: pointer to [GROUP], the address of each head's columns int64 [keys], 0 for none; w: [rows, keys
    at k], 0 in the rows of heads without columns."""
    fixed = tl.floor(w * COLUMN_UNIT + 0.5).to(tl.int64)
    for g in range(GROUP):
        of_head = tl.sum(tl.where((heads == head + g)[:, None], fixed, 0), 0)
        columns = tl.load(places + g).to(tl.pointer_type(tl.int64))
        tl.atomic_add(columns + k, of_head, mask=inside & (of_head != 0), sem="relaxed")


@triton.jit
def first_range(record, low):
    """Index of the range that holds key `low`."""
    count = tl.load(record + at.RANGE_COUNT)
    before = 0
    for base in range(0, count, 64):
        index = base + tl.arange(0, 64)
        start = tl.load(record + at.RANGE_START + index, mask=index < count, other=OPEN)
        before += tl.sum((start <= low).to(tl.int32), 0)
    return before - 1


@triton.jit
def add_tile(
    acc, m, here, s, weight, cache, heads, head, k, within, d,
    MODE: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    MASKED: tl.constexpr,
):  # fmt: skip
    """acc, m and the range's sum of weights after a tile with the logits s [rows, keys at k]; values are
    read where `within` [keys], or with MASKED off everywhere."""
    if MODE == REWEIGH or MODE == COLUMNS:
        w = exponent(s, m[:, None]) * weight[:, None]
    else:
        highest = tl.maximum(m, tl.max(s, 1))
        shrink = exponent(m, highest)
        w = exponent(s, highest[:, None])
        here = tl.fma(here, shrink, tl.sum(w, 1))
        m = highest
    if MODE == ATTEND:
        acc = acc * shrink[:, None]
    if MODE == COLUMNS:
        add_columns(acc, w, heads, head, k, within, GROUP)
    elif MODE != MEASURE:
        values = load_values(cache, k, within, d, BLOCK_SIZE, HEAD_DIM, MASKED)
        acc = product(w.to(values.dtype), values, acc)
    return acc, m, here


@triton.jit
def walk(
    acc, m, l, sum_0, sum_1, sum_2, sum_3, weight,
    record, found, line, vectors, cache, rotation, phase, scale,
    query, query_rows, valid, scratch, row, heads, head, d, low, high, gap_start, gap_end,
    tile_first, tile_last, count,
    FIRST_BIT: tl.constexpr, MODE: tl.constexpr, SUMS: tl.constexpr, EXCLUDE: tl.constexpr,
    GROUP: tl.constexpr, GROUP_PADDED: tl.constexpr, HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, TILE: tl.constexpr, ROTARY: tl.constexpr,
):  # fmt: skip
    """acc [rows, dimensions], m, l and the sums of four classes [rows] after the keys [low, high) without
    [gap_start, gap_end), see `unit.gap_of`.

    m: the running maximum of the logits; l: the sum of 2^(s - m); sum_i: its part in keys of class
    FIRST_BIT << i; all float32. row: absolute rows, of which `valid` are in the unit; tile_first, tile_last:
    those of the whole query tile; count: each row's sources, left out where EXCLUDE.
    """
    window = tl.load(record + at.WINDOW)
    rolling = tl.load(record + at.ROLLING) != 0
    trailing_first = tl.load(record + at.TRAILING_FIRST)
    trailing_window = tl.load(record + at.TRAILING_WINDOW)
    trailing_bias = field_vector(line, vectors, at.TRAILING_BIAS, heads, HEADS) * LOG2_E
    trailing_from = tl.where(
        trailing_window > 0, tl.maximum(trailing_first, tile_first - trailing_window), OPEN
    )
    unit_first = tl.min(tl.where(valid, row, OPEN), 0)
    hidden = hidden_before(record, row)
    ranges = tl.load(record + at.RANGE_COUNT)
    if not ROTARY:
        q = load_query(
            query, query_rows, valid, d, scratch, rotation, hidden, False, HEAD_DIM, False
        )

    index = first_range(record, low)
    start = tl.load(record + at.RANGE_START + index)
    while start < high:
        bits = tl.load(record + at.RANGE_BITS + index)
        shift = tl.load(record + at.RANGE_SHIFT + index)
        inside = index + 1 < ranges
        end = tl.load(record + at.RANGE_START + index + 1, mask=inside, other=OPEN)
        wanted = ((bits >> (VISIBLE_AT + phase)) & 1) != 0
        if MODE == REWEIGH:
            wanted &= ((bits >> CLASS_AT) & DESTINATION) != 0
        range_end = tl.where(wanted, tl.minimum(end, high), start)
        factor, absolute, bias = group_vectors(line, vectors, bits & 255, heads, scale, HEADS)
        before = m
        here = tl.zeros_like(l)
        # Sinks first, then the window's keys: rolling positions turn the queries of the sinks alone. Or
        # first what an eviction kept, and then what came after it.
        for part in range(tl.where(start < gap_start, 0, 1), 2):
            lowest = tl.where(part == 0, start, tl.maximum(start, gap_end))
            behind = tl.where((window > 0) & (part == 1), window, OPEN)
            lo = tl.maximum(tl.maximum(lowest, low), unit_first - behind + 1)
            hi = tl.where(part == 0, tl.minimum(range_end, gap_start), range_end)
            hi = tl.where(lo < hi, hi, 0)
            clean_lo = tl.maximum(lowest, tile_last - behind + 1)
            clean_lo = (tl.maximum(clean_lo, 0) + TILE - 1) // TILE * TILE
            clean_hi = tl.minimum(tl.minimum(hi, tile_first + 1), trailing_from) // TILE * TILE
            if ROTARY:
                roll = rolling & (part == 0)
                back = tl.where(roll, hidden, shift)
                q = load_query(
                    query, query_rows, valid, d, scratch, rotation, back, roll | (shift != 0),
                    HEAD_DIM, True,
                )  # fmt: skip
            base = tl.maximum(lo, 0) // TILE * TILE
            while base < hi:
                stop = clean_hi
                if EXCLUDE:
                    source_tile = next_source_tile(
                        record, found, line, vectors, head, base, GROUP, GROUP_PADDED, HEADS, TILE
                    )
                    stop = tl.minimum(stop, source_tile)
                stop = tl.where(base < clean_lo, base, stop)
                for tile in range(base, stop, TILE):
                    k = tile + tl.arange(0, TILE)
                    keys = load_keys(cache, k, k >= 0, d, BLOCK_SIZE, HEAD_DIM, False)
                    p = product(q, keys, tl.zeros([q.shape[0], TILE], tl.float32))
                    s = edited(p, factor[:, None], absolute[:, None], bias[:, None])
                    acc, m, here = add_tile(
                        acc, m, here, s, weight, cache, heads, head, k, k >= 0, d,
                        MODE, GROUP, HEAD_DIM, BLOCK_SIZE, False,
                    )  # fmt: skip
                base = tl.maximum(base, stop)
                # From clean_hi on nothing is clean; before it, one tile is not.
                stop = tl.where(base >= clean_hi, hi, tl.minimum(base + TILE, hi))
                for tile in tl.range(base, stop, TILE, num_stages=1):
                    k = tile + tl.arange(0, TILE)
                    within = (k >= lo) & (k < hi)
                    keys = load_keys(cache, k, within, d, BLOCK_SIZE, HEAD_DIM, True)
                    p = product(q, keys, tl.zeros([q.shape[0], TILE], tl.float32))
                    s = edited(p, factor[:, None], absolute[:, None], bias[:, None])
                    trails = tl.maximum(row - trailing_window, trailing_first)
                    trails = (k[None, :] >= trails[:, None]) & (k[None, :] < row[:, None])
                    s = tl.where(trails, s + trailing_bias[:, None], s)
                    seen = within[None, :] & (k[None, :] <= row[:, None])
                    seen &= k[None, :] > (row - behind)[:, None]
                    if EXCLUDE:
                        some = next_source_tile(
                            record, found, line, vectors, head, tile, GROUP, GROUP_PADDED, HEADS, TILE
                        )  # fmt: skip
                        most = tl.where(some == tile, tl.max(count, 0), 0)
                        s = without_sources(s, record, found, heads, count, most, k)
                    s = tl.where(seen, s, -float("inf"))
                    acc, m, here = add_tile(
                        acc, m, here, s, weight, cache, heads, head, k, within, d,
                        MODE, GROUP, HEAD_DIM, BLOCK_SIZE, True,
                    )  # fmt: skip
                base = tl.where(base >= clean_hi, hi, base + TILE)
        if MODE == ATTEND or MODE == MEASURE:
            shrink = exponent(before, m)
            l = tl.fma(l, shrink, here)
            if SUMS:
                kind = bits >> CLASS_AT
                sum_0 = tl.fma(sum_0, shrink, tl.where((kind & FIRST_BIT) != 0, here, 0.0))
                sum_1 = tl.fma(sum_1, shrink, tl.where((kind & FIRST_BIT * 2) != 0, here, 0.0))
                sum_2 = tl.fma(sum_2, shrink, tl.where((kind & FIRST_BIT * 4) != 0, here, 0.0))
                sum_3 = tl.fma(sum_3, shrink, tl.where((kind & FIRST_BIT * 8) != 0, here, 0.0))
        index += 1
        start = end
    return acc, m, l, sum_0, sum_1, sum_2, sum_3
