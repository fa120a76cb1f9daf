# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False
# ruff: noqa: RUF059, SIM102 (l is what papers call it; Triton needs whole tuples, and constexpr ifs alone)
"""The source keys of a mass transfer: left out of the walk over the ranges, and added at its end.

A query row's sources are the request's, or its head's own where they are found on the device. Heads
without a transfer have none. Leaving sources out, rather than taking their part back afterwards,
costs no digits where they hold nearly all of the mass.
"""

import triton
import triton.language as tl

from heed_kernels.triton import layout as at
from heed_kernels.triton.layout import CLASS_AT, FOUND_WORDS, OPEN, SOURCES, VISIBLE_AT
from heed_kernels.triton.primitives import (
    LOG2_E,
    SLICE,
    edited,
    field_vector,
    group_vectors,
    hidden_before,
    load_keys,
    load_query,
    load_rotation,
    load_values,
    product,
    slices_end,
    turned,
)

CHUNK = tl.constexpr(16)
"""Sources computed at once: the least that a matrix product takes."""


@triton.jit
def source_count(record, found, heads, on):
    """Number of sources in the shape of `heads`; 0 where not `on`. found: the layer's lines."""
    fixed = tl.load(record + at.SOURCE_COUNT)
    own = tl.where(on, fixed, 0) < 0
    return tl.where(own, tl.load(found + heads * FOUND_WORDS, mask=own, other=0), on * fixed)


@triton.jit
def source_list(record, found, head, index, inside):
    """Keys and ranges of the sources `index` of `head` (shapes that broadcast); OPEN where not inside."""
    own = tl.load(record + at.SOURCE_COUNT) < 0
    # One list for all heads is read in the same way: a found list at the record, with step 0.
    base = tl.where(own, found + 1, record + at.SOURCE_KEYS)
    place = base + head * tl.where(own, FOUND_WORDS, 0) + index
    key = tl.load(place, mask=inside, other=OPEN)
    return key, tl.load(place + SOURCES, mask=inside, other=0)


@triton.jit
def next_source_tile(
    record, found, line, vectors, head, base,
    GROUP: tl.constexpr, GROUP_PADDED: tl.constexpr, HEADS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Start of the first key tile from `base` on which has a source of any head of the group."""
    g = tl.arange(0, GROUP_PADDED)
    fraction = tl.load(line + at.FRACTION)
    on = tl.load(vectors + fraction.to(tl.int64) * HEADS + head + g, mask=g < GROUP, other=0.0) != 0
    count = source_count(record, found, head + g, on)
    index = tl.arange(0, SOURCES)[None, :]
    key, _ = source_list(record, found, (head + g)[:, None], index, index < count[:, None])
    start = tl.where(key >= base, key // TILE * TILE, OPEN)
    return tl.min(tl.min(start, 1), 0)


@triton.jit
def without_sources(s, record, found, heads, count, most, k):
    """Logits s [rows, keys at k] with -inf at the sources of each row's head."""
    for index in range(most):
        key, where = source_list(record, found, heads, index, index < count)
        s = tl.where(key[:, None] == k[None, :], -float("inf"), s)
    return s


@triton.jit
def source_scores(
    record, found, line, vectors, cache, rotation, phase, scale,
    query, query_rows, valid, scratch, row, heads, own, head, first, count, part, d,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr, ROTARY: tl.constexpr,
):  # fmt: skip
    """Logits [rows, CHUNK] of the sources first ... of `head` for the rows `own`, -inf where unseen;
    and the keys' classes.

    part 1: the keys that rolling positions turn, by as many positions as each row hides.
    """
    index = first + tl.arange(0, CHUNK)
    key, where = source_list(record, found, head, index, index < count)
    window = tl.load(record + at.WINDOW)
    behind = tl.where(window > 0, window, OPEN)
    rolling = tl.load(record + at.ROLLING) != 0
    bits = tl.load(record + at.RANGE_BITS + where)
    last = tl.max(tl.where(valid, row, 0), 0)
    first_row = tl.min(tl.where(valid, row, OPEN), 0)
    sink = (key < tl.load(record + at.SINKS)).to(tl.int32)
    seen = (key <= last) & (((bits >> (VISIBLE_AT + phase)) & 1) != 0)
    seen &= key > first_row - tl.where(sink == 1, OPEN, behind)
    seen &= sink == tl.where(rolling, part, sink)
    group = (bits & 255)[None, :]
    factor, absolute, bias = group_vectors(line, vectors, group, heads[:, None], scale, HEADS)
    q = load_query(
        query, query_rows, valid, d, scratch, rotation, hidden_before(record, row), part == 1,
        HEAD_DIM, ROTARY,
    )  # fmt: skip
    k = load_keys(cache, key, seen, d, BLOCK_SIZE, HEAD_DIM, True)
    if ROTARY:
        if tl.load(record + at.SHIFTED) != 0:
            # Shifts belong to keys here, so the keys are turned forward; in slices, as queries are.
            shift = tl.load(record + at.RANGE_SHIFT + where)
            place = scratch + (tl.arange(0, CHUNK) + heads.shape[0])[None, :] * d.shape[0]
            tl.debug_barrier()
            for first_dim in range(0, slices_end(rotation, HEAD_DIM), SLICE):
                e = first_dim + tl.arange(0, SLICE)
                partner, turns, side = load_rotation(rotation, e, HEAD_DIM)
                x = load_keys(cache, key, seen, e, BLOCK_SIZE, HEAD_DIM, True)
                other = load_keys(cache, key, seen, partner, BLOCK_SIZE, HEAD_DIM, True)
                x = turned(
                    x.to(tl.float32),
                    other.to(tl.float32),
                    turns[:, None],
                    shift[None, :],
                    side[:, None],
                )
                inside = (e < HEAD_DIM)[:, None]
                tl.store(place + e[:, None], x.to(query.dtype.element_ty), mask=inside)
            tl.debug_barrier()
            k = tl.load(place + d[:, None], mask=(d < HEAD_DIM)[:, None], other=0.0)
    s = product(q, k, tl.zeros([q.shape[0], CHUNK], tl.float32))
    s = edited(s, factor, absolute, bias)
    trailing = row - tl.load(record + at.TRAILING_WINDOW)
    trailing = tl.maximum(trailing, tl.load(record + at.TRAILING_FIRST))
    trails = (key[None, :] >= trailing[:, None]) & (key[None, :] < row[:, None])
    added = field_vector(line, vectors, at.TRAILING_BIAS, heads, HEADS)
    s = tl.where(trails, s + added[:, None] * LOG2_E, s)
    visible = seen[None, :] & own[:, None] & (key[None, :] <= row[:, None])
    visible &= key[None, :] > row[:, None] - tl.where(sink == 1, OPEN, behind)[None, :]
    return tl.where(visible, s, -float("inf")), bits >> CLASS_AT


@triton.jit
def source_values(
    record, found, cache, head, first, count, seen, d,
    HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
):  # fmt: skip
    """[CHUNK, dimensions]: values of the sources first ... of `head` where `seen` [CHUNK], else 0."""
    index = first + tl.arange(0, CHUNK)
    key, where = source_list(record, found, head, index, index < count)
    return load_values(cache, key, seen, d, BLOCK_SIZE, HEAD_DIM, True)
