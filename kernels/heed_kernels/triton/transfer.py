# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False
# ruff: noqa: E741 (l is what papers call it; Triton needs whole tuples, and constexpr ifs alone)
"""What a mass transfer and the end of a row do to sums that are complete."""

import triton
import triton.language as tl

from heed_kernels.triton import layout as at
from heed_kernels.triton.primitives import field_vector

DEPTH = tl.constexpr(48.0)
"""Sources whose logits lie further above all others count, beside these, as if they lay so many powers of
two above them: what is left of the others, less than 2^-48 each, can no longer be seen in the row. So
their part, which a transfer may raise to all of the mass, never underflows."""
LEAST_DESTINATION = tl.constexpr(2.0**-120)
"""A destination with less mass than that counts as none: the factor on its weights would overflow."""


@triton.jit
def references(m, m_sources):
    """What logits of sources and what those of the rest are taken relative to, from the maxima of both."""
    most = tl.maximum(m, m_sources)
    return most, tl.minimum(most, m + DEPTH)


@triton.jit
def transfer_weights(
    line, vectors, heads, fraction, l_rest, l_sources, l_destination, l_numerator, l_denominator,
    HEADS: tl.constexpr,
):  # fmt: skip
    """Factors on the sources' and on the destination's weights: 1 where the gate is shut.

    All are masses relative to `references`, in the shape of `heads`; those of the rest, the destination
    and the numerator are without the sources.
    """
    ratio = field_vector(line, vectors, at.RATIO, heads, HEADS)
    least = field_vector(line, vectors, at.LEAST, heads, HEADS)
    gate = (l_numerator >= ratio * l_denominator) & (l_denominator >= least * (l_rest + l_sources))
    some = l_destination >= LEAST_DESTINATION
    gate &= some & (fraction != 0)
    moved = fraction * (l_sources / tl.where(some, l_destination, 1.0))
    return tl.where(gate, 1.0 - fraction, 1.0), tl.where(gate, 1.0 + moved, 1.0)


@triton.jit
def finished(
    acc, l, line, vectors, mix_heads, mixes, heads, d,
    HEADS: tl.constexpr, HEAD_DIM: tl.constexpr,
):  # fmt: skip
    """Outputs [rows, dimensions]: normalised, with gain and mixed-in vector; 0 for a row without keys."""
    gain = field_vector(line, vectors, at.GAIN, heads, HEADS)
    o = acc / tl.where(l > 0, l, 1.0)[:, None] * gain[:, None]
    mix_line = tl.load(line + at.MIX)
    if mix_line > 0:
        mix = tl.load(
            mix_heads + mix_line.to(tl.int64) * HEADS + heads, mask=heads < HEADS, other=0
        )
        place = mixes + mix.to(tl.int64)[:, None] * HEAD_DIM + d[None, :]
        o += tl.load(place, mask=(mix > 0)[:, None] & (d < HEAD_DIM)[None, :], other=0.0)
    return o
