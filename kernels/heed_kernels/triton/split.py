# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False
# ruff: noqa: E741, RUF059 (l is what papers call it; Triton needs whole tuples, and constexpr ifs alone)
"""Edited attention of generated rows: one program per row, KV head and split of the keys, then a merge.

How a row's keys are split follows from its absolute position alone, and splits are merged in ascending
order, so neither its neighbours nor a replay after preemption change a bit. The splits of a wave fit
into `partial`; a wave's kernels follow each other on the stream.
"""

import triton
import triton.language as tl

from heed_kernels.triton import layout as at
from heed_kernels.triton.layout import (
    CLASS_AT,
    DENOMINATOR,
    OPEN,
    PART,
    SPLITS,
    SUMS,
    UNIT_WORDS,
    VISIBLE_AT,
    WAVE_WORDS,
    WAVES,
)
from heed_kernels.triton.primitives import (
    LOG2_E,
    UNSPECIALIZED,
    edited,
    exponent,
    field_vector,
    group_vectors,
    hidden_before,
    load_rotation,
    load_values,
    turned,
)
from heed_kernels.triton.sources import CHUNK, source_count, source_list
from heed_kernels.triton.transfer import finished, references, transfer_weights
from heed_kernels.triton.unit import (
    cache_of,
    found_of,
    gap_of,
    line_of,
    split_rows,
    split_unit,
    splits_of,
)
from heed_kernels.triton.walk import ATTEND, REWEIGH, walk


@triton.jit(do_not_specialize=UNSPECIALIZED, do_not_specialize_on_alignment=["block_table"])
def attend_splits(
    query, key_cache, value_cache, block_table,
    work, records, lines, vectors, found, rotation, scratch, partial, sums,
    query_token, query_head, key_block, key_token, key_head,
    value_block, value_token, value_head, table_row, record_words, layers, layer, wave, blocks, scale,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_PADDED: tl.constexpr,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    ROWS: tl.constexpr, TILE: tl.constexpr, ROTARY: tl.constexpr, TRANSFERS: tl.constexpr,
):  # fmt: skip
    """partial: float32 [splits, 1 or 2 (all keys, the destination's), HEADS, HEAD_DIM], not normalised;
    sums: float32 [splits, HEADS, SUMS]. ROWS: GROUP rounded up to what a matrix product takes."""
    HEADS: tl.constexpr = KV_HEADS * GROUP
    PARTS: tl.constexpr = 2 if TRANSFERS else 1
    d = tl.arange(0, DIMS)
    first_split, splits = splits_of(work, wave)
    for item in range(tl.program_id(0), splits * KV_HEADS, tl.num_programs(0)):
        local = item // KV_HEADS
        kv_head = item % KV_HEADS
        unit, split = split_unit(work, first_split + local)
        slot, phase, record, active, line = line_of(unit, records, lines, record_words, layer)
        if active:
            layer_found = found_of(found, slot, layer, HEADS)
            head = kv_head * GROUP
            row, valid, heads, token, query_rows, position, low, high = split_rows(
                unit, split, head, query_token, query_head, GROUP, HEADS, ROWS
            )
            cache = cache_of(
                unit, kv_head, key_cache, value_cache, block_table,
                key_block, key_token, key_head, value_block, value_token, value_head, table_row, blocks,
            )  # fmt: skip
            turned_query = scratch + tl.program_id(0).to(tl.int64) * ROWS * DIMS
            zero = tl.zeros([ROWS], tl.float32)
            nothing = tl.zeros([ROWS, DIMS], tl.float32)
            count = tl.zeros([ROWS], tl.int32)
            gap_start, gap_end = gap_of(record, layers, layer, kv_head, KV_HEADS)
            if TRANSFERS:
                kind = tl.load(record + at.TRANSFER)
                fraction = field_vector(line, vectors, at.FRACTION, heads, HEADS)
                on = tl.where(kind != 0, fraction, 0.0) != 0
                count = source_count(record, layer_found, heads, on)
            acc, m, l, l_destination, l_numerator, l_denominator, unused = walk(
                nothing, zero - float("inf"), zero, zero, zero, zero, zero, zero,
                record, layer_found, line, vectors, cache, rotation, phase, scale,
                query, query_rows, valid, turned_query, row, heads, head, d, low, high,
                gap_start, gap_end, position, position, count,
                1, ATTEND, TRANSFERS, TRANSFERS,
                GROUP, GROUP_PADDED, HEADS, HEAD_DIM, BLOCK_SIZE, TILE, ROTARY,
            )  # fmt: skip
            of_head = local.to(tl.int64) * HEADS + heads
            tl.store(sums + of_head * SUMS, m, mask=valid)
            tl.store(sums + of_head * SUMS + 1, l, mask=valid)
            kept = valid[:, None] & (d < HEAD_DIM)[None, :]
            of_head = local.to(tl.int64) * PARTS * HEADS + heads
            tl.store(partial + of_head[:, None] * HEAD_DIM + d[None, :], acc, mask=kept)
            if TRANSFERS:
                masses = sums + (local.to(tl.int64) * HEADS + heads) * SUMS
                tl.store(masses + 2, l_destination, mask=valid)
                tl.store(masses + 3, l_numerator, mask=valid)
                tl.store(masses + 4, l_denominator, mask=valid)
                if (kind == PART) & (tl.max(on.to(tl.int32), 0) > 0):
                    acc, m, u1, u2, u3, u4, u5 = walk(
                        nothing, m, zero, zero, zero, zero, zero, zero + 1,
                        record, layer_found, line, vectors, cache, rotation, phase, scale,
                        query, query_rows, valid, turned_query, row, heads, head, d,
                        low, high, gap_start, gap_end, position, position, count,
                        1, REWEIGH, False, TRANSFERS,
                        GROUP, GROUP_PADDED, HEADS, HEAD_DIM, BLOCK_SIZE, TILE, ROTARY,
                    )  # fmt: skip
                    of_head += HEADS
                    tl.store(partial + of_head[:, None] * HEAD_DIM + d[None, :], acc, mask=kept)


@triton.jit(do_not_specialize=UNSPECIALIZED, do_not_specialize_on_alignment=["block_table"])
def merge_splits(
    query, output, key_cache, value_cache, block_table,
    work, records, lines, vectors, factors, mix_heads, mixes, found, rotation, partial, sums,
    query_token, query_head, output_token, output_head, key_block, key_token, key_head,
    value_block, value_token, value_head, table_row, record_words, layers, layer, wave, blocks, scale,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, DIMS: tl.constexpr,
    BLOCK_SIZE: tl.constexpr, ROTARY: tl.constexpr, TRANSFERS: tl.constexpr,
):  # fmt: skip
    """One program per row and query head. Vectors over splits, [SPLITS], keep their order in every sum.
    factors: `DeviceTable.factors`."""
    HEADS: tl.constexpr = KV_HEADS * GROUP
    PARTS: tl.constexpr = 2 if TRANSFERS else 1
    d = tl.arange(0, DIMS)
    split = tl.arange(0, SPLITS)
    entry = work + WAVES + wave * WAVE_WORDS
    first_row = tl.load(entry + 2)
    items = tl.load(entry + 3) * HEADS
    rows_at = tl.load(work + at.ROW_AT)
    for item in range(tl.program_id(0), items, tl.num_programs(0)):
        unit = work + rows_at + (first_row + item // HEADS) * UNIT_WORDS
        slot, phase, record, active, line = line_of(unit, records, lines, record_words, layer)
        if active:
            head = item % HEADS
            position = tl.load(unit + at.POSITION)
            length = tl.load(unit + at.SPLIT_KEYS)
            there = split * length <= position
            of_split = (tl.load(unit + at.FIRST_SPLIT) + split).to(tl.int64)
            m_split = tl.load(
                sums + (of_split * HEADS + head) * SUMS, mask=there, other=-float("inf")
            )
            l_split = tl.load(sums + (of_split * HEADS + head) * SUMS + 1, mask=there, other=0.0)
            m = tl.max(m_split, 0)
            share = exponent(m_split, m)
            l = tl.sum(l_split * share, 0)
            part = partial + ((of_split * PARTS * HEADS + head) * HEAD_DIM)[:, None] + d[None, :]
            kept = there[:, None] & (d < HEAD_DIM)[None, :]
            acc = tl.sum(tl.load(part, mask=kept, other=0.0) * share[:, None], 0)
            token = tl.load(unit + at.TOKEN).to(tl.int64)
            one = tl.arange(0, 1)
            heads = one + head
            none = one.to(tl.float32)
            if TRANSFERS:
                kind = tl.load(record + at.TRANSFER)
                fraction = field_vector(line, vectors, at.FRACTION, heads, HEADS)
                if (kind != 0) & (tl.max(tl.abs(fraction), 0) != 0):
                    masses = sums + (of_split * HEADS + head) * SUMS
                    l_destination = tl.sum(tl.load(masses + 2, mask=there, other=0.0) * share, 0)
                    l_numerator = tl.sum(tl.load(masses + 3, mask=there, other=0.0) * share, 0)
                    l_denominator = tl.sum(tl.load(masses + 4, mask=there, other=0.0) * share, 0)
                    destination = acc
                    if kind == PART:
                        place = part + HEADS * HEAD_DIM
                        destination = tl.load(place, mask=kept, other=0.0) * share[:, None]
                        destination = tl.sum(destination, 0)
                    layer_found = found_of(found, slot, layer, HEADS)
                    kv_head = (head // GROUP).to(tl.int64)
                    cache = (
                        key_cache + kv_head * key_head,
                        value_cache + kv_head * value_head,
                        block_table + tl.load(unit + at.TABLE_ROW).to(tl.int64) * table_row,
                        key_block.to(tl.int64), key_token, value_block.to(tl.int64), value_token,
                        blocks - 1,
                    )  # fmt: skip
                    at_query = query + token * query_token + head * query_head
                    count = tl.max(source_count(record, layer_found, heads, fraction != 0), 0)
                    m_sources = -float("inf")
                    l_sources = 0.0
                    l_given = 0.0
                    for index in range(0, count, CHUNK):
                        s, key, seen, kinds = row_scores(
                            record, layer_found, line, vectors, cache, rotation, phase, scale,
                            at_query, position, head, index, count, d,
                            HEADS, HEAD_DIM, BLOCK_SIZE, ROTARY,
                        )  # fmt: skip
                        highest = tl.maximum(m_sources, tl.max(s, 0))
                        shrink = exponent(m_sources, highest)
                        w = exponent(s, highest)
                        l_sources = l_sources * shrink + tl.sum(w, 0)
                        w = tl.where((kinds & DENOMINATOR) != 0, w, 0.0)
                        l_given = l_given * shrink + tl.sum(w, 0)
                        m_sources = highest
                    of_sources, of_rest = references(m, m_sources)
                    shrink, shrunk = exponent(m, of_rest), exponent(m_sources, of_sources)
                    l, l_sources = l * shrink, l_sources * shrunk
                    l_denominator = l_denominator * shrink + l_given * shrunk
                    w_sources, w_destination = transfer_weights(
                        line, vectors, heads, fraction, l + none, l_sources + none,
                        l_destination * shrink + none, l_numerator * shrink + none,
                        l_denominator + none, HEADS,
                    )  # fmt: skip
                    more = tl.max(w_destination, 0) - 1
                    acc = (acc + more * destination) * shrink
                    for index in range(0, count, CHUNK):
                        s, key, seen, kinds = row_scores(
                            record, layer_found, line, vectors, cache, rotation, phase, scale,
                            at_query, position, head, index, count, d,
                            HEADS, HEAD_DIM, BLOCK_SIZE, ROTARY,
                        )  # fmt: skip
                        w = exponent(s, of_sources) * tl.max(w_sources, 0)
                        values = load_values(cache, key, seen, d, BLOCK_SIZE, HEAD_DIM, True)
                        acc += tl.sum(w[:, None] * values.to(tl.float32), 0)
                    l = l + l_sources
            o = finished(
                acc[None, :], l + none, line, vectors, mix_heads, mixes, heads, d,
                HEADS, HEAD_DIM,
            )  # fmt: skip
            o *= tl.load(factors + (slot * layers + layer) * HEADS + head)
            to = output + (token * output_token + heads * output_head)[:, None] + d[None, :]
            tl.store(to, o.to(output.dtype.element_ty), mask=(d < HEAD_DIM)[None, :])


@triton.jit
def row_scores(
    record, found, line, vectors, cache, rotation, phase, scale,
    query, position, head, first, count, d,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, ROTARY: tl.constexpr,
):  # fmt: skip
    """`source_scores` of one row and head: logits [CHUNK], keys, which are seen, classes.

    Here the keys are turned forward instead of the query back, each by its own number of positions.
    """
    index = first + tl.arange(0, CHUNK)
    key, where = source_list(record, found, head, index, index < count)
    sinks, window = tl.load(record + at.SINKS), tl.load(record + at.WINDOW)
    bits = tl.load(record + at.RANGE_BITS + where)
    seen = (key <= position) & (((bits >> (VISIBLE_AT + phase)) & 1) != 0)
    seen &= key > position - tl.where((window == 0) | (key < sinks), OPEN, window)
    factor, absolute, bias = group_vectors(line, vectors, bits & 255, key * 0 + head, scale, HEADS)
    inside = d < HEAD_DIM
    q = tl.load(query + d, mask=inside, other=0.0).to(tl.float32)
    keys, _, blocks, block_step, token_step, _, _, last = cache
    block = tl.load(blocks + key // BLOCK_SIZE, mask=seen, other=0)
    block = tl.maximum(tl.minimum(block, last), 0).to(tl.int64)
    place = keys + (block * block_step + (key % BLOCK_SIZE).to(tl.int64) * token_step)[:, None]
    held = seen[:, None] & inside[None, :]
    k = tl.load(place + d[None, :], mask=held, other=0.0).to(tl.float32)
    if ROTARY:
        rolling = tl.load(record + at.ROLLING) != 0
        if rolling | (tl.load(record + at.SHIFTED) != 0):
            partner, turns, side = load_rotation(rotation, d, HEAD_DIM)
            other = tl.load(place + partner[None, :], mask=held, other=0.0).to(tl.float32)
            shift = tl.load(record + at.RANGE_SHIFT + where)
            shift = tl.where(rolling & (key < sinks), hidden_before(record, position), shift)
            k = turned(k, other, turns[None, :], shift[:, None], side[None, :])
    s = edited(tl.sum(k * q[None, :], 1), factor, absolute, bias)
    trails = (key >= tl.load(record + at.TRAILING_FIRST)) & (key < position)
    trails &= key >= position - tl.load(record + at.TRAILING_WINDOW)
    added = tl.load(vectors + tl.load(line + at.TRAILING_BIAS).to(tl.int64) * HEADS + head)
    s = tl.where(trails, s + added * LOG2_E, s)
    return tl.where(seen, s, -float("inf")), key, seen, bits >> CLASS_AT
