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
from heed_kernels.cpu.call import address
from heed_kernels.cpu.columns import ColumnSums, column_weights, targets_of
from heed_kernels.cpu.layout import Layout
from heed_kernels.cpu.observation_call import ObservationCall
from heed_kernels.edits import SOURCES, FindKeys
from heed_kernels.plan import SLOT
from heed_kernels.ranges import PROBE, PROBES
from heed_kernels.rope import Rope
from heed_kernels.segments import threshold_at
from heed_kernels.table import EditTable


@dataclass(frozen=True)
class Observed:
    """Of the tokens of a step, with all edits but the mass transfer; NaN where none was observed.

    log_sum_exp: float32 [tokens, local_query_heads], of the logits; -inf where no key is seen.
    mass: float32 [tokens, local_query_heads, PROBES], of the request's observed key sets in the order
        in which they were first asked for; 0 for sets that it does not have.
    """

    log_sum_exp: NDArray[np.float32]
    mass: NDArray[np.float32]


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
    tokens, heads = query.shape[:2]
    given = np.array(items, np.int32).reshape(-1, 5)
    every = np.ones((len(given), heads), bool)
    call = ObservationCall(query, kv_cache, block_table, table, given, every, scale, rope, layout)
    probed = any(
        table.range_class[slot, : table.range_count[slot]].max() >= PROBE
        for slot in set(given[:, SLOT])
    )
    result = Observed(
        np.full((tokens, heads), np.nan, np.float32),
        np.full((tokens, heads, PROBES), np.nan if probed else 0, np.float32),
    )
    call.parameters[at.LOG_SUM_EXP] = address(result.log_sum_exp)
    call.parameters[at.MASS] = address(result.mass) if probed else 0
    targets = targets_of(columns, given, heads)
    call.observe(query, kv_cache, layer, address(targets), len(targets))
    return result


def find_keys(
    table: EditTable,
    slot: int,
    layer: int,
    edit: FindKeys,
    columns: NDArray[np.int64],
    rows_seen: int,
) -> None:
    """Write what `edit` finds in `layer` to the table's found keys, as `reference.attention.found_keys` defines.

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
