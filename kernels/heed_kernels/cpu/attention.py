"""Edited attention over the paged CPU cache."""

import time

import numpy as np
import torch

from heed_kernels.cpu import parameters as at
from heed_kernels.cpu.call import Call, call_key, check, check_reach
from heed_kernels.cpu.columns import ColumnSums
from heed_kernels.cpu.kernel import attend_thread
from heed_kernels.cpu.layout import Layout
from heed_kernels.cpu.moments import QueryMoments, Turns
from heed_kernels.cpu.observation import observe
from heed_kernels.edits import ALL_KEYS, HeadGain, HeadSet, ObserveColumns, ObserveMass, Rows
from heed_kernels.errors import EditError
from heed_kernels.evict import ExpectedScore
from heed_kernels.plan import ROWS, Plan
from heed_kernels.rope import Rope
from heed_kernels.table import EditTable


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
    int32 [requests, blocks of a request]; scale: on the logits; rope: needed by rolling positions
    and shifts. All on the CPU. Sums are float32. One call at a time in a process. Blocks of which a
    row's request sees no key are not read.

    Raises `EditError` when shapes or dtypes do not fit, or the plan reaches beyond a tensor.
    """
    work = plan.work(layer)
    if not len(work.items):
        return
    key = (
        output.shape, output.stride(), output.dtype,
        call_key(query, kv_cache, block_table, table, scale, rope, layout),
    )  # fmt: skip
    call = work.calls.get(key)
    if call is None:
        check(query, kv_cache, block_table, table, layout)
        if query.shape != output.shape or query.dtype != output.dtype:
            raise EditError(
                f"query {tuple(query.shape)} {query.dtype} and output {tuple(output.shape)}"
                f" {output.dtype} do not fit"
            )
        if output.stride()[1:] != (layout.head_dim, 1):
            raise EditError("heads and dimensions of the output must be contiguous")
        check_reach(work.items, query, kv_cache, block_table, layout, table, rope)
        vectors = int(work.units[:, ROWS].max()) * (query.shape[1] // kv_cache.shape[1])
        call = Call(work.units, vectors, query, kv_cache, block_table, table, scale, rope, layout)
        call.parameters[at.OUTPUT_STEP] = output.stride(0) * output.itemsize
        work.calls[key] = call
    call.parameters[at.OUTPUT] = output.data_ptr()
    call.run(attend_thread(), query, kv_cache, layer)


def warm_up(
    layout: Layout, query_heads: int, kv_heads: int, dtype: torch.dtype | None = None
) -> float:
    """Compile all that this package runs on this layout, with tiny inputs.

    query_heads, kv_heads: of this rank; dtype: of query and output, the cache's by default. Returns
    the seconds it took: some 12 on the first start, whatever the layouts, below a second from the disk
    cache.
    """
    began = time.perf_counter()
    dtype = dtype or layout.dtype
    table = EditTable(1, 1, query_heads, kv_heads, vector_capacity=16, line_capacity=4)
    on = HeadSet((1,))
    columns = ObserveColumns(on, Rows(), 0)
    table.insert([HeadGain(on, Rows(), 0.5, 0), columns, ObserveMass(on, Rows(), ALL_KEYS, 0)])
    zero = np.zeros(1, np.int64)
    plan = table.plan(zero, zero, zero + 1, zero, zero)
    query = torch.zeros(1, query_heads, layout.head_dim, dtype=dtype)
    pages = torch.zeros(1, kv_heads, layout.block_size, 2 * layout.head_dim, dtype=layout.dtype)
    blocks = torch.zeros(1, 1, dtype=torch.int32)
    output = torch.empty_like(query)
    attend(query, output, pages, blocks, table, plan, 0, 1.0, None, layout)
    observe(
        query, pages, blocks, table, plan.items(0), 0, 1.0, None, layout,
        [ColumnSums(table, 0, columns, 0, 1)],
    )  # fmt: skip
    QueryMoments(ExpectedScore(1, 0, 0.0, True), query_heads, layout.head_dim, Turns()).add(
        query, 0, Rope(np.ones(layout.head_dim // 2))
    )
    return time.perf_counter() - began
