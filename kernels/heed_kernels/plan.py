"""Which rows of a step Heed's kernel computes in which layer."""

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heed_kernels.errors import EditError

SLOT, FIRST_TOKEN, ROWS, FIRST_POSITION, BLOCK_TABLE_ROW = range(5)
"""Columns of `Pattern.items`."""

TILE_ROWS = 48
"""Query rows times query heads per KV head that a unit of work computes together, at most (one
query row at least)."""


class Pattern:
    """The work of all layers in which the same rows of the step are active.

    items: int32 [items, 5]: slot, first query token, rows, first position, block-table row; one per
    contiguous run of active rows of a request.
    stock_needed: bool [requests]: at least one row is not active, so stock attention has to run the
    request too; Heed's kernel overwrites the active rows afterwards.
    """

    def __init__(
        self, items: NDArray[np.int32], stock_needed: NDArray[np.bool_], tile_rows: int
    ) -> None:
        self.items = items
        self.stock_needed = stock_needed
        self._tile_rows = tile_rows
        self.calls: dict[object, Any] = {}
        """What a kernel has checked and prepared for this pattern, by its own keys."""

    @cached_property
    def units(self) -> NDArray[np.int32]:
        """int32 [units, 5]: the items cut into row tiles, the longest work first."""
        return row_tiles(self.items, np.full(len(self.items), self._tile_rows))


def row_tiles(items: NDArray[np.int32], most_rows: NDArray[np.integer]) -> NDArray[np.int32]:
    """`items`, int32 [items, 5 and more], each cut into tiles of at most so many rows; the longest work first."""
    tiles = -(-items[:, ROWS] // most_rows)
    item = np.repeat(np.arange(len(tiles)), tiles)
    tile = most_rows[item]
    offset = (np.arange(len(item)) - np.repeat(np.cumsum(tiles) - tiles, tiles)) * tile
    units = items[item]
    units[:, FIRST_TOKEN] += offset
    units[:, FIRST_POSITION] += offset
    units[:, ROWS] = np.minimum(units[:, ROWS] - offset, tile)
    cost = units[:, ROWS].astype(np.int64) * (units[:, FIRST_POSITION] + units[:, ROWS])
    return np.ascontiguousarray(units[np.argsort(-cost, kind="stable")])


class Plan:
    """The work of one step. Made by `EditTable.plan`."""

    def __init__(
        self,
        request: NDArray[np.intp],
        items: NDArray[np.int32],
        active: NDArray[np.bool_],
        requests: int,
        tile_rows: int,
        phase: NDArray[np.intp],
    ) -> None:
        """request, phase: [runs]; items: int32 [runs, 5]; active: bool [layers, runs]: a run is a
        stretch of a request's rows within one phase."""
        self._phase = phase
        self._request, self._items, self._active = request, items, active
        self._requests, self._tile_rows = requests, tile_rows
        codes: dict[bytes, int] = {}
        self._of_layer: list[int] = []
        self._first_layer: list[int] = []
        for layer, line in enumerate(np.packbits(active, axis=1)):
            code = codes.setdefault(line.tobytes(), len(codes))
            if code == len(self._first_layer):
                self._first_layer.append(layer)
            self._of_layer.append(code)
        self._made: dict[int, Pattern] = {}

    @property
    def patterns(self) -> int:
        """Number of different patterns over the layers."""
        return len(self._first_layer)

    def runs(self, *, inactive: bool = False) -> NDArray[np.int32]:
        """int32 [runs, 6]: `Pattern.items` and the phase of the runs that are active in any layer, or of
        all; in the order of the batch, each within one phase."""
        some = slice(None) if inactive else self._active.any(axis=0)
        return np.column_stack([self._items[some], self._phase[some].astype(np.int32)])

    def pattern(self, layer: int) -> int:
        """Layers with the same number have the same items and the same `stock_needed`."""
        return self._of_layer[layer]

    def items(self, layer: int) -> NDArray[np.int32]:
        """int32 [items, 5], see `Pattern.items`; no rows where the layer has nothing to do."""
        return self.work(layer).items

    def stock_needed(self, layer: int) -> NDArray[np.bool_]:
        """bool [requests], in the order in which the requests were given."""
        return self.work(layer).stock_needed

    def work(self, layer: int) -> Pattern:
        """The layer's pattern, made when first asked for."""
        code = self._of_layer[layer]
        if code not in self._made:
            self._made[code] = self._make(self._active[self._first_layer[code]])
        return self._made[code]

    def _make(self, active: NDArray[np.bool_]) -> Pattern:
        stock_needed = np.zeros(self._requests, bool)
        stock_needed[self._request[~active]] = True
        request, items = self._request[active], self._items[active]
        if len(items) > 1:
            # Neighbouring phases that are both active make one item.
            follows = np.zeros(len(items), bool)
            follows[1:] = (request[1:] == request[:-1]) & (
                items[1:, FIRST_POSITION] == items[:-1, FIRST_POSITION] + items[:-1, ROWS]
            )
            if follows.any():
                first = np.flatnonzero(~follows)
                rows = np.add.reduceat(items[:, ROWS], first)
                items = items[first]
                items[:, ROWS] = rows
        return Pattern(items, stock_needed, self._tile_rows)


def make_plan(
    phase_start: NDArray[np.int32],
    occupied: NDArray[np.bool_],
    active: NDArray[np.bool_],
    group_heads: int,
    requests: Sequence[NDArray[np.integer]],
) -> Plan:
    """phase_start, occupied, active: the edit table's; group_heads: query heads per KV head; requests:
    slots, starts, lengths, positions, rows, see `EditTable.plan`."""
    given = np.array(requests, np.int64)  # [5, requests]
    slots, starts, lengths, positions, rows = given
    if given.size:
        if given.min() < 0 or lengths.min() < 1 or slots.max() >= len(occupied):
            raise EditError("a plan needs slots of the table, rows >= 1 and no negative numbers")
        if (positions + lengths).max() > 2**31 - 2:
            raise EditError("a plan has positions beyond 32 bits")
        if not occupied[slots].all():
            raise EditError("a plan names a slot that is not occupied")
    phase_start = phase_start[slots]
    phase_end = np.empty_like(phase_start)
    phase_end[:, :-1] = phase_start[:, 1:]
    phase_end[:, -1] = 2**31 - 1
    first = np.maximum(phase_start, positions[:, None])
    end = np.minimum(phase_end, (positions + lengths)[:, None])
    request, phase = np.nonzero(end > first)
    run_first = first[request, phase]
    items = np.empty((len(request), 5), np.int32)
    items[:, SLOT] = slots[request]
    items[:, FIRST_TOKEN] = starts[request] + (run_first - positions[request])
    items[:, ROWS] = end[request, phase] - run_first
    items[:, FIRST_POSITION] = run_first
    items[:, BLOCK_TABLE_ROW] = rows[request]
    runs_active = np.ascontiguousarray(active[slots[request], :, phase].T)
    return Plan(request, items, runs_active, len(slots), max(1, TILE_ROWS // group_heads), phase)
