# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False
"""What a program reads before it walks over the keys: a unit's line of the edit table, its rows, its cache."""

import triton
import triton.language as tl

from heed_kernels.triton import layout as at
from heed_kernels.triton.layout import (
    ACTIVE,
    FIELDS,
    FOUND_WORDS,
    PHASES,
    SPLITS,
    UNIT_WORDS,
    WAVE_WORDS,
    WAVES,
)


@triton.jit
def line_of(unit, records, lines, record_words, layer):
    """Slot, phase and record of a unit, whether its rows are active in the layer, and their line, which is
    the identity where nothing is edited."""
    slot = tl.load(unit + at.SLOT).to(tl.int64)
    phase = tl.load(unit + at.PHASE)
    record = records + slot * record_words
    word = tl.load(record + at.LINE + layer * PHASES + phase)
    return slot, phase, record, word >= ACTIVE, lines + (word % ACTIVE).to(tl.int64) * FIELDS


@triton.jit
def found_of(found, slot, layer, HEADS: tl.constexpr):
    """The lines of a slot's found keys in a layer, which are not to be read where it has none.

    found: `DeviceTable.found_at`."""
    lines = tl.load(found + slot).to(tl.pointer_type(tl.int32))
    return lines + layer * HEADS * FOUND_WORDS


@triton.jit
def gap_of(record, layers, layer, kv_head, KV_HEADS: tl.constexpr):
    """The keys [start, end) that an eviction took from a KV head; where there was none, no keys between the
    sinks and the others."""
    sinks = tl.load(record + at.SINKS)
    end = tl.load(record + at.EVICTED_END)
    kept = tl.load(record + at.LINE + layers * PHASES + layer * KV_HEADS + kv_head)
    return tl.where(end > 0, kept, sinks), tl.where(end > 0, end, sinks)


@triton.jit
def tile_rows(
    unit, head, query_token, query_head,
    GROUP: tl.constexpr, HEADS: tl.constexpr, TILE_ROWS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Of a tile's matrix rows [ROWS], position by position with the heads of the group inside: positions,
    which are valid, heads, tokens, and offsets of the queries; and the tile's first position and the
    first position after its rows. head: first query head of the group."""
    place = tl.arange(0, ROWS)
    first = tl.load(unit + at.POSITION)
    high = first + tl.load(unit + at.ROWS)
    tile_first = first // TILE_ROWS * TILE_ROWS
    row = tile_first + place // GROUP
    valid = (row >= first) & (row < high) & (place < TILE_ROWS * GROUP)
    # Rows that pad the product look at no head's vectors.
    heads = tl.where(place < TILE_ROWS * GROUP, head + place % GROUP, HEADS)
    token = (tl.load(unit + at.TOKEN) + row - first).to(tl.int64)
    queries = (token * query_token + heads * query_head)[:, None]
    return row, valid, heads, token, queries, tile_first, high


@triton.jit
def splits_of(work, wave):
    """Of a wave of generated rows: its first split, and how many it has."""
    entry = work + WAVES + wave * WAVE_WORDS
    return tl.load(entry), tl.load(entry + 1)


@triton.jit
def split_unit(work, index):
    """The unit that has a split, and which of the unit's splits that is. index: of the split in the step."""
    packed = tl.load(work + tl.load(work + at.SPLIT_AT) + index)
    return work + tl.load(work + at.ROW_AT) + packed // SPLITS * UNIT_WORDS, packed % SPLITS


@triton.jit
def split_rows(
    unit, split, head, query_token, query_head,
    GROUP: tl.constexpr, HEADS: tl.constexpr, ROWS: tl.constexpr,
):  # fmt: skip
    """Of a split of a generated row, whose matrix rows [ROWS] are the heads of the group: positions, which
    are valid, heads, tokens, and offsets of the queries; the row's position; and the split's keys
    [low, high). head: first query head of the group."""
    place = tl.arange(0, ROWS)
    position = tl.load(unit + at.POSITION)
    length = tl.load(unit + at.SPLIT_KEYS)
    low = split * length
    valid = place < GROUP
    heads = tl.where(valid, head + place, HEADS)
    token = tl.load(unit + at.TOKEN).to(tl.int64) + place * 0
    queries = (token * query_token + heads * query_head)[:, None]
    row = position + place * 0
    return row, valid, heads, token, queries, position, low, tl.minimum(low + length, position + 1)


@triton.jit
def cache_of(
    unit, kv_head, key_cache, value_cache, block_table,
    key_block, key_token, key_head, value_block, value_token, value_head, table_row, blocks,
):  # fmt: skip
    """The cache of a unit's request at a KV head, as `primitives` describes it."""
    return (
        key_cache + kv_head.to(tl.int64) * key_head,
        value_cache + kv_head.to(tl.int64) * value_head,
        block_table + tl.load(unit + at.TABLE_ROW).to(tl.int64) * table_row,
        key_block.to(tl.int64), key_token, value_block.to(tl.int64), value_token, blocks - 1,
    )  # fmt: skip
