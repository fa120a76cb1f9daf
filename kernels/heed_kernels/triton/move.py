# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, disallow-untyped-calls=False
"""The kernel that moves tokens within a cache."""

import triton
import triton.language as tl


@triton.jit(do_not_specialize=["count", "kv_heads"])
def move_tokens(
    cache, numbers, kv_heads, count, block_size, block_step, token_step, head_step, vector,
    GROUP: tl.constexpr, DIMS: tl.constexpr, TOKENS: tl.constexpr,
):  # fmt: skip
    """One program per head and DIMS elements of its vectors. numbers: int64 [kv_heads + 1, count], where the
    tokens of each KV head come from, -1 for none, and in the last line where all of them go.

    A program goes on in order, TOKENS at once: what it reads later lies behind all that it has written.
    """
    head = tl.program_id(0)
    sources = numbers + (head // GROUP).to(tl.int64) * count
    targets = numbers + kv_heads.to(tl.int64) * count
    d = tl.program_id(1) * DIMS + tl.arange(0, DIMS)
    base = cache + head.to(tl.int64) * head_step
    for first in range(0, count, TOKENS):
        i = first + tl.arange(0, TOKENS)
        source = tl.load(sources + i, mask=i < count, other=-1)
        target = tl.load(targets + i, mask=i < count, other=0)
        moving = (source >= 0)[:, None] & (d < vector)[None, :]
        source = source // block_size * block_step + source % block_size * token_step
        target = target // block_size * block_step + target % block_size * token_step
        held = tl.load(base + source[:, None] + d[None, :], mask=moving)
        # All of them are read before one is written: both may be the same blocks.
        tl.debug_barrier()
        tl.store(base + target[:, None] + d[None, :], held, mask=moving)
