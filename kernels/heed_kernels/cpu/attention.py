"""Edited attention over the paged CPU cache: checks, views, and the call of the kernel."""

import time
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.compiled import PHASES
from heed_kernels.cpu.kernel import (
    BLOCK_SIZE,
    BLOCK_STEP,
    BLOCK_TABLE,
    BLOCK_TABLE_STEP,
    CACHE,
    CACHE_TYPE,
    GROUP_HEADS,
    HALF_ROTARY,
    HEAD_DIM,
    HEAD_STEP,
    INTERLEAVED,
    INV_FREQ,
    KEY_OFFSET,
    KEY_ROW,
    KV_HEADS,
    LINE,
    LINE_STEP,
    LINES,
    LOCAL_HEADS,
    OUTPUT,
    OUTPUT_STEP,
    PARAMETERS,
    PHASE_START,
    PRODUCT,
    QUERY,
    QUERY_STEP,
    QUERY_TYPE,
    RANGE_COUNT,
    RANGE_GROUP,
    RANGE_START,
    SCALE_BITS,
    TAKEN,
    TRAILING,
    UNIT_COUNT,
    UNITS,
    VALUE_OFFSET,
    VALUE_ROW,
    VECTORS,
    VISIBLE,
    WORK,
    WORK_STEP,
    attend_thread,
    run_threads,
)
from heed_kernels.cpu.layout import Layout
from heed_kernels.cpu.product import multiply_add
from heed_kernels.cpu.runtime import choose_threads
from heed_kernels.cpu.vector import BFLOAT16, FLOAT16, FLOAT32, KEY_TILE
from heed_kernels.edits import HeadGain, HeadSet, Rows
from heed_kernels.errors import EditError
from heed_kernels.plan import BLOCK_TABLE_ROW, FIRST_POSITION, FIRST_TOKEN, ROWS, Pattern, Plan
from heed_kernels.rope import Rope
from heed_kernels.table import EditTable

_CODES = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}
_ALIGNMENT = 64
_NO_ROTATION = np.zeros(1)
_workspace = np.zeros((0, 0), np.float32)
_workspace_at = 0


class Call:
    """What calls of the kernel with the same pattern and the same kind of tensors have in common.

    parameters: int64 [PARAMETERS], see `kernel`. `kept` holds what its addresses point into.
    """

    def __init__(
        self, parameters: NDArray[np.int64], floats: int, lines_at: int, kept: tuple[object, ...]
    ) -> None:
        """floats: memory of a thread, in float32; lines_at: address of the table's `line`."""
        self.parameters, self.floats, self.lines_at, self.kept = parameters, floats, lines_at, kept
        self.address = _address(parameters)


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
    # All that the checks and the call look at; `Call.kept` keeps identities and addresses in use.
    key = (
        query.shape, query.stride(), query.dtype, output.shape, output.stride(), output.dtype,
        kv_cache.shape, kv_cache.stride(), kv_cache.dtype, block_table.data_ptr(),
        block_table.shape, id(table), scale, id(rope), id(layout),
    )  # fmt: skip
    call = work.calls.get(key)
    if call is None:
        _check(query, output, kv_cache, block_table, table, layout)
        _check_reach(work, query, kv_cache, block_table, layout, table, rope)
        call = _prepare(work, query, output, kv_cache, block_table, table, scale, rope, layout)
        work.calls[key] = call
    threads = choose_threads()
    parameters = call.parameters
    parameters[QUERY], parameters[OUTPUT] = query.data_ptr(), output.data_ptr()
    parameters[CACHE] = kv_cache.data_ptr()
    parameters[LINE] = call.lines_at + layer * 4 * PHASES
    parameters[WORK] = _work(threads, call.floats)
    parameters[WORK_STEP] = _workspace.strides[0]
    parameters[TAKEN] = 0
    run_threads(attend_thread(), call.address, threads)


def _prepare(
    work: Pattern,
    query: torch.Tensor,
    output: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    table: EditTable,
    scale: float,
    rope: Rope | None,
    layout: Layout,
) -> Call:
    units, head_dim = work.units, layout.head_dim
    group_heads = table.local_query_heads // kv_cache.shape[1]
    inv_freq = _NO_ROTATION if rope is None else np.ascontiguousarray(rope.inv_freq, np.float64)
    values = {
        QUERY_STEP: query.stride(0) * query.itemsize,
        OUTPUT_STEP: output.stride(0) * output.itemsize,
        QUERY_TYPE: _CODES[query.dtype],
        BLOCK_STEP: kv_cache.stride(0) * kv_cache.itemsize,
        HEAD_STEP: kv_cache.stride(1) * kv_cache.itemsize,
        CACHE_TYPE: _CODES[kv_cache.dtype],
        BLOCK_TABLE: block_table.data_ptr(),
        BLOCK_TABLE_STEP: block_table.stride(0) * 4,
        BLOCK_SIZE: layout.block_size,
        UNITS: _address(units),
        UNIT_COUNT: len(units),
        KV_HEADS: kv_cache.shape[1],
        GROUP_HEADS: group_heads,
        HEAD_DIM: head_dim,
        KEY_ROW: layout.key_row,
        VALUE_ROW: layout.value_row,
        KEY_OFFSET: _address(layout.key_offset),
        VALUE_OFFSET: _address(layout.value_offset),
        PHASE_START: _address(table.phase_start),
        RANGE_COUNT: _address(table.range_count),
        RANGE_START: _address(table.range_start),
        RANGE_GROUP: _address(table.range_group),
        VISIBLE: _address(table.visible),
        TRAILING: _address(table.trailing),
        LINE_STEP: table.line.strides[0],
        LINES: _address(table.lines.rows),
        VECTORS: _address(table.vectors.rows),
        LOCAL_HEADS: table.local_query_heads,
        INV_FREQ: _address(inv_freq),
        HALF_ROTARY: 0 if rope is None else len(inv_freq),
        INTERLEAVED: rope is not None and rope.interleaved,
        PRODUCT: multiply_add(),
    }
    parameters = np.zeros(PARAMETERS, np.int64)
    parameters[list(values)] = list(values.values())
    parameters.view(np.float64)[SCALE_BITS] = scale
    rows = int(units[:, ROWS].max()) * group_heads
    floats = rows * (3 * head_dim + 2 * KEY_TILE + 2) + head_dim * KEY_TILE
    kept = (units, block_table, table, rope, inv_freq, layout)
    return Call(parameters, floats, _address(table.line), kept)


def warm_up(
    layout: Layout, query_heads: int, kv_heads: int, dtype: torch.dtype | None = None
) -> float:
    """Compile everything that `attend` needs for this layout, with tiny inputs.

    query_heads, kv_heads: of this rank; dtype: of query and output, the cache's by default. Returns
    the seconds it took: some 10 on the first start, whatever the layouts, below a second from the disk
    cache.
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


def _work(threads: int, floats: int) -> int:
    """Address of each thread's memory, kept between calls. Threads do not share cache lines."""
    global _workspace, _workspace_at
    if _workspace.shape[0] < threads or _workspace.shape[1] < floats:
        line = _ALIGNMENT // 4
        width = (floats + line - 1) // line * line
        memory = np.zeros(threads * width + line, np.float32)
        skip = -_address(memory) % _ALIGNMENT // 4
        _workspace = memory[skip : skip + threads * width].reshape(threads, width)
        _workspace_at = _address(_workspace)
    return _workspace_at


def _address(array: NDArray[Any]) -> int:
    return int(array.__array_interface__["data"][0])


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
    if query.dtype != output.dtype or query.dtype not in _CODES:
        raise EditError(f"query {query.dtype} and output {output.dtype} do not fit")
    for tensor in (query, output):
        if tensor.stride()[1:] != (head_dim, 1):
            raise EditError("heads and dimensions of query and output must be contiguous")
    if kv_cache.dtype != layout.dtype or kv_cache.shape[2:] != (layout.block_size, 2 * head_dim):
        raise EditError(f"KV cache {tuple(kv_cache.shape)} {kv_cache.dtype} is not of the layout")
    if kv_cache.stride()[2:] != (2 * head_dim, 1) or heads % kv_cache.shape[1]:
        raise EditError("pages must be contiguous and query heads a multiple of KV heads")
    if block_table.dtype != torch.int32 or block_table.stride(1) != 1:
        raise EditError(f"the block table must be int32 in rows, not {block_table.dtype}")


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
