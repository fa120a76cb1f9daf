"""Launches of the observations, and the search for keys among column sums."""

import math

import torch

from heed_kernels.edits import SOURCES, FindKeys
from heed_kernels.errors import EditError
from heed_kernels.rope import Rope
from heed_kernels.segments import threshold_at
from heed_kernels.triton import layout as at
from heed_kernels.triton import shapes
from heed_kernels.triton.device_table import DeviceTable
from heed_kernels.triton.launch import check, check_reach, machine, power
from heed_kernels.triton.observe import measure_tiles, sum_columns
from heed_kernels.triton.sources import CHUNK
from heed_kernels.triton.step_work import StepWork


def observe(
    query: torch.Tensor,
    key_cache: torch.Tensor,
    block_table: torch.Tensor,
    table: DeviceTable,
    work: StepWork,
    layer: int,
    scale: float,
    rope: Rope | None,
    log_sum_exp: torch.Tensor,
    masses: torch.Tensor,
    columns: torch.Tensor | None = None,
    column_lines: torch.Tensor | None = None,
    chosen: torch.Tensor | None = None,
) -> None:
    """Measure the weights of `work`'s rows (see `StepWork.fill_observed`), before any transfer.

    log_sum_exp: float32 [tokens, local_query_heads], of the edited logits, -inf where a row sees no key;
    masses: float32 [tokens, local_query_heads, PROBES] of the table's observed key sets. Other rows stay
    as they are. columns: int64 [lines, local_query_heads, keys] in units of 2^-31, to which the rows'
    weights are added; column_lines: int32 [slots], the line of each slot or -1; chosen: int32
    [slots, local_query_heads], 0 where a head's columns are not wanted. The rest as in `attend`.
    """
    heads, head_dim = query.shape[1:]
    check(query, query, key_cache, key_cache, block_table, table, layer)
    if not (query.is_cuda and torch.cuda.is_current_stream_capturing()):
        check_reach(work, query, key_cache, block_table)
    if log_sum_exp.shape != query.shape[:2] or masses.shape != (*query.shape[:2], 4):
        raise EditError("log-sum-exp or masses do not have the query's tokens and heads")
    if not (log_sum_exp.is_contiguous() and masses.is_contiguous()):
        raise EditError("log-sum-exp and masses must be contiguous")
    kv_heads = key_cache.shape[2]
    group = heads // kv_heads
    processors, capability = machine(query.device)
    programs = processors * shapes.PROGRAMS
    rows = max(16, power(work.tile_rows * group))
    dims = shapes.padded(head_dim)
    scratch = work.scratch(programs, rows + CHUNK.value, dims, query.dtype)
    rotation = table.records if rope is None else table.rotation(rope, head_dim)
    shape = shapes.tile_shape(head_dim, query.dtype, capability)
    tensors = (
        query, key_cache, key_cache, block_table, work.buffer, table.records, table.lines,
        table.vectors, table.found, rotation, scratch, log_sum_exp,
    )  # fmt: skip
    numbers = (
        query.stride(0), query.stride(1), *key_cache.stride()[:3], block_table.stride(0), table.words,
        table.table.layers, layer, len(key_cache),
    )  # fmt: skip
    options = {
        "KV_HEADS": kv_heads, "GROUP": group, "GROUP_PADDED": power(group), "HEAD_DIM": head_dim,
        "DIMS": dims, "BLOCK_SIZE": key_cache.shape[1], "TILE_ROWS": work.tile_rows, "ROWS": rows,
        "TILE": shape.tile, "ROTARY": rope is not None, "num_warps": shape.warps,
        "num_stages": shape.stages,
    }  # fmt: skip
    logits = scale * math.log2(math.e)
    measure_tiles[(programs,)](*tensors, masses, *numbers, logits, **options)
    if columns is not None:
        if column_lines is None or chosen is None or not columns.is_contiguous():
            raise EditError("columns must be contiguous, with their lines and heads")
        sum_columns[(programs,)](
            *tensors, columns, column_lines, chosen, *numbers, columns.shape[2], logits, **options
        )


def find_keys(
    table: DeviceTable, slot: int, layer: int, edit: FindKeys, columns: torch.Tensor, keys: int
) -> None:
    """Write the slot's found keys in `layer`, from the columns of all rows of the sequence so far.

    columns: int64 [local_query_heads, at least `keys`], as `observe` leaves them. Everything stays on
    the device; equal columns find equal keys.
    """
    if not table.find:
        raise EditError("no room was set aside for keys that are found on the device")
    device = columns.device
    k = torch.arange(keys, device=device)
    first, end = edit.rows.start, min(edit.rows.end, keys)
    support = (end - k.clamp(min=first)).clamp(min=0)
    mean = columns[:, :keys].double() / 2.0**31 / support.clamp(min=1)
    flagged = (mean > threshold_at(edit, keys)) & (support >= edit.least_rows)
    if edit.protect_first:
        flagged &= flagged.cumsum(dim=1) > 1
    for start, stop in edit.protected.ranges:
        flagged[:, start:stop] = False
    start = table.table.head_start
    on = [edit.on.masks[layer] >> (start + h) & 1 for h in range(len(columns))]
    flagged &= torch.tensor(on, dtype=torch.bool, device=device)[:, None]
    # A stable descending sort leaves the first of equal means in front.
    most = min(edit.most, SOURCES, keys)
    best = mean.masked_fill(~flagged, -1.0).sort(dim=1, descending=True, stable=True).indices
    best = best[:, :most]
    taken = flagged.gather(1, best)
    kept = torch.where(taken, best, keys).sort(dim=1).values
    record = table.records[slot]
    starts = record[at.RANGE_START.value : at.RANGE_BITS.value]
    unused = torch.arange(len(starts), device=device) >= record[at.RANGE_COUNT.value]
    starts = starts.masked_fill(unused, torch.iinfo(torch.int32).max)
    ranges = torch.searchsorted(starts, kept.int().contiguous(), right=True) - 1
    found = table.found[slot, layer]
    found.zero_()
    found[:, 0] = taken.sum(dim=1)
    found[:, 1 : 1 + most] = kept.int()
    found[:, 1 + SOURCES : 1 + SOURCES + most] = ranges.int()
