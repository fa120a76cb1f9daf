# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False
# ruff: noqa: E741, RUF059 (l is what papers call it; Triton needs whole tuples, and constexpr ifs alone)
"""Edited attention of prompt rows: one program per query tile and KV head, all of its keys in order."""

import triton
import triton.language as tl

from heed_kernels.triton import layout as at
from heed_kernels.triton.layout import (
    PART,
    SOURCES,
    UNIT_WORDS,
)
from heed_kernels.triton.primitives import UNSPECIALIZED, exponent, field_vector, product
from heed_kernels.triton.sources import CHUNK, source_count, source_values
from heed_kernels.triton.transfer import finished, references, transfer_weights
from heed_kernels.triton.unit import cache_of, found_of, line_of, tile_rows
from heed_kernels.triton.walk import ATTEND, REWEIGH, walk


@triton.jit(do_not_specialize=UNSPECIALIZED, do_not_specialize_on_alignment=["block_table"])
def attend_tiles(
    query, output, key_cache, value_cache, block_table,
    work, records, lines, vectors, mix_heads, mixes, found, rotation, scratch, scores, sums,
    query_token, query_head, output_token, output_head, key_block, key_token, key_head,
    value_block, value_token, value_head, table_row, record_words, layers, layer, blocks, scale,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr, GROUP_PADDED: tl.constexpr,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    TILE_ROWS: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
    ROTARY: tl.constexpr, TRANSFERS: tl.constexpr,
):  # fmt: skip
    """work: see `layout`; scale: of logits, in units of ln 2. A program takes every n-th unit, so that
    the grid need not know how many there are. TILE_ROWS: positions of a query tile; ROWS: of the
    matrix product, at least TILE_ROWS * GROUP; DIMS: HEAD_DIM rounded up to a power of two. scratch
    [programs, ROWS + CHUNK, DIMS]: a program's memory for turned queries. scores, sums: see `score_tiles`.
    """
    HEADS: tl.constexpr = KV_HEADS * GROUP
    d = tl.arange(0, DIMS)
    units = tl.load(work + at.TILE_COUNT) * KV_HEADS
    units_at = tl.load(work + at.TILE_AT)
    for item in range(tl.program_id(0), units, tl.num_programs(0)):
        unit = work + units_at + item // KV_HEADS * UNIT_WORDS
        kv_head = item % KV_HEADS
        slot, phase, record, active, line = line_of(unit, records, lines, record_words, layer)
        if active:
            layer_found = found_of(found, slot, layer, HEADS)
            head = kv_head * GROUP
            row, valid, heads, token, query_rows, tile_first, high = tile_rows(
                unit, head, query_token, query_head, GROUP, HEADS, TILE_ROWS, ROWS
            )
            cache = cache_of(
                unit, kv_head, key_cache, value_cache, block_table,
                key_block, key_token, key_head, value_block, value_token, value_head, table_row, blocks,
            )  # fmt: skip
            turned = scratch + tl.program_id(0).to(tl.int64) * (ROWS + CHUNK) * DIMS
            zero = tl.zeros([ROWS], tl.float32)
            acc = tl.zeros([ROWS, DIMS], tl.float32)
            m = zero - float("inf")
            fraction = zero
            count = tl.zeros([ROWS], tl.int32)
            most = 0
            kind = 0
            if TRANSFERS:
                kind = tl.load(record + at.TRANSFER)
                fraction = field_vector(line, vectors, at.FRACTION, heads, HEADS)
                fraction = tl.where(kind != 0, fraction, 0.0)
                count = source_count(record, layer_found, heads, fraction != 0)
                most = tl.max(count, 0)
            own = tl.load(record + at.SOURCE_COUNT) < 0
            steps = (most + CHUNK - 1) // CHUNK
            sets = tl.where(own, GROUP, 1)
            of_row = token * HEADS + heads
            # No prompt row is computed after an eviction.
            sinks = tl.load(record + at.SINKS)
            acc, m, l, l_destination, l_numerator, l_denominator, unused = walk(
                acc, m, zero, zero, zero, zero, zero, zero,
                record, layer_found, line, vectors, cache, rotation, phase, scale,
                query, query_rows, valid, turned, row, heads, head, d,
                0, high, sinks, sinks, tile_first, tile_first + TILE_ROWS - 1, count,
                1, ATTEND, TRANSFERS, TRANSFERS,
                GROUP, GROUP_PADDED, HEADS, HEAD_DIM, BLOCK_SIZE, TILE, ROTARY,
            )  # fmt: skip
            if TRANSFERS:
                scored = valid & (count > 0)
                m_sources = tl.load(sums + of_row * 3, mask=scored, other=-float("inf"))
                l_sources = tl.load(sums + of_row * 3 + 1, mask=scored, other=0.0)
                l_given = tl.load(sums + of_row * 3 + 2, mask=scored, other=0.0)
                of_sources, of_rest = references(m, m_sources)
                shrink, shrunk = exponent(m, of_rest), exponent(m_sources, of_sources)
                m = of_rest
                # In a branch it takes fewer registers.
                if tl.min(shrink, 0) < 1:
                    acc = acc * shrink[:, None]
                l = l * shrink
                l_sources = l_sources * shrunk
                w_sources, w_destination = transfer_weights(
                    line, vectors, heads, fraction, l, l_sources, l_destination * shrink,
                    l_numerator * shrink, tl.fma(l_denominator, shrink, l_given * shrunk), HEADS,
                )  # fmt: skip
                if kind == PART:
                    acc, m, u1, u2, u3, u4, u5 = walk(
                        acc, m, zero, zero, zero, zero, zero, w_destination - 1,
                        record, layer_found, line, vectors, cache, rotation, phase, scale,
                        query, query_rows, valid, turned, row, heads, head, d,
                        0, tl.where(tl.max(tl.where(valid, w_destination, 1.0), 0) > 1.0, high, 0),
                        sinks, sinks, tile_first, tile_first + TILE_ROWS - 1, count,
                        1, REWEIGH, False, TRANSFERS,
                        GROUP, GROUP_PADDED, HEADS, HEAD_DIM, BLOCK_SIZE, TILE, ROTARY,
                    )  # fmt: skip
                else:
                    acc = acc * w_destination[:, None]
                for index in range(sets * steps):
                    g = index // steps
                    holds = (count > 0) & (heads == tl.where(own, head + g, heads))
                    most_held = tl.max(tl.where(holds, count, 0), 0)
                    chunk = index % steps * CHUNK
                    s = tl.load(
                        scores + of_row[:, None] * SOURCES + (chunk + tl.arange(0, CHUNK))[None, :],
                        mask=(holds & valid)[:, None], other=-float("inf"),
                    )  # fmt: skip
                    w = exponent(s, of_sources[:, None]) * w_sources[:, None]
                    # Blocks of keys that no row sees may hold anything.
                    values = source_values(
                        record, layer_found, cache, head + g, chunk, most_held, tl.max(w, 0) > 0,
                        d, HEAD_DIM, BLOCK_SIZE,
                    )  # fmt: skip
                    acc = product(w.to(values.dtype), values, acc)
                l = l + l_sources
            o = finished(
                acc, l, line, vectors, mix_heads, mixes, heads, d, HEADS, HEAD_DIM
            )  # fmt: skip
            to = output + (token * output_token + heads * output_head)[:, None] + d[None, :]
            tl.store(
                to, o.to(output.dtype.element_ty), mask=valid[:, None] & (d < HEAD_DIM)[None, :]
            )
