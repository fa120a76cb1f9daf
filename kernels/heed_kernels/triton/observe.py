# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False
# ruff: noqa: E741, RUF059 (l is what papers call it; Triton needs whole tuples, and constexpr ifs alone)
"""Observations: log-sum-exp and masses of observed rows, and column sums over them. They change nothing."""

import triton
import triton.language as tl

from heed_kernels.triton import layout as at
from heed_kernels.triton.layout import PROBE, UNIT_WORDS
from heed_kernels.triton.primitives import LN_2, LOG2_E, UNSPECIALIZED
from heed_kernels.triton.unit import cache_of, gap_of, line_of, tile_rows
from heed_kernels.triton.walk import COLUMNS, MEASURE, walk

PROBES = tl.constexpr(4)


@triton.jit(do_not_specialize=UNSPECIALIZED, do_not_specialize_on_alignment=["block_table"])
def measure_tiles(
    query, key_cache, value_cache, block_table,
    work, records, lines, vectors, found, rotation, scratch, log_sum_exp, masses, places,
    query_token, query_head, key_block, key_token, key_head,
    table_row, record_words, layers, layer, blocks, scale,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_PADDED: tl.constexpr,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    TILE_ROWS: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, ROTARY: tl.constexpr,
    MASSES: tl.constexpr,
):  # fmt: skip
    """log_sum_exp: float32 [tokens, HEADS]; masses: float32 [tokens, HEADS, PROBES]; places: as in
    `sum_columns`. Without MASSES neither masses nor KV heads without columns are computed."""
    HEADS: tl.constexpr = KV_HEADS * GROUP
    d = tl.arange(0, DIMS)
    units = tl.load(work + at.TILE_COUNT) * KV_HEADS
    units_at = tl.load(work + at.TILE_AT)
    for item in range(tl.program_id(0), units, tl.num_programs(0)):
        unit = work + units_at + item // KV_HEADS * UNIT_WORDS
        kv_head = item % KV_HEADS
        slot, phase, record, active, line = line_of(unit, records, lines, record_words, layer)
        head = kv_head * GROUP
        row, valid, heads, token, query_rows, tile_first, high = tile_rows(
            unit, head, query_token, query_head, GROUP, HEADS, TILE_ROWS, ROWS
        )
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
            0, high, gap_start, gap_end, tile_first, tile_first + TILE_ROWS - 1,
            tl.zeros([ROWS], tl.int32),
            PROBE, MEASURE, MASSES, False,
            GROUP, GROUP_PADDED, HEADS, HEAD_DIM, BLOCK_SIZE, TILE, ROTARY,
        )  # fmt: skip
        to = token * HEADS + heads
        tl.store(log_sum_exp + to, m * LN_2 + tl.log(l), mask=valid)
        if MASSES:
            total = tl.where(l > 0, l, 1.0)
            tl.store(masses + to * PROBES, sum_0 / total, mask=valid)
            tl.store(masses + to * PROBES + 1, sum_1 / total, mask=valid)
            tl.store(masses + to * PROBES + 2, sum_2 / total, mask=valid)
            tl.store(masses + to * PROBES + 3, sum_3 / total, mask=valid)


@triton.jit(do_not_specialize=UNSPECIALIZED, do_not_specialize_on_alignment=["block_table"])
def sum_columns(
    query, key_cache, value_cache, block_table,
    work, records, lines, vectors, found, rotation, scratch, log_sum_exp, places,
    query_token, query_head, key_block, key_token, key_head,
    table_row, record_words, layers, layer, blocks, scale,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_PADDED: tl.constexpr,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    TILE_ROWS: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr, ROTARY: tl.constexpr,
):  # fmt: skip
    """places: int64 [slots, HEADS], the address of the columns int64 [keys] of each head, 0 where they are
    not wanted."""
    HEADS: tl.constexpr = KV_HEADS * GROUP
    d = tl.arange(0, DIMS)
    units = tl.load(work + at.TILE_COUNT) * KV_HEADS
    units_at = tl.load(work + at.TILE_AT)
    for item in range(tl.program_id(0), units, tl.num_programs(0)):
        unit = work + units_at + item // KV_HEADS * UNIT_WORDS
        kv_head = item % KV_HEADS
        slot, phase, record, active, line = line_of(unit, records, lines, record_words, layer)
        head = kv_head * GROUP
        row, valid, heads, token, query_rows, tile_first, high = tile_rows(
            unit, head, query_token, query_head, GROUP, HEADS, TILE_ROWS, ROWS
        )
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
            total = tl.load(log_sum_exp + token * HEADS + heads, mask=valid, other=0.0) * LOG2_E
            walk(
                own + head, total, zero, zero, zero, zero, zero, wanted,
                record, found, line, vectors, cache, rotation, phase, scale,
                query, query_rows, valid, turned, row, heads, head, d,
                0, high, gap_start, gap_end, tile_first, tile_first + TILE_ROWS - 1,
                tl.zeros([ROWS], tl.int32),
                PROBE, COLUMNS, False, False,
                GROUP, GROUP_PADDED, HEADS, HEAD_DIM, BLOCK_SIZE, TILE, ROTARY,
            )  # fmt: skip
