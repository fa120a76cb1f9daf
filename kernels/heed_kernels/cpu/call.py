"""The call of compiled code: checks, the parameters that tensors and the edit table decide, memory."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.compiled import PHASES
from heed_kernels.cpu import parameters as at
from heed_kernels.cpu.kernel import run_threads
from heed_kernels.cpu.layout import Layout
from heed_kernels.cpu.product import multiply_add
from heed_kernels.cpu.runtime import choose_threads
from heed_kernels.cpu.tile import product, tile_logits
from heed_kernels.cpu.unit import begin
from heed_kernels.cpu.vector import BFLOAT16, FLOAT16, FLOAT32
from heed_kernels.errors import EditError
from heed_kernels.plan import BLOCK_TABLE_ROW, FIRST_POSITION, FIRST_TOKEN, ROWS, SLOT
from heed_kernels.rope import Rope
from heed_kernels.table import EditTable

CODES = {torch.float32: FLOAT32, torch.bfloat16: BFLOAT16, torch.float16: FLOAT16}
_ALIGNMENT = 64
_NO_ROTATION = np.zeros(1)
_workspace = np.zeros((0, 0), np.float32)
_workspace_at = 0


class Call:
    """What calls of compiled code with the same units and the same kind of tensors have in common.

    units: int32 [units, 5 and more]; vectors: rows times query heads of the largest one.
    parameters: int64 [PARAMETERS], see `parameters`. `kept` holds what its addresses point into.
    """

    def __init__(
        self,
        units: NDArray[np.int32],
        vectors: int,
        query: torch.Tensor,
        kv_cache: torch.Tensor,
        block_table: torch.Tensor,
        table: EditTable,
        scale: float,
        rope: Rope | None,
        layout: Layout,
    ) -> None:
        head_dim = layout.head_dim
        group_heads = table.local_query_heads // kv_cache.shape[1]
        inv_freq = _NO_ROTATION if rope is None else np.ascontiguousarray(rope.inv_freq, np.float64)
        values = {
            at.QUERY_STEP: query.stride(0) * query.itemsize,
            at.QUERY_TYPE: CODES[query.dtype],
            at.BLOCK_STEP: kv_cache.stride(0) * kv_cache.itemsize,
            at.HEAD_STEP: kv_cache.stride(1) * kv_cache.itemsize,
            at.CACHE_TYPE: CODES[kv_cache.dtype],
            at.BLOCK_TABLE: block_table.data_ptr(),
            at.BLOCK_TABLE_STEP: block_table.stride(0) * 4,
            at.BLOCK_SIZE: layout.block_size,
            at.UNITS: address(units),
            at.UNIT_COUNT: len(units),
            at.KV_HEADS: kv_cache.shape[1],
            at.GROUP_HEADS: group_heads,
            at.HEAD_DIM: head_dim,
            at.KEY_ROW: layout.key_row,
            at.VALUE_ROW: layout.value_row,
            at.KEY_OFFSET: address(layout.key_offset),
            at.VALUE_OFFSET: address(layout.value_offset),
            at.PHASE_START: address(table.phase_start),
            at.RANGE_COUNT: address(table.range_count),
            at.RANGE_START: address(table.range_start),
            at.RANGE_GROUP: address(table.range_group),
            at.RANGE_SHIFT: address(table.range_shift),
            at.RANGE_VISIBLE: address(table.range_visible),
            at.RANGE_CLASS: address(table.range_class),
            at.VISIBLE: address(table.visible),
            at.TRAILING: address(table.trailing),
            at.LINE_STEP: table.line.strides[0],
            at.LINES: address(table.lines.rows),
            at.VECTORS: address(table.vectors.rows),
            at.LOCAL_HEADS: table.local_query_heads,
            at.SOURCE_COUNT: address(table.source_count),
            at.SOURCE_KEYS: address(table.source_keys),
            at.SOURCE_RANGE: address(table.source_range),
            at.FOUND_COUNT: address(table.found_count),
            at.FOUND_KEYS: address(table.found_keys),
            at.FOUND_RANGE: address(table.found_range),
            at.KEPT: address(table.kept),
            at.EVICTED_END: address(table.evicted_end),
            at.LAYERS: table.layers,
            at.MIX_HEADS: address(table.mix_heads.rows),
            at.MIXES: address(table.mixes.rows),
            at.INV_FREQ: address(inv_freq),
            at.HALF_ROTARY: 0 if rope is None else len(inv_freq),
            at.INTERLEAVED: rope is not None and rope.interleaved,
            at.MULTIPLY_ADD: multiply_add(),
            at.PRODUCT: product(),
            at.BEGIN: begin(),
            at.TILE: tile_logits(),
        }
        self.parameters = np.zeros(at.PARAMETERS, np.int64)
        self.parameters[list(values)] = list(values.values())
        self.parameters.view(np.float64)[at.SCALE_BITS] = scale
        self.floats = at.thread_floats(vectors, head_dim)
        self.lines_at = address(table.line)
        self.address = address(self.parameters)
        self.kept = (units, block_table, table, rope, inv_freq, layout)

    def run(self, function: int, query: torch.Tensor, kv_cache: torch.Tensor, layer: int) -> None:
        """Run the compiled `function` on all threads for a layer."""
        threads = choose_threads()
        parameters = self.parameters
        parameters[at.QUERY], parameters[at.CACHE] = query.data_ptr(), kv_cache.data_ptr()
        parameters[at.LINE] = self.lines_at + layer * 4 * PHASES
        parameters[at.LAYER] = layer
        parameters[at.WORK] = _work(threads, self.floats)
        parameters[at.WORK_STEP] = _workspace.strides[0]
        parameters[at.TAKEN] = 0
        run_threads(function, self.address, threads)


def _work(threads: int, floats: int) -> int:
    """Address of each thread's memory, kept between calls. Threads do not share cache lines."""
    global _workspace, _workspace_at
    if _workspace.shape[0] < threads or _workspace.shape[1] < floats:
        line = _ALIGNMENT // 4
        width = (floats + line - 1) // line * line
        memory = np.zeros(threads * width + line, np.float32)
        skip = -address(memory) % _ALIGNMENT // 4
        _workspace = memory[skip : skip + threads * width].reshape(threads, width)
        _workspace_at = address(_workspace)
    return _workspace_at


def address(array: NDArray[Any]) -> int:
    """Address of an array's first element."""
    return int(array.__array_interface__["data"][0])


def call_key(
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    table: EditTable,
    scale: float,
    rope: Rope | None,
    layout: Layout,
) -> tuple[object, ...]:
    """All that the checks and a `Call` look at: where it is equal, what was made for one layer is good for
    another. `Call.kept` keeps identities and addresses in use."""
    return (
        query.shape, query.stride(), query.dtype, kv_cache.shape, kv_cache.stride(), kv_cache.dtype,
        block_table.data_ptr(), block_table.shape, id(table), scale, id(rope), id(layout),
    )  # fmt: skip


def check(
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    table: EditTable,
    layout: Layout,
) -> None:
    """Raise `EditError` unless shapes, dtypes and strides fit each other."""
    heads, head_dim = table.local_query_heads, layout.head_dim
    if query.shape[1:] != (heads, head_dim):
        raise EditError(f"query {tuple(query.shape)} should be [tokens, {heads}, {head_dim}]")
    if query.dtype not in CODES:
        raise EditError(f"a query of {query.dtype} cannot be read")
    if query.stride()[1:] != (head_dim, 1):
        raise EditError("heads and dimensions of the query must be contiguous")
    if kv_cache.dtype != layout.dtype or kv_cache.shape[2:] != (layout.block_size, 2 * head_dim):
        raise EditError(f"KV cache {tuple(kv_cache.shape)} {kv_cache.dtype} is not of the layout")
    if kv_cache.stride()[2:] != (2 * head_dim, 1) or heads % kv_cache.shape[1]:
        raise EditError("pages must be contiguous and query heads a multiple of KV heads")
    if block_table.dtype != torch.int32 or block_table.stride(1) != 1:
        raise EditError(f"the block table must be int32 in rows, not {block_table.dtype}")
    if table.head_dim not in (None, head_dim):
        raise EditError(f"mixed-in vectors have {table.head_dim} dimensions, a head {head_dim}")


def check_reach(
    items: NDArray[np.int32],
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    layout: Layout,
    table: EditTable,
    rope: Rope | None,
) -> None:
    """Raise `EditError` where the compiled code, which checks no index, would reach outside.

    items: int32 [items, 5], see `Pattern.items`.
    """
    blocks = -(-(items[:, FIRST_POSITION] + items[:, ROWS]) // layout.block_size)
    rows, slots = items[:, BLOCK_TABLE_ROW], items[:, SLOT]
    if (items[:, FIRST_TOKEN] + items[:, ROWS]).max() > len(query):
        raise EditError("the plan has more query tokens than the query")
    if rows.max() >= block_table.shape[0] or blocks.max() > block_table.shape[1]:
        raise EditError("the plan reaches beyond the block table")
    ids = block_table.numpy()[rows, : blocks.max()]
    ids = np.where(np.arange(ids.shape[1]) < blocks[:, None], ids, 0)
    if ids.min() < 0 or ids.max() >= len(kv_cache):
        raise EditError("the block table names blocks that the cache does not have")
    if table.evicting[slots].any() and kv_cache.shape[1] != table.local_kv_heads:
        raise EditError(f"the cache has {kv_cache.shape[1]} KV heads, not {table.local_kv_heads}")
    if (items[:, FIRST_POSITION] < table.evicted_end[slots]).any():
        raise EditError("rows before an eviction cannot be computed after it")
    if rope is None and table.visible[slots, 2].any():
        raise EditError("rolling positions need the model's rotary embedding")
    if rope is None and any(
        table.range_shift[slot, : table.range_count[slot]].any() for slot in np.unique(slots)
    ):
        raise EditError("shifted ranges need the model's rotary embedding")
    if rope is not None and rope.rotary_dim > layout.head_dim:
        raise EditError(f"{rope.rotary_dim} dimensions rotate, a head has {layout.head_dim}")
