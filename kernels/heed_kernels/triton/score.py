# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False

"""Logits of the source keys of prompt rows, ahead of their attention.

A kernel of its own: scattered keys with edits of their own, turned one by one, take registers that the
accumulator of the attention needs.
"""

import triton
import triton.language as tl

from heed_kernels.triton import layout as at
from heed_kernels.triton.layout import (
    DENOMINATOR,
    SOURCES,
    UNIT_WORDS,
)
from heed_kernels.triton.primitives import UNSPECIALIZED, exponent, field_vector
from heed_kernels.triton.sources import CHUNK, source_count, source_scores
from heed_kernels.triton.unit import cache_of, found_of, line_of, tile_rows


@triton.jit(do_not_specialize=UNSPECIALIZED, do_not_specialize_on_alignment=["block_table"])
def score_tiles(
    query, key_cache, value_cache, block_table,
    work, records, lines, vectors, found, rotation, scratch, scores, sums,
    query_token, query_head, key_block, key_token, key_head,
    value_block, value_token, value_head, table_row, record_words, layers, layer, blocks, scale,
    KV_HEADS: tl.constexpr, GROUP: tl.constexpr,
    HEAD_DIM: tl.constexpr, DIMS: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    TILE_ROWS: tl.constexpr, ROWS: tl.constexpr,
    ROTARY: tl.constexpr,
):  # fmt: skip
    """scores: float32 [tokens, HEADS, SOURCES], logits of each row's sources; sums: float32 [tokens, HEADS, 3],
    their maximum, their mass, and its part in the gate's denominator. Heads without sources are left out."""
    HEADS: tl.constexpr = KV_HEADS * GROUP
    d = tl.arange(0, DIMS)
    units = tl.load(work + at.TILE_COUNT) * KV_HEADS
    units_at = tl.load(work + at.TILE_AT)
    for item in range(tl.program_id(0), units, tl.num_programs(0)):
        unit = work + units_at + item // KV_HEADS * UNIT_WORDS
        kv_head = item % KV_HEADS
        slot, phase, record, active, line = line_of(unit, records, lines, record_words, layer)
        fraction = tl.load(line + at.FRACTION)
        if active & (tl.load(record + at.TRANSFER) != 0) & (fraction != 0):
            layer_found = found_of(found, slot, layer, HEADS)
            head = kv_head * GROUP
            row, valid, heads, token, query_rows, _tile_first, _high = tile_rows(
                unit, head, query_token, query_head, GROUP, HEADS, TILE_ROWS, ROWS
            )
            cache = cache_of(
                unit, kv_head, key_cache, value_cache, block_table,
                key_block, key_token, key_head, value_block, value_token, value_head, table_row, blocks,
            )  # fmt: skip
            turned = scratch + tl.program_id(0).to(tl.int64) * (ROWS + CHUNK) * DIMS
            zero = tl.zeros([ROWS], tl.float32)
            m = zero - float("inf")
            on = field_vector(line, vectors, at.FRACTION, heads, HEADS) != 0
            count = source_count(record, layer_found, heads, on)
            most = tl.max(count, 0)
            # One list of sources for all heads, or one for each where they were found.
            own = tl.load(record + at.SOURCE_COUNT) < 0
            steps = (most + CHUNK - 1) // CHUNK
            parts = 1 + (tl.load(record + at.ROLLING) != 0).to(tl.int32)
            sets = tl.where(own, GROUP, 1)
            l_sources = zero
            l_given = zero
            of_row = token * HEADS + heads
            for index in range(sets * steps * parts):
                g = index // (parts * steps)
                holds = (count > 0) & (heads == tl.where(own, head + g, heads))
                chunk = index // parts % steps * CHUNK
                s, kinds = source_scores(
                    record, layer_found, line, vectors, cache, rotation, phase, scale,
                    query, query_rows, valid, turned, row, heads, holds, head + g, chunk,
                    tl.max(tl.where(holds, count, 0), 0), index % parts,
                    d, HEADS, HEAD_DIM, BLOCK_SIZE, ROTARY,
                )  # fmt: skip
                highest = tl.maximum(m, tl.max(s, 1))
                shrink = exponent(m, highest)
                w = exponent(s, highest[:, None])
                l_sources = tl.fma(l_sources, shrink, tl.sum(w, 1))
                given = (kinds & DENOMINATOR) != 0
                l_given = tl.fma(l_given, shrink, tl.sum(tl.where(given[None, :], w, 0.0), 1))
                m = highest
                to = scores + of_row[:, None] * SOURCES + (chunk + tl.arange(0, CHUNK))[None, :]
                mine = tl.where(index % parts == 0, 0.0, s) > -float("inf")
                mine &= (holds & valid)[:, None]
                tl.store(to, s, mask=mine)
            kept = valid & (count > 0)
            tl.store(sums + of_row * 3, m, mask=kept)
            tl.store(sums + of_row * 3 + 1, l_sources, mask=kept)
            tl.store(sums + of_row * 3 + 2, l_given, mask=kept)
