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
from heed_kernels.plan import FIRST_POSITION, ROWS, SLOT, TILE_ROWS, row_tiles
from heed_kernels.ranges import PROBE, PROBES
from heed_kernels.rope import Rope
from heed_kernels.segments import threshold_at
from heed_kernels.table import EditTable


class ColumnSums:
    """Column sums of one request, layer and observation, while its rows come in.

    heads: int64 [heads], the local query heads that are observed, ascending.
    sums: int64 [heads, capacity], a line for each of them, in units of 2^-40. A weight is rounded to the
    nearest unit, so a sum over n rows is within n * 2^-41 of the sum of the weights; 2^23 - 1 rows of
    weight 1 fit.
    lines: int32 [local_query_heads], the line of each head, -1 for those that are not observed.
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
        self.heads = table.own_heads(edit.on, layer)
        self.sums = np.zeros((len(self.heads), capacity), np.int64)
        self.lines = np.full(table.local_query_heads, -1, np.int32)
        self.lines[self.heads] = np.arange(len(self.heads))

    def grow(self, keys: int) -> None:
        """Make room for at least so many keys."""
        have = self.sums.shape[1]
        if have < keys:
            self.sums = np.pad(self.sums, ((0, 0), (0, keys - have)))

    def weights_at(self, places: NDArray[np.int64]) -> NDArray[np.float64]:
        """float64 [heads, places], in units of weight."""
        return column_weights(self.sums[:, places])

    def keep(self, heads: slice, places: NDArray[np.int64]) -> None:
        """What some lines have at `places` moves to their first places."""
        for sums in self.sums[heads]:
            sums[: len(places)] = sums[places]

    def as_float(self) -> NDArray[np.float64]:
        """float64 [heads, capacity], in units of weight."""
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
    given = _checked(query, kv_cache, block_table, table, items, rope, layout)
    tokens, heads = query.shape[:2]
    slots = given[:, SLOT]
    probed = any(
        table.range_class[slot, : table.range_count[slot]].max() >= PROBE for slot in set(slots)
    )
    result = Observed(
        np.full((tokens, heads), np.nan, np.float32),
        np.full((tokens, heads, PROBES), np.nan if probed else 0, np.float32),
    )
    whole = head_runs(np.ones(heads, bool), heads // kv_cache.shape[1])
    units = _units(given, [whole] * len(given))
    call = _call(units, query, kv_cache, block_table, table, scale, rope, layout)
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
    """As `observe`, for the column sums alone: query heads that `columns` do not want cost nothing.

    calls: what layers of the same step have checked and prepared, to be used by its later ones.
    """
    given = np.array(items, np.int32).reshape(-1, 5)
    wanted = np.zeros((table.slots, query.shape[1]), bool)
    for target in columns:
        wanted[target.slot, target.heads] = True
    if not wanted.any():
        return
    # All that the checks and the call look at; `Call.kept` keeps identities and addresses in use.
    key = (
        given.tobytes(), wanted.tobytes(), query.shape, query.stride(), query.dtype, kv_cache.shape,
        kv_cache.stride(), kv_cache.dtype, block_table.data_ptr(), block_table.shape, id(table), scale,
        id(rope), id(layout),
    )  # fmt: skip
    call = calls.get(key) if calls is not None else None
    if call is None:
        _checked(query, kv_cache, block_table, table, given, rope, layout)
        group_heads = query.shape[1] // kv_cache.shape[1]
        units = _units(given, [head_runs(wanted[slot], group_heads) for slot in given[:, SLOT]])
        call = _call(units, query, kv_cache, block_table, table, scale, rope, layout)
        if calls is not None:
            calls[key] = call
    _run(call, given, columns, query, kv_cache, layer)


def head_runs(wanted: NDArray[np.bool_], group_heads: int) -> NDArray[np.int32]:
    """int32 [runs, 2]: first and number of neighbouring wanted query heads that share a KV head.

    wanted: [query_heads].
    """
    edges = np.pad(wanted.reshape(-1, group_heads), ((0, 0), (1, 1))).astype(np.int8)
    steps = np.diff(edges, axis=1)
    group, first = np.nonzero(steps == 1)
    end = np.nonzero(steps == -1)[1]
    return np.column_stack([group * group_heads + first, end - first]).astype(np.int32)


def _units(items: NDArray[np.int32], runs: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
    """int32 [units, 7]: each item cut into tiles, once for each of its runs of heads, which is written behind
    it. Tiles have as many vectors whatever the run, so that a key is read for as many of them."""
    item = np.repeat(np.arange(len(items)), [len(each) for each in runs])
    with_heads = np.column_stack([items[item], np.concatenate(runs)])
    return row_tiles(with_heads, np.maximum(1, TILE_ROWS // with_heads[:, -1]))


def _checked(
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    table: EditTable,
    items: ArrayLike,
    rope: Rope | None,
    layout: Layout,
) -> NDArray[np.int32]:
    """`items` as int32 [items, 5], once everything but the columns has been checked."""
    given = np.array(items, np.int32).reshape(-1, 5)
    slots = given[:, SLOT]
    if not len(given) or given.min() < 0 or given[:, ROWS].min() < 1:
        raise EditError("there are no rows to observe, or negative numbers")
    if slots.max() >= table.slots or not table.occupied[slots].all():
        raise EditError("rows of a slot that is not occupied cannot be observed")
    check(query, kv_cache, block_table, table, layout)
    check_reach(given, query, kv_cache, block_table, layout, table, rope)
    return given


def _call(
    units: NDArray[np.int32],
    query: torch.Tensor,
    kv_cache: torch.Tensor,
    block_table: torch.Tensor,
    table: EditTable,
    scale: float,
    rope: Rope | None,
    layout: Layout,
) -> Call:
    """units: see `_units`. The call measures nothing yet."""
    vectors = int((units[:, ROWS] * units[:, -1]).max())
    keys = int((units[:, FIRST_POSITION] + units[:, ROWS]).max())
    call = Call(units, vectors, query, kv_cache, block_table, table, scale, rope, layout)
    call.floats += at.kept_floats(vectors, keys)
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
        if len(target.lines) != heads or target.sums.shape[1] < keys:
            raise EditError(
                f"column sums {target.sums.shape} of {len(target.lines)} heads are too small for "
                f"{heads} heads and {keys} keys"
            )
        line[at.TARGET_SLOT] = target.slot
        line[at.TARGET_SUMS], line[at.TARGET_STEP] = address(target.sums), target.sums.strides[0]
        line[at.TARGET_FIRST], line[at.TARGET_END] = target.edit.rows.start, target.edit.rows.end
        line[at.TARGET_LINES] = address(target.lines)
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

    columns: int64 [heads, at least rows_seen], `ColumnSums.sums` over the request's first `rows_seen`
    rows: a line for each of the heads that `edit` names.
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
    table.found_count[slot, layer] = 0
    for own, local in zip(mean, table.own_heads(edit.on, layer), strict=True):
        above = (own > threshold) & (support >= edit.least_rows)
        flagged = np.flatnonzero(above)[1 if edit.protect_first else 0 :]
        flagged = flagged[~protected[flagged]]
        order = np.argsort(-own[flagged], kind="stable")
        kept = np.sort(flagged[order[: min(edit.most, SOURCES)]])
        table.found_count[slot, layer, local] = len(kept)
        table.found_keys[slot, layer, local, : len(kept)] = kept
        table.found_range[slot, layer, local, : len(kept)] = (
            np.searchsorted(table.range_start[slot, :count], kept, side="right") - 1
        )
