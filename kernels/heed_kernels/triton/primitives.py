# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False

"""Small pieces that every kernel here uses: products, key addresses, per-head vectors, turned queries.

`cache` is (keys, values, the request's line of the block table, block and token
strides of keys and of values, the last block's id) at one KV head; logits are in units of ln 2, so
that weights are powers of two.
"""

import triton
import triton.language as tl
from triton import knobs

from heed_kernels.triton import layout as at
from heed_kernels.triton.layout import ABSOLUTE, BIAS, GROUP_FIELDS, SCALE

INTERPRETED = tl.constexpr(bool(knobs.runtime.interpret))
LOG2_E = tl.constexpr(1.4426950408889634)
LN_2 = tl.constexpr(0.6931471805599453)
QUARTER = tl.constexpr(1 << 30)
"""A quarter turn in units of 2^-32 turns."""

SLICE = tl.constexpr(16)
"""Dimensions that are turned at once."""
UNSPECIALIZED = ["table_row", "record_words", "layers", "layer", "wave", "blocks"]
"""Arguments whose values must not make another variant of a kernel."""


@triton.jit
def product(a, b, c):
    """c + a b, float32 sums; float32 operands are not shortened to TF32."""
    if INTERPRETED:  # whose dot would multiply the bit patterns of bfloat16
        a = a.to(tl.float32)
        b = b.to(tl.float32)
    return tl.dot(a, b, c, input_precision="ieee")


@triton.jit
def exponent(s, m):
    """2^(s - m), 0 where both are -inf."""
    return tl.exp2(s - tl.where(m == -float("inf"), 0.0, m))


@triton.jit
def load_keys(
    cache, k, seen, d, BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, MASKED: tl.constexpr
):
    """[dimensions, keys] at positions k; 0 where not seen, so that foreign blocks are harmless."""
    keys, _, blocks, block_step, token_step, _, _, last = cache
    return _load(
        keys, blocks, last, block_step, token_step, k[None, :], seen[None, :], d[:, None],
        BLOCK_SIZE, HEAD_DIM, MASKED,
    )  # fmt: skip


@triton.jit
def load_values(
    cache, k, seen, d, BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, MASKED: tl.constexpr
):
    """[keys, dimensions] at positions k; 0 where not seen."""
    _, values, blocks, _, _, block_step, token_step, last = cache
    return _load(
        values, blocks, last, block_step, token_step, k[:, None], seen[:, None], d[None, :],
        BLOCK_SIZE, HEAD_DIM, MASKED,
    )  # fmt: skip


@triton.jit
def _load(
    base, blocks, last, block_step, token_step, k, seen, d,
    BLOCK_SIZE: tl.constexpr, HEAD_DIM: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    if MASKED:
        block = tl.load(blocks + k // BLOCK_SIZE, mask=seen, other=0)
    else:
        block = tl.load(blocks + k // BLOCK_SIZE)
    # A damaged block table must not make us read outside of the cache.
    block = tl.maximum(tl.minimum(block, last), 0).to(tl.int64)
    place = base + block * block_step + (k % BLOCK_SIZE).to(tl.int64) * token_step + d
    if MASKED:
        return tl.load(place, mask=seen & (d < HEAD_DIM), other=0.0)
    elif d.shape[0] * d.shape[1] == HEAD_DIM:
        return tl.load(place)
    else:
        return tl.load(place, mask=d < HEAD_DIM, other=0.0)


@triton.jit
def head_vector(vectors, row, heads, HEADS: tl.constexpr):
    """float32 in the shape of `heads` (against which `row` broadcasts); heads beyond HEADS read 0."""
    return tl.load(vectors + row.to(tl.int64) * HEADS + heads, mask=heads < HEADS, other=0.0)


@triton.jit
def group_vectors(line, vectors, group, heads, scale, HEADS: tl.constexpr):
    """What makes logits of products: s = (factor p + absolute |p|) + bias, per head.

    line: of the table's `lines`; group: a scalar, or [1, keys] with heads [rows, 1].
    """
    field = line + GROUP_FIELDS + 3 * (group - 1)
    edited = group > 0
    factor = head_vector(vectors, tl.load(field + SCALE, mask=edited, other=1), heads, HEADS)
    absolute = head_vector(vectors, tl.load(field + ABSOLUTE, mask=edited, other=0), heads, HEADS)
    bias = head_vector(vectors, tl.load(field + BIAS, mask=edited, other=0), heads, HEADS)
    return factor * scale, absolute * tl.abs(scale), bias * LOG2_E


@triton.jit
def field_vector(line, vectors, FIELD: tl.constexpr, heads, HEADS: tl.constexpr):
    """The vector that `line` has in a field which is not a group's."""
    return head_vector(vectors, tl.load(line + FIELD), heads, HEADS)


@triton.jit
def edited(p, factor, absolute, bias):
    """Logits of the products p. Fused by hand: the compiler must not choose differently elsewhere."""
    return tl.fma(p, factor, tl.fma(tl.abs(p), absolute, bias))


@triton.jit
def turned(x, partner, turns, positions, side):
    """x turned forward by a number of positions.

    partner: the other dimension of each pair; turns: int64, 2^64 turns per position and pair, so that
    the product keeps just the fraction of a turn, exactly; side: -1 for the first of a pair, 1 for the
    second, 0 for dimensions that do not rotate.
    """
    angle = (positions.to(tl.int64) * turns) >> 32
    quarter = (angle + QUARTER // 2) >> 30
    # What is left is at most an eighth of a turn, where short polynomials (least squares at the
    # Chebyshev points) are right to float32. The library's would carry a reduction of large angles.
    r = (angle - quarter * QUARTER).to(tl.float32) * (1.0 / (1 << 32))
    z = r * r
    sine = tl.fma(z, tl.fma(z, tl.fma(z, -75.40184, 81.592545), -41.341663), 6.2831855) * r
    cosine = tl.fma(
        z, tl.fma(z, tl.fma(z, tl.fma(z, 59.220287, -85.44285), 64.93932), -19.739208), 1.0
    )
    odd = (quarter & 1) != 0
    forward = tl.where(odd, cosine, sine)
    along = tl.where(odd, sine, cosine)
    forward = tl.where((quarter & 2) != 0, -forward, forward)
    along = tl.where(((quarter + 1) & 2) != 0, -along, along)
    return x * along + partner * (forward * side)


@triton.jit
def load_query(
    query,
    rows,
    valid,
    d,
    scratch,
    rotation,
    back,
    turn,
    HEAD_DIM: tl.constexpr,
    ROTARY: tl.constexpr,
):
    """[rows, dimensions] turned back by `back` [rows] positions where the scalar `turn` says so.

    query: pointer; rows: [rows, 1] offsets; scratch: memory of this program for [rows, dimensions].
    Turned queries go through it in slices of dimensions: turned at once they would take more registers
    than the rest of the kernel. They are rounded to the query's dtype, as the model rounds its own.
    """
    inside = valid[:, None] & (d < HEAD_DIM)[None, :]
    if ROTARY:
        if turn:
            place = (tl.arange(0, rows.shape[0]) * d.shape[0])[:, None]
            tl.debug_barrier()  # until everyone has read what was there
            for first in range(0, slices_end(rotation, HEAD_DIM), SLICE):
                e = first + tl.arange(0, SLICE)
                held = valid[:, None] & (e < HEAD_DIM)[None, :]
                partner, turns, side = load_rotation(rotation, e, HEAD_DIM)
                x = tl.load(query + rows + e[None, :], mask=held, other=0.0)
                other = tl.load(query + rows + partner[None, :], mask=held, other=0.0)
                x = turned(
                    x.to(tl.float32),
                    other.to(tl.float32),
                    turns[None, :],
                    -back[:, None],
                    side[None, :],
                )
                tl.store(scratch + place + e[None, :], x.to(query.dtype.element_ty), mask=held)
            tl.debug_barrier()
            q = tl.load(scratch + place + d[None, :], mask=inside, other=0.0)
        else:
            q = tl.load(query + rows + d[None, :], mask=inside, other=0.0)
    else:
        q = tl.load(query + rows + d[None, :], mask=inside, other=0.0)
    return q


@triton.jit
def slices_end(rotation, HEAD_DIM: tl.constexpr):
    """HEAD_DIM as the compiler cannot know it: it would unroll the slices and hold all at once."""
    return tl.load(rotation + 3 * HEAD_DIM).to(tl.int32)


@triton.jit
def load_rotation(rotation, d, HEAD_DIM: tl.constexpr):
    """Partner int64, turns int64, side float32, each in the shape of d. rotation: int64 [4, HEAD_DIM]."""
    inside = d < HEAD_DIM
    turns = tl.load(rotation + d, mask=inside, other=0)
    partner = tl.load(rotation + HEAD_DIM + d, mask=inside, other=0)
    side = tl.load(rotation + 2 * HEAD_DIM + d, mask=inside, other=0).to(tl.float32)
    return partner, turns, side


@triton.jit
def hidden_before(record, row):
    """How many keys are hidden from each row: its query is turned back by that for the sinks."""
    window = tl.load(record + at.WINDOW)
    return tl.maximum(row - window - tl.load(record + at.SINKS) + 1, 0)
