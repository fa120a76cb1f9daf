"""Sums of weights by key on the CPU, and the call of the kernel that adds rows of a step to them."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import chain

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from heed_kernels.cpu import parameters as at
from heed_kernels.cpu.call import address, call_key
from heed_kernels.cpu.layout import Layout
from heed_kernels.cpu.observation_call import ObservationCall
from heed_kernels.cpu.observe_kernel import ONE_FIXED
from heed_kernels.edits import FindKeys, ObserveColumns
from heed_kernels.errors import EditError
from heed_kernels.plan import FIRST_POSITION, ROWS, SLOT
from heed_kernels.rope import Rope
from heed_kernels.table import EditTable


class ColumnSums:
    """Column sums of one request, layer and observation, while its rows come in.

    heads: int64 [heads], the local query heads that are observed, ascending.
    sums: int64 [heads, capacity], a line for each of them, in units of 2^-40. A weight is rounded to the
    nearest unit, so a sum over n rows is within n * 2^-41 of the sum of the weights; 2^23 - 1 rows of
    weight 1 fit.
    lines: int32 [local_query_heads], the line of each head, -1 for those that are not observed.
    wanted: the bytes of `lines`; target: int64 [TARGET_FIELDS], see `parameters`.
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
        self.wanted = self.lines.tobytes()
        self.target = np.zeros(at.TARGET_FIELDS, np.int64)
        self.target[at.TARGET_SLOT], self.target[at.TARGET_LINES] = slot, address(self.lines)
        self.target[at.TARGET_FIRST], self.target[at.TARGET_END] = edit.rows.start, edit.rows.end
        self._aim()

    def grow(self, keys: int) -> None:
        """Make room for at least so many keys."""
        have = self.sums.shape[1]
        if have < keys:
            self.sums = np.pad(self.sums, ((0, 0), (0, keys - have)))
            self._aim()

    def _aim(self) -> None:
        self.target[at.TARGET_SUMS] = address(self.sums)
        self.target[at.TARGET_STEP] = self.sums.strides[0]

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


def column_weights(sums: NDArray[np.int64]) -> NDArray[np.float64]:
    """Fixed-point column sums in units of weight."""
    return sums / ONE_FIXED


def weight_of(units: int) -> float:
    """As `column_weights`, for a sum over several columns: one of any size."""
    return units / ONE_FIXED


class StepColumns:
    """Rows of a step whose weights are added to column sums, made ready for all layers at once.

    In a step of few rows the kernel's work is less than that of making it ready.
    """

    def __init__(
        self,
        table: EditTable,
        items: ArrayLike,
        columns: Mapping[int, Sequence[ColumnSums]],
    ) -> None:
        """items: as for `observe`; columns: by layer those of the items' requests, none to several of each.

        Raises `EditError` where `columns` are too small.
        """
        self._table, self._items = table, np.array(items, np.int32).reshape(-1, 5)
        heads, every = table.local_query_heads, list(chain(*columns.values()))
        self._targets = targets_of(every, self._items, heads)
        self._at: dict[int, tuple[int, int]] = {}
        self._wanted: dict[int, tuple[tuple[int, bytes], ...]] = {}
        begin = address(self._targets)
        for layer, own in columns.items():
            self._at[layer] = begin, len(own)
            self._wanted[layer] = tuple((each.slot, each.wanted) for each in own if len(each.heads))
            begin += len(own) * at.TARGET_FIELDS * 8
        self._calls: dict[object, ObservationCall] = {}

    def add(
        self,
        layer: int,
        query: torch.Tensor,
        kv_cache: torch.Tensor,
        block_table: torch.Tensor,
        scale: float,
        rope: Rope | None,
        layout: Layout,
    ) -> None:
        """Add the rows' weights in a layer, once its keys are in the cache; the arguments are those of
        `observe`, and the same number of tokens in every layer."""
        wanted = self._wanted.get(layer)
        if not wanted:
            return
        key = wanted, call_key(query, kv_cache, block_table, self._table, scale, rope, layout)
        call = self._calls.get(key)
        if call is None:
            call = self._calls[key] = ObservationCall(
                query, kv_cache, block_table, self._table, self._items, self._heads(wanted), scale,
                rope, layout,
            )  # fmt: skip
        call.observe(query, kv_cache, layer, *self._at[layer])

    def _heads(self, wanted: Iterable[tuple[int, bytes]]) -> NDArray[np.bool_]:
        """bool [items, local_query_heads]: those whose weights are added in some layer."""
        heads = np.zeros((len(self._items), self._table.local_query_heads), bool)
        for slot, lines in wanted:
            heads[self._items[:, SLOT] == slot] |= np.frombuffer(lines, np.int32) >= 0
        return heads


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
) -> None:
    """As `observe`, for the column sums alone: query heads that `columns` do not want cost nothing."""
    step = StepColumns(table, items, {layer: columns})
    step.add(layer, query, kv_cache, block_table, scale, rope, layout)


def targets_of(
    columns: Sequence[ColumnSums], items: NDArray[np.int32], heads: int
) -> NDArray[np.int64]:
    """int64 [columns, TARGET_FIELDS], see `parameters`. Raises `EditError` where there is no room for the
    keys that `items` see, or `columns` are not those of so many heads."""
    ends: dict[int, int] = {}
    for slot, end in zip(
        items[:, SLOT].tolist(), (items[:, FIRST_POSITION] + items[:, ROWS]).tolist(), strict=True
    ):
        ends[slot] = max(end, ends.get(slot, 0))
    for each in columns:
        keys = ends.get(each.slot, 0)
        if len(each.lines) != heads or each.sums.shape[1] < keys:
            raise EditError(
                f"column sums {each.sums.shape} of {len(each.lines)} heads are too small for "
                f"{heads} heads and {keys} keys"
            )
    targets = [each.target for each in columns]
    return np.array(targets, np.int64).reshape(-1, at.TARGET_FIELDS)
