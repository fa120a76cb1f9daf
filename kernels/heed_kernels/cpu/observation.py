"""What edits observe, on the CPU: masses, column sums, and the keys that are found by them.

Within one forward of a layer, before `attend` and after the step's keys are in the cache:

    seen = observe(query, kv_cache, block_table, table, items, layer, scale, rope, layout, [columns])
    find_keys(table, slot, layer, edit, columns.sums, rows_seen)

or `add_columns` where nothing but the sums is wanted. `columns` is kept from chunk to chunk of a
prompt; its sums do not depend on how it was cut. `search.KeySearch` does all of it for a request.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from heed_kernels.cpu import parameters as at
from heed_kernels.cpu.call import Call, address, check, check_reach
from heed_kernels.cpu.layout import Layout
from heed_kernels.cpu.observe_kernel import ONE_FIXED, observe_thread
from heed_kernels.edits import SOURCES, FindKeys, ObserveColumns
from heed_kernels.errors import EditError
from heed_kernels.plan import FIRST_POSITION, ROWS, SLOT, TILE_ROWS, Pattern
from heed_kernels.ranges import PROBE, PROBES
from heed_kernels.rope import Rope
from heed_kernels.segments import threshold_at
from heed_kernels.table import EditTable


class ColumnSums:
    """Column sums of one request, layer and observation, while its rows come in.

    sums: int64 [local_query_heads, capacity], in units of 2^-40; heads that are not observed stay 0.
    A weight is rounded to the nearest unit, so a sum over n rows is within n * 2^-41 of the sum of the
    weights; 2^23 - 1 rows of weight 1 fit.
    """

    def __init__(
        self,
        table: EditTable,
        slot: int,
        edit: ObserveColumns | FindKeys,
        layer: int,
        capacity: int,
    ) -> None:
        """capacity: most keys that will be seen."""
        self.slot, self.edit = slot, edit
        self.sums = np.zeros((table.local_query_heads, capacity), np.int64)
        own = edit.on.masks[layer] >> table.head_start
        self.heads = np.array([own >> h & 1 for h in range(table.local_query_heads)], np.uint8)

    def as_float(self) -> NDArray[np.float64]:
        """float64 [local_query_heads, capacity], in units of weight."""
        return column_weights(self.sums)


@dataclass(frozen=True)
class Observed:
    """Of the tokens of a step, with all edits but the mass transfer; NaN where none was observed.

    log_sum_exp: float32 [tokens, local_query_heads], of the logits; -inf where no key is seen.
    mass: float32 [tokens, local_query_heads, PROBES], of the request's observed key sets in the order
        in which they were first asked for; 0 for sets that it does not have.
    """

    log_sum_exp: NDArray[np.float32]
    mass: NDArray[np.float32]


def column_weights(sums: NDArray[np.int64]) -> NDArray[np.float64]:
    """Fixed-point column sums in units of weight."""
    return sums / ONE_FIXED


def weight_of(units: int) -> float:
    """As `column_weights`, for a sum over several columns: one of any size."""
    return units / ONE_FIXED


def observe(
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    table: EditTable,
    items: ArrayLike,
    layer: int,
    scale: float,
    rope: Rope | None,
    layout: Layout,
    columns: Sequence[ColumnSums] = (),
) -> Observed:
    """Observe the rows of some requests in this step, and add to `columns` the rows that they want.

    items: int32 [items, 5], slot, first query token, rows, first position, block-table row, as in
    `Pattern.items`; the rest as for `attend`. Every row must be given once: sums count what they see.

    Raises `EditError` when shapes or dtypes do not fit, or a tensor or `columns` is too small.
    """
    given = np.array(items, np.int32).reshape(-1, 5)
    call = _prepared(query, kv_cache, block_table, table, given, scale, rope, layout)
    tokens, heads = query.shape[:2]
    slots = given[:, SLOT]
    probed = any(
        table.range_class[slot, : table.range_count[slot]].max() >= PROBE for slot in set(slots)
    )
    result = Observed(
        np.full((tokens, heads), np.nan, np.float32),
        np.full((tokens, heads, PROBES), np.nan if probed else 0, np.float32),
    )
    call.parameters[at.LOG_SUM_EXP] = address(result.log_sum_exp)
    call.parameters[at.MASS] = address(result.mass) if probed else 0
    _run(call, given, columns, query, kv_cache, layer)
    return result


def add_columns(
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    table: EditTable,
    items: ArrayLike,
    layer: int,
    scale: float,
    rope: Rope | None,
    layout: Layout,
    columns: Sequence[ColumnSums],
    calls: dict[object, Call] | None = None,
) -> None:
    """As `observe`, for the column sums alone: KV heads of which `columns` want no query head cost nothing.

    calls: what layers of the same step have checked and prepared, to be used by its later ones.
    """
    given = np.array(items, np.int32).reshape(-1, 5)
    # All that the checks and the call look at; `Call.kept` keeps identities and addresses in use.
    key = (
        given.tobytes(), query.shape, query.stride(), query.dtype, kv_cache.shape, kv_cache.stride(),
        kv_cache.dtype, block_table.data_ptr(), block_table.shape, id(table), scale, id(rope),
        id(layout),
    )  # fmt: skip
    call = calls.get(key) if calls is not None else None
    if call is None:
        call = _prepared(query, kv_cache, block_table, table, given, scale, rope, layout)
        if calls is not None:
            calls[key] = call
    _run(call, given, columns, query, kv_cache, layer)


def _prepared(
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    table: EditTable,
    given: NDArray[np.int32],
    scale: float,
    rope: Rope | None,
    layout: Layout,
) -> Call:
    """The call, once everything it is given has been checked; it measures nothing yet."""
    slots = given[:, SLOT]
    if not len(given) or given.min() < 0 or given[:, ROWS].min() < 1:
        raise EditError("there are no rows to observe, or negative numbers")
    if slots.max() >= table.slots or not table.occupied[slots].all():
        raise EditError("rows of a slot that is not occupied cannot be observed")
    check(query, kv_cache, block_table, table, layout)
    check_reach(given, query, kv_cache, block_table, layout, table, rope)
    group_heads = query.shape[1] // kv_cache.shape[1]
    units = Pattern(given, np.zeros(0, bool), max(1, TILE_ROWS // group_heads)).units
    call = Call(units, query, kv_cache, block_table, table, scale, rope, layout)
    keys = int((given[:, FIRST_POSITION] + given[:, ROWS]).max())
    call.floats += at.kept_floats(int(units[:, ROWS].max()) * group_heads, keys)
    return call


def _run(
    call: Call,
    given: NDArray[np.int32],
    columns: Sequence[ColumnSums],
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    layer: int,
) -> None:
    ends, heads = given[:, FIRST_POSITION] + given[:, ROWS], query.shape[1]
    targets = np.zeros((len(columns), at.TARGET_FIELDS), np.int64)
    for line, target in zip(targets, columns, strict=True):
        keys = int(ends[given[:, SLOT] == target.slot].max(initial=0))
        if target.sums.shape[0] != heads or target.sums.shape[1] < keys:
            raise EditError(
                f"column sums {target.sums.shape} are too small for {heads} heads and {keys} keys"
            )
        line[at.TARGET_SLOT] = target.slot
        line[at.TARGET_SUMS], line[at.TARGET_STEP] = address(target.sums), target.sums.strides[0]
        line[at.TARGET_FIRST], line[at.TARGET_END] = target.edit.rows.start, target.edit.rows.end
        line[at.TARGET_HEADS] = address(target.heads)
    call.parameters[at.TARGETS], call.parameters[at.TARGET_COUNT] = address(targets), len(columns)
    call.run(observe_thread(), query, kv_cache, layer)


def find_keys(
    table: EditTable,
    slot: int,
    layer: int,
    edit: FindKeys,
    columns: NDArray[np.int64],
    rows_seen: int,
) -> None:
    """Write what `edit` finds in `layer` to the table's found keys, as `reference.found_keys` defines.

    columns: int64 [local_query_heads, at least rows_seen], `ColumnSums.sums` over the request's
    first `rows_seen` rows.
    """
    key = np.arange(rows_seen)
    end = min(edit.rows.end, rows_seen)
    support = np.maximum(end - np.maximum(key, edit.rows.start), 0)  # rows that see each key
    mean = column_weights(columns[:, :rows_seen]) / np.maximum(support, 1)
    threshold = threshold_at(edit, rows_seen)
    protected = np.zeros(rows_seen, bool)
    for first, after in edit.protected.ranges:
        protected[first:after] = True
    count = table.range_count[slot]
    for local in range(table.local_query_heads):
        if not edit.on.masks[layer] >> (table.head_start + local) & 1:
            table.found_count[slot, layer, local] = 0
            continue
        above = (mean[local] > threshold) & (support >= edit.least_rows)
        flagged = np.flatnonzero(above)[1 if edit.protect_first else 0 :]
        flagged = flagged[~protected[flagged]]
        order = np.argsort(-mean[local, flagged], kind="stable")
        kept = np.sort(flagged[order[: min(edit.most, SOURCES)]])
        table.found_count[slot, layer, local] = len(kept)
        table.found_keys[slot, layer, local, : len(kept)] = kept
        table.found_range[slot, layer, local, : len(kept)] = (
            np.searchsorted(table.range_start[slot, :count], kept, side="right") - 1
        )
