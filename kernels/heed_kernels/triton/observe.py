# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False
# ruff: noqa: E741, RUF059 (l is what papers call it; Triton needs whole tuples, and constexpr ifs alone)
"""Observations: log-sum-exp and masses of observed rows, and column sums over them. They change nothing.

Rows are cut as for attention: prompt rows into tiles, the keys of a generated row into splits. A split leaves
its part of a row's sums, and `merge_measures` puts the parts together in ascending order; columns need no
merge, because a key lies in one split and integers are added.
"""

import triton
import triton.language as tl

from heed_kernels.triton import layout as at
from heed_kernels.triton.layout import (
    MEASURES,
    PROBE,
    PROBES,
    SPLITS,
    UNIT_WORDS,
    WAVE_WORDS,
    WAVES,
)
from heed_kernels.triton.primitives import LN_2, LOG2_E, UNSPECIALIZED, exponent
from heed_kernels.triton.unit import (
    cache_of,
    gap_of,
    line_of,
    split_rows,
    split_unit,
    splits_of,
    tile_rows,
)
from heed_kernels.triton.walk import COLUMNS, MEASURE, walk


@triton.jit
def observed_rows(
    work, wave, index, kv_head, query_token, query_head,
    GROUP: tl.constexpr, HEADS: tl.constexpr, TILE_ROWS: tl.constexpr, ROWS: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """A tile of prompt rows, or with SPLIT a split of a generated row, by its number in the step or in the
    wave: its unit, what `tile_rows` says of it, the keys [low, high), and the last row of the whole tile."""
    head = kv_head * GROUP
    if SPLIT:
        first_split, splits = splits_of(work, wave)
        unit, split = split_unit(work, first_split + index)
        row, valid, heads, token, queries, first, low, high = split_rows(
            unit, split, head, query_token, query_head, GROUP, HEADS, ROWS
        )
        last = first
    else:
        unit = work + tl.load(work + at.TILE_AT) + index * UNIT_WORDS
        row, valid, heads, token, queries, first, high = tile_rows(
            unit, head, query_token, query_head, GROUP, HEADS, TILE_ROWS, ROWS
        )
        low = first * 0
        last = first + TILE_ROWS - 1
    return unit, row, valid, heads, token, queries, low, high, first, last


@triton.jit
def observed_units(work, wave, SPLIT: tl.constexpr):
    """How many there are for `observed_rows`."""
    if SPLIT:
        first_split, units = splits_of(work, wave)
    else:
        units = tl.load(work + at.TILE_COUNT)
    return units


@triton.jit(do_not_specialize=UNSPECIALIZED, do_not_specialize_on_alignment=["block_table"])
def measure_rows(
    query, key_cache, value_cache, block_table,
    work, records, lines, vectors, found, rotation, scratch, log_sum_exp, masses, places, measures,
    query_token, query_head, key_block, key_token, key_head,
    table_row, record_words, layers, layer, wave, blocks, scale,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_PADDED: tl.constexpr,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    TILE_ROWS: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, ROTARY: tl.constexpr,
    SPLIT: tl.constexpr, MASSES: tl.constexpr,
):  # fmt: skip
    """log_sum_exp: float32 [tokens, HEADS]; masses: float32 [tokens, HEADS, PROBES]; places: as in
    `sum_columns`; measures: float32 [splits of a wave, HEADS, MEASURES]. Tiles of prompt rows leave
    the first two; with SPLIT, splits of generated rows leave measures. Without MASSES neither masses nor KV
    heads without columns are computed."""
    HEADS: tl.constexpr = KV_HEADS * GROUP
    d = tl.arange(0, DIMS)
    units = observed_units(work, wave, SPLIT) * KV_HEADS
    for item in range(tl.program_id(0), units, tl.num_programs(0)):
        index = item // KV_HEADS
        kv_head = item % KV_HEADS
        head = kv_head * GROUP
        unit, row, valid, heads, token, query_rows, low, high, tile_first, tile_last = observed_rows(
            work, wave, index, kv_head, query_token, query_head,
            GROUP, HEADS, TILE_ROWS, ROWS, SPLIT,
        )  # fmt: skip
        slot, phase, record, active, line = line_of(unit, records, lines, record_words, layer)
        if not MASSES:
            wanted = tl.load(places + slot * HEADS + heads, mask=valid, other=0) != 0
            high = tl.where(tl.max(wanted.to(tl.int32), 0) > 0, high, 0)
        gap_start, gap_end = gap_of(record, layers, layer, kv_head, KV_HEADS)
        # No values are read.
        cache = cache_of(
            unit, kv_head, key_cache, value_cache, block_table,
            key_block, key_token, key_head, key_block, key_token, key_head, table_row, blocks,
        )  # fmt: skip
        turned = scratch + tl.program_id(0).to(tl.int64) * ROWS * DIMS
        zero = tl.zeros([ROWS], tl.float32)
        acc, m, l, sum_0, sum_1, sum_2, sum_3 = walk(
            zero, zero - float("inf"), zero, zero, zero, zero, zero, zero,
            record, found, line, vectors, cache, rotation, phase, scale,
            query, query_rows, valid, turned, row, heads, head, d,
            low, high, gap_start, gap_end, tile_first, tile_last, tl.zeros([ROWS], tl.int32),
            PROBE, MEASURE, MASSES, False,
            GROUP, GROUP_PADDED, HEADS, HEAD_DIM, BLOCK_SIZE, TILE, ROTARY,
        )  # fmt: skip
        if SPLIT:
            part = measures + (index.to(tl.int64) * HEADS + heads) * MEASURES
            tl.store(part, m, mask=valid)
            tl.store(part + 1, l, mask=valid)
            if MASSES:
                tl.store(part + 2, sum_0, mask=valid)
                tl.store(part + 3, sum_1, mask=valid)
                tl.store(part + 4, sum_2, mask=valid)
                tl.store(part + 5, sum_3, mask=valid)
        else:
            to = token * HEADS + heads
            tl.store(log_sum_exp + to, m * LN_2 + tl.log(l), mask=valid)
            if MASSES:
                total = tl.where(l > 0, l, 1.0)
                tl.store(masses + to * PROBES, sum_0 / total, mask=valid)
                tl.store(masses + to * PROBES + 1, sum_1 / total, mask=valid)
                tl.store(masses + to * PROBES + 2, sum_2 / total, mask=valid)
                tl.store(masses + to * PROBES + 3, sum_3 / total, mask=valid)


@triton.jit(do_not_specialize=["wave"])
def merge_measures(
    work, measures, log_sum_exp, masses, wave, HEADS: tl.constexpr, MASSES: tl.constexpr
):
    """What the splits of generated rows have left, put together: one program per row and query head.
    Arguments as in `measure_rows`; vectors over splits, [SPLITS], keep their order in every sum."""
    split = tl.arange(0, SPLITS)
    entry = work + WAVES + wave * WAVE_WORDS
    first_row = tl.load(entry + 2)
    items = tl.load(entry + 3) * HEADS
    rows_at = tl.load(work + at.ROW_AT)
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        unit = work + rows_at + (first_row + item // HEADS) * UNIT_WORDS
        head = item % HEADS
        there = split * tl.load(unit + at.SPLIT_KEYS) <= tl.load(unit + at.POSITION)
        of_split = (tl.load(unit + at.FIRST_SPLIT) + split).to(tl.int64)
        part = measures + (of_split * HEADS + head) * MEASURES
        m_split = tl.load(part, mask=there, other=-float("inf"))
        m = tl.max(m_split, 0)
        share = exponent(m_split, m)
        l = tl.sum(tl.load(part + 1, mask=there, other=0.0) * share, 0)
        to = tl.load(unit + at.TOKEN).to(tl.int64) * HEADS + head
        tl.store(log_sum_exp + to, m * LN_2 + tl.log(l))
        if MASSES:
            total = tl.where(l > 0, l, 1.0)
            for probe in tl.static_range(PROBES):
                mass = tl.sum(tl.load(part + 2 + probe, mask=there, other=0.0) * share, 0)
                tl.store(masses + to * PROBES + probe, mass / total)


@triton.jit(do_not_specialize=UNSPECIALIZED, do_not_specialize_on_alignment=["block_table"])
def sum_columns(
    query, key_cache, value_cache, block_table,
    work, records, lines, vectors, found, rotation, scratch, log_sum_exp, places,
    query_token, query_head, key_block, key_token, key_head,
    table_row, record_words, layers, layer, wave, blocks, scale,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_PADDED: tl.constexpr,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    TILE_ROWS: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, ROTARY: tl.constexpr,
    SPLIT: tl.constexpr,
):  # fmt: skip
    """places: int64 [slots, HEADS], the address of the columns int64 [keys] of each head, 0 where they are
    not wanted. SPLIT: as in `measure_rows`."""
    HEADS: tl.constexpr = KV_HEADS * GROUP
    d = tl.arange(0, DIMS)
    units = observed_units(work, wave, SPLIT) * KV_HEADS
    for item in range(tl.program_id(0), units, tl.num_programs(0)):
        index = item // KV_HEADS
        kv_head = item % KV_HEADS
        head = kv_head * GROUP
        unit, row, valid, heads, token, query_rows, low, high, tile_first, tile_last = observed_rows(
            work, wave, index, kv_head, query_token, query_head,
            GROUP, HEADS, TILE_ROWS, ROWS, SPLIT,
        )  # fmt: skip
        slot, phase, record, active, line = line_of(unit, records, lines, record_words, layer)
        gap_start, gap_end = gap_of(record, layers, layer, kv_head, KV_HEADS)
        # No values are read.
        cache = cache_of(
            unit, kv_head, key_cache, value_cache, block_table,
            key_block, key_token, key_head, key_block, key_token, key_head, table_row, blocks,
        )  # fmt: skip
        turned = scratch + tl.program_id(0).to(tl.int64) * ROWS * DIMS
        zero = tl.zeros([ROWS], tl.float32)
        own = places + slot * HEADS
        wanted = (tl.load(own + heads, mask=valid, other=0) != 0).to(tl.float32)
        if tl.max(wanted, 0) > 0:
            # Beside an infinite sum, rows that pad the product have no weights, whatever their biases.
            total = tl.load(log_sum_exp + token * HEADS + heads, mask=valid, other=float("inf"))
            total = total * LOG2_E
            walk(
                own + head, total, zero, zero, zero, zero, zero, wanted,
                record, found, line, vectors, cache, rotation, phase, scale,
                query, query_rows, valid, turned, row, heads, head, d,
                low, high, gap_start, gap_end, tile_first, tile_last, tl.zeros([ROWS], tl.int32),
                PROBE, COLUMNS, False, False,
                GROUP, GROUP_PADDED, HEADS, HEAD_DIM, BLOCK_SIZE, TILE, ROTARY,
            )  # fmt: skip
