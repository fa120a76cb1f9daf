"""Edited attention over a paged cache on a device: checks, and the launch of the kernels."""

import math
import time
from collections.abc import Sequence

import torch

from heed_kernels.errors import EditError
from heed_kernels.rope import Rope
from heed_kernels.triton import shapes
from heed_kernels.triton.device_table import DeviceTable
from heed_kernels.triton.score import score_tiles
from heed_kernels.triton.split import attend_splits, merge_splits
from heed_kernels.triton.step_work import StepWork, power
from heed_kernels.triton.tile import attend_tiles

DTYPES = (torch.float16, torch.bfloat16, torch.float32)
HEAD_DIMS = range(16, 257)
BLOCK_SIZES = range(16, 129)


def attend(
    query: torch.Tensor,
    output: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_table: torch.Tensor,
    table: DeviceTable,
    work: StepWork,
    layer: int,
    scale: float,
    rope: Rope | None,
    *,
    everything: bool | None = None,
) -> None:
    """Compute the rows that are edited in `layer` into `output`; other rows stay as they are.

    query, output: [tokens, local_query_heads, head_dim]; key_cache, value_cache: [blocks, block_size,
    local_kv_heads, head_dim], to which the step's keys and values are already written; the last stride
    of each is 1, all have one dtype: float32, bfloat16 or float16. block_table: int32 [requests,
    blocks of a request]; scale: on the logits; rope: needed by rolling positions and shifts. Sums are
    float32. everything: launch what any work of so many tokens could need, as a graph has to that is
    replayed with other work; by default while a CUDA graph is captured. Else launches without work are
    left out.

    Raises `EditError` when shapes or dtypes do not fit, or the work reaches beyond a tensor.
    """
    if everything is None:
        everything = query.is_cuda and torch.cuda.is_current_stream_capturing()
    check(query, output, key_cache, value_cache, block_table, table, layer)
    if not everything:
        check_reach(work, query, key_cache, block_table)
    _launch(
        query, output, key_cache, value_cache, block_table, table, work, layer, scale, rope,
        everything, everything or work.transfers,
    )  # fmt: skip


def _launch(
    query: torch.Tensor,
    output: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_table: torch.Tensor,
    table: DeviceTable,
    work: StepWork,
    layer: int,
    scale: float,
    rope: Rope | None,
    everything: bool,
    transfers: bool,
) -> None:
    """everything: launch what any work of this many tokens could need; transfers: the variants that can do
    mass transfers."""
    tokens, heads, head_dim = query.shape
    kv_heads = key_cache.shape[2]
    group = heads // kv_heads
    dims = shapes.padded(head_dim)
    rotation = table.records if rope is None else table.rotation(rope, head_dim)
    key, value, blocks = key_cache.stride(), value_cache.stride(), len(key_cache)
    logits = scale * math.log2(math.e)
    _, capability = shapes.machine(query.device)
    most = work.programs
    tiles = tokens if everything else work.tiles
    rows = max(16, power(work.tile_rows * group))
    scratch = work.scratch(head_dim, query.dtype)
    if tiles:
        scores, row_sums = work.scores(heads)
        shape = shapes.tile_shape(head_dim, query.dtype, capability)
        if transfers:
            score_tiles[(min(tiles * kv_heads, most),)](
                query, key_cache, value_cache, block_table,
                work.buffer, table.records, table.lines, table.vectors, table.found_at, rotation,
                scratch, scores, row_sums,
                query.stride(0), query.stride(1), key[0], key[1], key[2], value[0], value[1], value[2],
                block_table.stride(0), table.words, table.table.layers, layer, blocks, logits,
                KV_HEADS=kv_heads, GROUP=group, HEAD_DIM=head_dim, DIMS=dims,
                BLOCK_SIZE=key_cache.shape[1], TILE_ROWS=work.tile_rows, ROWS=rows,
                ROTARY=rope is not None,
                num_warps=shapes.SCORE.warps, num_stages=shapes.SCORE.stages,
            )  # fmt: skip
        attend_tiles[(min(tiles * kv_heads, most),)](
            query, output, key_cache, value_cache, block_table,
            work.buffer, table.records, table.lines, table.vectors, table.mix_heads, table.mixes,
            table.found_at, rotation, scratch, scores, row_sums,
            query.stride(0), query.stride(1), output.stride(0), output.stride(1),
            key[0], key[1], key[2], value[0], value[1], value[2],
            block_table.stride(0), table.words, table.table.layers, layer, blocks, logits,
            KV_HEADS=kv_heads, GROUP=group, GROUP_PADDED=power(group), HEAD_DIM=head_dim, DIMS=dims,
            BLOCK_SIZE=key_cache.shape[1], TILE_ROWS=work.tile_rows, ROWS=rows, TILE=shape.tile,
            ROTARY=rope is not None, TRANSFERS=transfers,
            num_warps=shape.warps, num_stages=shape.stages,
        )  # fmt: skip
    waves = work.waves_of(tokens) if everything else work.waves
    if not waves:
        return
    partial, sums = work.partial(heads, head_dim)
    shape = shapes.split_shape(head_dim, query.dtype)
    splits = work.capacity if everything else min(work.splits, work.capacity)
    for wave in range(waves):
        attend_splits[(min(splits * kv_heads, most),)](
            query, key_cache, value_cache, block_table,
            work.buffer, table.records, table.lines, table.vectors, table.found_at, rotation, scratch,
            partial, sums,
            query.stride(0), query.stride(1),
            key[0], key[1], key[2], value[0], value[1], value[2],
            block_table.stride(0), table.words, table.table.layers, layer, wave, blocks, logits,
            KV_HEADS=kv_heads, GROUP=group, GROUP_PADDED=power(group), HEAD_DIM=head_dim, DIMS=dims,
            BLOCK_SIZE=key_cache.shape[1], ROWS=max(16, power(group)), TILE=shape.tile,
            ROTARY=rope is not None, TRANSFERS=transfers,
            num_warps=shape.warps, num_stages=shape.stages, maxnreg=shape.registers,
        )  # fmt: skip
        merge_splits[(min((tokens if everything else work.rows) * heads, 2 * most),)](
            query, output, key_cache, value_cache, block_table,
            work.buffer, table.records, table.lines, table.vectors, table.factors, table.mix_heads,
            table.mixes, table.found_at, rotation, partial, sums,
            query.stride(0), query.stride(1), output.stride(0), output.stride(1),
            key[0], key[1], key[2], value[0], value[1], value[2],
            block_table.stride(0), table.words, table.table.layers, layer, wave, blocks, logits,
            KV_HEADS=kv_heads, GROUP=group, HEAD_DIM=head_dim, DIMS=dims,
            BLOCK_SIZE=key_cache.shape[1], ROTARY=rope is not None, TRANSFERS=transfers,
            num_warps=shapes.MERGE.warps, num_stages=shapes.MERGE.stages,
        )  # fmt: skip


def warm_up(
    table: DeviceTable,
    work: StepWork,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    *,
    dtype: torch.dtype,
    scale: float,
    ropes: Sequence[Rope | None],
) -> float:
    """Compile and load all that `attend` may launch on these caches, and copy the rotations.

    Call it while `work` is empty: nothing is computed. Returns the seconds it took.
    """
    began = time.perf_counter()
    heads, head_dim = table.table.local_query_heads, key_cache.shape[3]
    query = torch.zeros(1, heads, head_dim, dtype=dtype, device=table.device)
    blocks = torch.zeros(1, 1, dtype=torch.int32, device=table.device)
    work.fill(None)
    for rope in {id(rope): rope for rope in ropes}.values():
        check(query, query, key_cache, value_cache, blocks, table, 0)
        # A graph holds the variants with transfers; eager steps without any take the smaller ones.
        for transfers in (False, True):
            _launch(
                query, query, key_cache, value_cache, blocks, table, work, 0, scale, rope, True,
                transfers,
            )  # fmt: skip
    if table.device.type == "cuda":
        torch.cuda.synchronize(table.device)
    return time.perf_counter() - began


def check(
    query: torch.Tensor,
    output: torch.Tensor,
    key_cache: torch.Tensor,
    value_cache: torch.Tensor,
    block_table: torch.Tensor,
    table: DeviceTable,
    layer: int,
) -> None:
    """Raise `EditError` where tensors do not fit each other or the table."""
    heads, head_dim = table.table.local_query_heads, key_cache.shape[3]
    if query.shape != output.shape or query.shape[1:] != (heads, head_dim):
        raise EditError(
            f"query {tuple(query.shape)} and output {tuple(output.shape)} should be"
            f" [tokens, {heads}, {head_dim}]"
        )
    if key_cache.shape != value_cache.shape or heads % key_cache.shape[2]:
        raise EditError(
            f"caches {tuple(key_cache.shape)} and {tuple(value_cache.shape)} do not fit {heads} heads"
        )
    dtypes = {tensor.dtype for tensor in (query, output, key_cache, value_cache)}
    if len(dtypes) > 1 or query.dtype not in DTYPES:
        raise EditError(f"query, output and caches have the dtypes {sorted(map(str, dtypes))}")
    if any(tensor.stride(-1) != 1 for tensor in (query, output, key_cache, value_cache)):
        raise EditError("the dimensions of a head must be contiguous")
    if head_dim not in HEAD_DIMS or key_cache.shape[1] not in BLOCK_SIZES:
        raise EditError(f"heads of {head_dim} in blocks of {key_cache.shape[1]} cannot be computed")
    if block_table.dtype != torch.int32 or (
        block_table.shape[1] > 1 and block_table.stride(1) != 1
    ):
        raise EditError(f"the block table must be int32 in rows, not {block_table.dtype}")
    if not 0 <= layer < table.table.layers:
        raise EditError(f"layer {layer} is not one of the table's {table.table.layers}")
    if table.table.head_dim not in (None, head_dim):
        raise EditError(f"the table mixes vectors of {table.table.head_dim}, a head has {head_dim}")


def check_reach(
    work: StepWork, query: torch.Tensor, key_cache: torch.Tensor, block_table: torch.Tensor
) -> None:
    """Raise `EditError` where units lie outside of the tensors. Block ids on a device are not looked at:
    the kernels keep them within the cache."""
    tokens, rows, keys = work.reach
    if tokens > len(query):
        raise EditError(f"the work has {tokens} query tokens, the query {len(query)}")
    width = block_table.shape[1] * key_cache.shape[1]
    if rows > len(block_table) or keys > width:
        raise EditError(
            f"the work reaches row {rows - 1} and key {keys - 1}, beyond a block table of"
            f" {len(block_table)} rows of {width} keys"
        )
