"""Keys raised by the shifts of a prompt's gaze (`GazeShift`), over finished outputs."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.cpu.compare import Gather, keys_of
from heed_kernels.cpu.pages import Pages
from heed_kernels.cpu.search import LayerInputs
from heed_kernels.edits import GazeShift
from heed_kernels.eviction.window import ObservedRows
from heed_kernels.plan import BLOCK_TABLE_ROW, FIRST_POSITION, FIRST_TOKEN, ROWS
from heed_kernels.table import EditTable


def saliency(edit: GazeShift, shifts: NDArray[np.float32], rows: int) -> NDArray[np.float32]:
    """float32 [keys] in [0, 1]. shifts: [query_heads, keys], D summed over the `rows` rows that turned."""
    heads = first(shifts.sum(axis=1), edit.heads)
    if not rows or not len(heads) or shifts.shape[1] < 2:
        return np.zeros(shifts.shape[1], np.float32)
    mean = shifts[heads].mean(axis=0) / rows
    reach = 3 * mean.std(ddof=1)
    clipped = mean.clip(mean.mean() - reach, mean.mean() + reach)
    low, high = clipped.min(), clipped.max()
    if high <= low:
        return np.zeros_like(clipped)
    stretched: NDArray[np.float32] = (clipped - low) / (high - low)
    return stretched


def first(values: NDArray[Any], count: int) -> NDArray[np.int64]:
    """The ids of the `count` largest values, of equal ones the lower id first."""
    return np.argsort(-values, kind="stable")[:count]


class GazeShifter:
    """One request's. known: the saliency by its layer, once it is found.

    Every rank has to come through the same layers and steps, because `gather` waits for all.
    """

    def __init__(
        self,
        table: EditTable,
        slot: int,
        edit: GazeShift,
        gather: Gather,
        known: dict[int, NDArray[Any]],
    ) -> None:
        self.edit, self.known = edit, known
        self._table, self._slot, self._gather = table, slot, gather
        self._keys, self._beside = keys_of(edit.keys), keys_of(edit.beside)
        self._turning = keys_of(edit.turning)
        self._shifts = np.zeros((table.local_query_heads, len(self._keys)), np.float32)
        self._before: tuple[int, NDArray[np.float32]] | None = None
        group = table.query_heads // table.kv_heads
        local = np.arange(table.head_start, table.head_start + table.local_query_heads)
        self._kv_head = (local // group - table.kv_head_start).tolist()

    def carry_out(
        self, item: NDArray[np.int32], layer: int, inputs: LayerInputs, output: torch.Tensor
    ) -> None:
        """Look at a step's rows of the request, and write those that are raised to `output` [tokens,
        local_query_heads, head_dim].

        item: int32 [5], its rows as in `plan.Pattern.items`.
        """
        start, end = int(item[FIRST_POSITION]), int(item[FIRST_POSITION] + item[ROWS])
        offset = int(item[FIRST_TOKEN]) - start
        block_row = inputs.block_table[int(item[BLOCK_TABLE_ROW])]
        pages = Pages.of(inputs.kv_cache, block_row, inputs.layout)
        if layer == self.edit.saliency_layer and layer not in self.known:
            self._look(layer, start, end, inputs, offset, pages)
        low, high = max(start, self.edit.rows.start), min(end, self.edit.rows.end)
        if self.edit.on.masks[layer] and low < high:
            weights = self._weights(layer, low, high, inputs, offset, pages)
            self._raise(weights, pages, output[low + offset : high + offset])

    def _weights(
        self, layer: int, low: int, high: int, inputs: LayerInputs, offset: int, pages: Pages
    ) -> torch.Tensor:
        """float32 [local_query_heads, rows, keys] of the rows [low, high)."""
        places = np.arange(high)
        observed = ObservedRows(self._table, self._slot, layer, low, places, 0, inputs.scale)
        query = inputs.query[low + offset : high + offset].float()
        return observed.weights(query, pages.read(places, "key").float(), 0)

    def _look(
        self, layer: int, start: int, end: int, inputs: LayerInputs, offset: int, pages: Pages
    ) -> None:
        rows = self._turning[(self._turning >= start) & (self._turning < end)]
        needed = np.union1d(rows, self._turning - 1)
        needed = needed[(needed >= start) & (needed < end)]
        if len(needed):
            low, high = int(needed[0]), int(needed[-1]) + 1
            weights = self._weights(layer, low, high, inputs, offset, pages)
            on_keys = weights[:, :, self._keys].numpy()  # [heads, rows, keys]
            for row in rows.tolist():
                before = on_keys[:, row - 1 - low] if row > low else self._row_before(row)
                self._shifts += np.maximum(on_keys[:, row - low] - before, 0)
            self._before = high - 1, on_keys[:, -1]
        if end > self._turning.max(initial=start):
            shifts = self._gather(self._shifts)
            self.known[layer] = saliency(self.edit, shifts, len(self._turning))

    def _row_before(self, row: int) -> NDArray[np.float32]:
        assert self._before is not None and self._before[0] == row - 1, "a row was not looked at"
        return self._before[1]

    def _raise(self, weights: torch.Tensor, pages: Pages, output: torch.Tensor) -> None:
        edit = self.edit
        gain = torch.from_numpy(np.exp(edit.strength * self.known[edit.saliency_layer])).float()
        on_keys, on_beside = weights[:, :, self._keys], weights[:, :, self._beside]
        sums = on_keys.sum(2), (on_keys * gain).sum(2), on_beside.sum(2)
        masses = self._gather(torch.stack(sums, dim=2).numpy())  # [query_heads, rows, 3]
        places = np.arange(weights.shape[2])
        values = pages.read(places, "value").float()
        own = range(self._table.head_start, self._table.head_start + len(weights))
        for row in range(weights.shape[1]):
            looking = first(masses[:, row, 0], edit.heads)
            asking = first(masses[:, row, 2], edit.heads)
            plain = masses[looking, row, 0].sum()
            ratio = masses[looking, row, 1].sum() / plain if plain > 0 else 1.0
            for local, head in enumerate(own):
                if head not in looking and head not in asking:
                    continue
                line = weights[local, row].clone()
                if head in looking:
                    line[self._keys] *= gain
                if head in asking:
                    line[self._beside] *= float(edit.balance * ratio)
                made = (line / line.sum()) @ values[self._kv_head[local]]
                output[row, local] = made.to(output.dtype)
