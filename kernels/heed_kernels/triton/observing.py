"""Launches of the observations, and the search for keys among column sums."""

import math

import torch

from heed_kernels.edits import SOURCES, FindKeys
from heed_kernels.errors import EditError
from heed_kernels.ranges import PROBES
from heed_kernels.rope import Rope
from heed_kernels.segments import threshold_at
from heed_kernels.triton import layout as at
from heed_kernels.triton import shapes
from heed_kernels.triton.device_table import DeviceTable
from heed_kernels.triton.launch import check, check_reach
from heed_kernels.triton.observe import measure_rows, merge_measures, sum_columns
from heed_kernels.triton.step_work import StepWork, power

UNITS = int(at.COLUMN_UNIT.value)
"""Columns hold weights in units of one part in so many."""


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
    masses: torch.Tensor | None = None,
    places: torch.Tensor | None = None,
    *,
    everything: bool = False,
) -> None:
    """Measure the weights of `work`'s rows (see `StepWork.fill_observed`), before any transfer.

    log_sum_exp: float32 [tokens, local_query_heads], of the edited logits, -inf where a row sees no key;
    masses: float32 [tokens, local_query_heads, PROBES] of the table's observed key sets. Other rows stay
    as they are. places: int64 [slots, local_query_heads], the address of the columns of each head, int64 [as
    many keys as the rows see at least] in units of 1 / UNITS, to which the rows' weights are added; 0 where a
    head's are not wanted. Without masses, KV heads without columns cost nothing, and their log-sum-exp
    means nothing. everything: launch also what finds no work. The rest as in `attend`.
    """
    heads, head_dim = query.shape[1:]
    check(query, query, key_cache, key_cache, block_table, table, layer)
    if not (query.is_cuda and torch.cuda.is_current_stream_capturing()):
        check_reach(work, query, key_cache, block_table)
    if masses is None and places is None:
        raise EditError("neither masses nor columns are asked for")
    if log_sum_exp.shape != query.shape[:2] or not log_sum_exp.is_contiguous():
        raise EditError("the log-sum-exp must have the query's tokens and heads, contiguous")
    if masses is not None and (
        masses.shape != (*query.shape[:2], PROBES) or not masses.is_contiguous()
    ):
        raise EditError("masses must have the query's tokens and heads, contiguous")
    if places is not None and (
        places.shape != (table.table.slots, heads)
        or places.dtype != torch.int64
        or not places.is_contiguous()
    ):
        raise EditError("places of columns must be int64 [slots, heads], contiguous")
    kv_heads = key_cache.shape[2]
    group = heads // kv_heads
    _, capability = shapes.machine(query.device)
    most = work.programs
    dims, padded_group = shapes.padded(head_dim), power(group)
    tile_rows = max(16, power(work.tile_rows * group))
    scratch = work.scratch(head_dim, query.dtype)
    rotation = table.records if rope is None else table.rotation(rope, head_dim)
    # What a variant does not touch is given some address all the same.
    mass = log_sum_exp if masses is None else masses
    columns = work.buffer if places is None else places
    measures = work.measures(heads)
    tensors = (
        query, key_cache, key_cache, block_table, work.buffer, table.records, table.lines,
        table.vectors, table.found_at, rotation, scratch, log_sum_exp,
    )  # fmt: skip
    strides = query.stride(0), query.stride(1), *key_cache.stride()[:3], block_table.stride(0)
    sizes = table.words, table.table.layers, layer
    rest = len(key_cache), scale * math.log2(math.e)
    options = {
        "KV_HEADS": kv_heads, "GROUP": group, "GROUP_PADDED": padded_group, "HEAD_DIM": head_dim,
        "DIMS": dims, "BLOCK_SIZE": key_cache.shape[1], "TILE_ROWS": work.tile_rows,
        "ROTARY": rope is not None,
    }  # fmt: skip

    def launch(wave: int, units: int, rows: int, shape: shapes.Shape, *, split: bool) -> None:
        grid = (min(units * kv_heads, most),)
        numbers = *strides, *sizes, wave, *rest
        fixed = {
            **options, "ROWS": rows, "TILE": shape.tile, "SPLIT": split, "num_warps": shape.warps,
            "num_stages": shape.stages, "maxnreg": shape.registers,
        }  # fmt: skip
        measure_rows[grid](
            *tensors, mass, columns, measures, *numbers, **fixed, MASSES=masses is not None
        )
        if split:
            merge_measures[(min(max(work.rows, 1) * heads, 2 * most),)](
                work.buffer, measures, log_sum_exp, mass, wave, HEADS=heads, MASSES=masses is not None,
                num_warps=shapes.MERGE.warps, num_stages=shapes.MERGE.stages,
            )  # fmt: skip
        if places is not None:
            sum_columns[grid](*tensors, columns, *numbers, **fixed)

    if work.tiles or everything:
        shape = shapes.tile_shape(head_dim, query.dtype, capability)
        launch(0, max(work.tiles, 1), tile_rows, shape, split=False)
    shape = shapes.split_shape(head_dim, query.dtype)
    for wave in range(max(work.waves, int(everything))):
        splits = max(min(work.splits, work.capacity), 1)
        launch(wave, splits, max(16, padded_group), shape, split=True)


def find_keys(
    table: DeviceTable,
    slot: int,
    edit: FindKeys,
    lines: torch.Tensor,
    columns: torch.Tensor,
    rows_seen: int,
) -> None:
    """Write the slot's found keys, from the columns of the first `rows_seen` rows of the sequence.

    lines: int64 [lines], layer * local_query_heads + local query head; columns: int64 [lines, at least
    rows_seen], as `observe` leaves them for these. Everything stays on the device; equal columns find equal
    keys.
    """
    device = columns.device
    k = torch.arange(rows_seen, device=device)
    first, end = edit.rows.start, min(edit.rows.end, rows_seen)
    support = (end - k.clamp(min=first)).clamp(min=0)
    mean = columns[:, :rows_seen].double() / UNITS / support.clamp(min=1)
    flagged = (mean > threshold_at(edit, rows_seen)) & (support >= edit.least_rows)
    if edit.protect_first:
        flagged &= flagged.cumsum(dim=1) > 1
    for start, stop in edit.protected.ranges:
        flagged[:, start:stop] = False
    # A stable descending sort leaves the first of equal means in front.
    most = min(edit.most, SOURCES, rows_seen)
    best = mean.masked_fill(~flagged, -1.0).sort(dim=1, descending=True, stable=True).indices
    best = best[:, :most]
    taken = flagged.gather(1, best)
    kept = torch.where(taken, best, rows_seen).sort(dim=1).values
    found = found_lines(table, slot, kept, taken.sum(dim=1))
    table.found[slot].flatten(0, 1).index_copy_(0, lines, found)


def found_lines(
    table: DeviceTable, slot: int, keys: torch.Tensor, count: torch.Tensor
) -> torch.Tensor:
    """int32 [lines, FOUND_WORDS], as in `DeviceTable.found`, with the ranges in which the keys lie.

    keys: integers [lines, at most SOURCES], of which the first `count` [lines] hold, ascending.
    """
    record, most = table.records[slot], keys.shape[1]
    starts = record[at.RANGE_START.value : at.RANGE_BITS.value]
    unused = torch.arange(len(starts), device=keys.device) >= record[at.RANGE_COUNT.value]
    starts = starts.masked_fill(unused, torch.iinfo(torch.int32).max)
    found = torch.zeros(len(keys), at.FOUND_WORDS.value, dtype=torch.int32, device=keys.device)
    found[:, 0] = count
    found[:, 1 : 1 + most] = keys
    ranges = torch.searchsorted(starts, keys.int().contiguous(), right=True) - 1
    found[:, 1 + SOURCES : 1 + SOURCES + most] = ranges
    return found


class FoundOnDevice:
    """See `flags.FoundTable`: in the device's table, from which a replayed graph reads as well."""

    def __init__(self, table: DeviceTable) -> None:
        self._table = table

    def reserve(self, slot: int) -> None:
        """See `flags.FoundTable`."""
        self._table.reserve(slot)

    def write(self, slot: int, layer: int, keys: torch.Tensor, count: torch.Tensor) -> None:
        """See `flags.FoundTable`."""
        line = found_lines(self._table, slot, keys[None], count[None])
        found = self._table.found[slot][layer]
        found.copy_(line.expand(len(found), -1))


def on_found(found: torch.Tensor, columns: torch.Tensor) -> torch.Tensor:
    """int64 [lines], the columns of the found keys of each line, added up.

    found: int32 [lines, FOUND_WORDS]; columns: int64 [lines, keys], beyond every found key.
    """
    holds = torch.arange(SOURCES, device=found.device) < found[:, :1]
    keys = torch.where(holds, found[:, 1 : 1 + SOURCES], 0).long()
    return torch.where(holds, columns.gather(1, keys), 0).sum(dim=1)
