# ruff: noqa: E741 (l is what papers call it)
"""Plain paged attention on a GPU, to compare with: vLLM's Triton kernel, or a simple one where there is no vLLM."""

import math
from collections.abc import Callable
from typing import Any

import triton
import triton.language as tl


@triton.jit
def plain_kernel(
    query, output, keys, values, block_table, lengths, starts, scale,
    query_token, block_step, token_step, head_step, table_row,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    TILE_ROWS: tl.constexpr, ROWS: tl.constexpr, TILE: tl.constexpr,
):  # fmt: skip
    """Causal paged attention without edits: one program per query tile, KV head and request."""
    tile, head, request = tl.program_id(0), tl.program_id(1), tl.program_id(2)
    first = tl.load(starts + request)
    count = tl.load(starts + request + 1) - first
    length = tl.load(lengths + request)
    if tile * TILE_ROWS < count:
        place = tl.arange(0, ROWS)
        d = tl.arange(0, HEAD_DIM)
        local = tile * TILE_ROWS + place // GROUP
        row = length - count + local
        valid = (local < count) & (place < TILE_ROWS * GROUP)
        heads = head * GROUP + place % GROUP
        at = ((first + local).to(tl.int64) * query_token + heads * HEAD_DIM)[:, None] + d[None, :]
        q = tl.load(query + at, mask=valid[:, None], other=0.0)
        m = tl.full([ROWS], -float("inf"), tl.float32)
        l = tl.zeros([ROWS], tl.float32)
        acc = tl.zeros([ROWS, HEAD_DIM], tl.float32)
        end = tl.minimum(length, length - count + (tile + 1) * TILE_ROWS)
        blocks = block_table + request * table_row
        for base in range(0, end, TILE):
            k = base + tl.arange(0, TILE)
            block = tl.load(blocks + k // BLOCK_SIZE, mask=k < end, other=0).to(tl.int64)
            place_k = block * block_step + (k % BLOCK_SIZE) * token_step + head * head_step
            kt = tl.load(keys + place_k[None, :] + d[:, None], mask=(k < end)[None, :], other=0.0)
            s = tl.dot(q, kt) * scale
            s = tl.where(k[None, :] <= row[:, None], s, -float("inf"))
            highest = tl.maximum(m, tl.max(s, 1))
            safe = tl.where(highest == -float("inf"), 0.0, highest)
            p = tl.exp2(s - safe[:, None])
            shrink = tl.exp2(m - safe)
            l = l * shrink + tl.sum(p, 1)
            v = tl.load(values + place_k[:, None] + d[None, :], mask=(k < end)[:, None], other=0.0)
            acc = tl.dot(p.to(v.dtype), v, acc * shrink[:, None])
            m = highest
        acc = acc / tl.where(l > 0, l, 1.0)[:, None]
        tl.store(output + at, acc.to(output.dtype.element_ty), mask=valid[:, None])


def yardstick(batch: Any) -> tuple[str, Callable[[], None]]:
    """Its name, and a call that runs plain attention over a `kernel_gpu.Batch`."""
    try:
        from vllm.v1.attention.ops.triton_unified_attention import unified_attention

        def stock() -> None:
            unified_attention(
                q=batch.query, k=batch.keys, v=batch.values, out=batch.plain,
                cu_seqlens_q=batch.starts, max_seqlen_q=batch.rows, seqused_k=batch.lengths,
                max_seqlen_k=batch.context, softmax_scale=batch.scale, causal=True,
                window_size=(-1, -1), block_table=batch.block_table, softcap=0,
                q_descale=None, k_descale=None, v_descale=None,
            )  # fmt: skip

        stock()
        return "vllm unified_attention", stock
    except Exception:  # not installed, or its interface is another: the plain kernel is at hand
        pass
    group = batch.query_heads // batch.kv_heads
    tile_rows = max(1, 64 // group) if batch.rows > 1 else 1
    rows = max(16, 1 << (tile_rows * group - 1).bit_length())
    step = batch.keys.stride()
    grid = (-(-batch.rows // tile_rows), batch.kv_heads, batch.requests)

    def plain() -> None:
        plain_kernel[grid](
            batch.query, batch.plain, batch.keys, batch.values, batch.block_table, batch.lengths,
            batch.starts, batch.scale * math.log2(math.e), batch.query.stride(0), step[0], step[1],
            step[2], batch.block_table.stride(0),
            GROUP=group, HEAD_DIM=batch.head_dim, BLOCK_SIZE=batch.block_size,
            TILE_ROWS=tile_rows, ROWS=rows, TILE=64, num_warps=4, num_stages=3,
        )  # fmt: skip

    return "plain Triton kernel (no split of the keys)", plain
