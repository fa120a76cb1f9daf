"""Edited attention over the paged CPU cache: checks, views, and the call of the kernel."""

import time

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.cpu.kernel import attend_units
from heed_kernels.cpu.layout import Layout
from heed_kernels.cpu.runtime import choose_threads
from heed_kernels.cpu.vector import KEY_TILE
from heed_kernels.edits import HeadGain, HeadSet, Rows
from heed_kernels.errors import EditError
from heed_kernels.plan import BLOCK_TABLE_ROW, FIRST_POSITION, FIRST_TOKEN, ROWS, Pattern, Plan
from heed_kernels.rope import Rope
from heed_kernels.table import EditTable

# numpy has no bfloat16; the kernel tells the 16-bit types apart by the sign of the integer.
_AS_INTEGER = {torch.bfloat16: torch.uint16, torch.float16: torch.int16}
_NO_ROTATION = np.zeros(0)
_workspace = np.zeros((0, 0), np.float32)
_counter = np.zeros(1, np.int64)


def attend(
    query: torch.Tensor,
    output: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    table: EditTable,
    plan: Plan,
    layer: int,
    scale: float,
    rope: Rope | None,
    layout: Layout,
) -> None:
    """Compute the active rows of `plan` in `layer` into `output`; other rows stay as they are.

    query, output: [tokens, local_query_heads, head_dim], heads and dimensions contiguous, float32,
    bfloat16 or float16; kv_cache: the layer's pages [blocks, local_kv_heads, block_size,
    2 * head_dim] in `layout`, to which the step's keys and values are already written; block_table:
    int32 [requests, blocks of a request]; scale: on the logits; rope: needed by rolling positions.
    All on the CPU. Sums are float32. One call at a time in a process.

    Raises `EditError` when shapes or dtypes do not fit, or the plan reaches beyond a tensor.
    """
    work = plan.work(layer)
    if not len(work.items):
        return
    _check(query, output, kv_cache, block_table, table, layout)
    _check_reach(work, query, kv_cache, block_table, layout, table, rope)
    kv_heads, head_dim = kv_cache.shape[1], layout.head_dim
    group_heads = table.local_query_heads // kv_heads
    threads = choose_threads()
    rows = int(work.units[:, ROWS].max()) * group_heads
    needed = rows * (3 * head_dim + 2 * KEY_TILE + 2) + head_dim * KEY_TILE
    _counter[0] = 0
    attend_units(
        _flat(query),
        _flat(output),
        query.stride(0),
        output.stride(0),
        _flat(kv_cache),
        kv_cache.stride(0),
        kv_cache.stride(1),
        block_table.numpy(),
        layout.block_size,
        work.units,
        kv_heads,
        group_heads,
        head_dim,
        np.float32(scale),
        layout.key_row,
        layout.value_row,
        layout.key_offset,
        layout.value_offset,
        table.phase_start,
        table.range_count,
        table.range_start,
        table.range_group,
        table.visible,
        table.trailing,
        table.line[:, layer],
        table.lines.rows,
        table.vectors.rows,
        rope.inv_freq if rope is not None else _NO_ROTATION,
        rope is not None and rope.interleaved,
        _work(threads, needed),
        _counter,
        threads,
    )


def warm_up(
    layout: Layout, query_heads: int, kv_heads: int, dtype: torch.dtype | None = None
) -> float:
    """Compile everything that `attend` needs for this layout, with tiny inputs.

    query_heads, kv_heads: of this rank; dtype: of query and output, the cache's by default. Returns
    the seconds it took: about a minute on the first start, below a second from the disk cache.
    """
    began = time.perf_counter()
    dtype = dtype or layout.dtype
    table = EditTable(1, 1, query_heads, kv_heads, vector_capacity=16, line_capacity=4)
    table.insert([HeadGain(HeadSet((1,)), Rows(), 0.5, 0)])
    zero = np.zeros(1, np.int64)
    plan = table.plan(zero, zero, zero + 1, zero, zero)
    query = torch.zeros(1, query_heads, layout.head_dim, dtype=dtype)
    pages = torch.zeros(1, kv_heads, layout.block_size, 2 * layout.head_dim, dtype=layout.dtype)
    blocks = torch.zeros(1, 1, dtype=torch.int32)
    output = torch.empty_like(query)
    attend(query, output, pages, blocks, table, plan, 0, 1.0, None, layout)
    return time.perf_counter() - began


def _work(threads: int, needed: int) -> NDArray[np.float32]:
    """Scratch memory of each thread, kept between calls. Threads do not share cache lines."""
    global _workspace
    if _workspace.shape[0] < threads or _workspace.shape[1] < needed:
        _workspace = np.zeros((threads, (needed + 63) // 64 * 64), np.float32)
    return _workspace


def _flat(tensor: torch.Tensor) -> NDArray[np.generic]:
    """One-dimensional view of the memory from the tensor's first element to its last."""
    span = 1 + sum((n - 1) * step for n, step in zip(tensor.shape, tensor.stride(), strict=True))
    tensor = tensor.as_strided((span,), (1,))
    if tensor.dtype in _AS_INTEGER:
        tensor = tensor.view(_AS_INTEGER[tensor.dtype])
    array: NDArray[np.generic] = tensor.numpy()
    return array


def _check(
    query: torch.Tensor,
    output: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    table: EditTable,
    layout: Layout,
) -> None:
    heads, head_dim = table.local_query_heads, layout.head_dim
    if query.shape != output.shape or query.shape[1:] != (heads, head_dim):
        raise EditError(
            f"query {tuple(query.shape)} and output {tuple(output.shape)} should be"
            f" [tokens, {heads}, {head_dim}]"
        )
    if query.dtype != output.dtype or (
        query.dtype != torch.float32 and query.dtype not in _AS_INTEGER
    ):
        raise EditError(f"query {query.dtype} and output {output.dtype} do not fit")
    for tensor in (query, output):
        if tensor.stride()[1:] != (head_dim, 1):
            raise EditError("heads and dimensions of query and output must be contiguous")
    if kv_cache.dtype != layout.dtype or kv_cache.shape[2:] != (layout.block_size, 2 * head_dim):
        raise EditError(f"KV cache {tuple(kv_cache.shape)} {kv_cache.dtype} is not of the layout")
    if kv_cache.stride()[2:] != (2 * head_dim, 1) or heads % kv_cache.shape[1]:
        raise EditError("pages must be contiguous and query heads a multiple of KV heads")
    if block_table.dtype != torch.int32:
        raise EditError(f"the block table must be int32, not {block_table.dtype}")


def _check_reach(
    work: Pattern,
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    layout: Layout,
    table: EditTable,
    rope: Rope | None,
) -> None:
    """The kernel checks no index, so nothing may lie outside. Once per step and pattern."""
    seen = (block_table.data_ptr(), len(query), len(kv_cache), layout.block_size, rope is None)
    if seen in work.checked:
        return
    items = work.items
    blocks = -(-(items[:, FIRST_POSITION] + items[:, ROWS]) // layout.block_size)
    rows = items[:, BLOCK_TABLE_ROW]
    if (items[:, FIRST_TOKEN] + items[:, ROWS]).max() > len(query):
        raise EditError("the plan has more query tokens than the query")
    if rows.max() >= block_table.shape[0] or blocks.max() > block_table.shape[1]:
        raise EditError("the plan reaches beyond the block table")
    ids = block_table.numpy()[rows, : blocks.max()]
    ids = np.where(np.arange(ids.shape[1]) < blocks[:, None], ids, 0)
    if ids.min() < 0 or ids.max() >= len(kv_cache):
        raise EditError("the block table names blocks that the cache does not have")
    if table.visible[items[:, 0], 2].any() and rope is None:
        raise EditError("rolling positions need the model's rotary embedding")
    if rope is not None and rope.rotary_dim > layout.head_dim:
        raise EditError(f"{rope.rotary_dim} dimensions rotate, a head has {layout.head_dim}")
    work.checked.add(seen)
