"""Keys raised by the shifts of a prompt's gaze (`GazeShift`), over finished outputs."""

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.beside.compare import Gather, keys_of, largest
from heed_kernels.device import LayerInputs, Pages
from heed_kernels.edits import GazeShift
from heed_kernels.eviction.window import MOST_WEIGHTS, ObservedRows
from heed_kernels.plan import BLOCK_TABLE_ROW, FIRST_POSITION, FIRST_TOKEN, ROWS
from heed_kernels.table import EditTable


def saliency(edit: GazeShift, shifts: torch.Tensor, rows: int) -> torch.Tensor:
    """float32 [keys] in [0, 1]. shifts: [query_heads, keys], D summed over the `rows` rows that turned."""
    heads = min(edit.heads, len(shifts))
    if not rows or not heads or shifts.shape[1] < 2:
        return torch.zeros_like(shifts[0])
    looking = largest(shifts.sum(dim=1), heads)
    mean = (shifts * looking[:, None]).sum(dim=0) / (heads * rows)
    centre, reach = mean.mean(), 3 * mean.std()
    clipped = mean.clamp(centre - reach, centre + reach)
    low, high = clipped.aminmax()
    stretched = (clipped - low) / (high - low)
    return torch.where(high > low, stretched, 0.0)


class GazeShifter:
    """One request's. All of it stays on the device, for which nothing waits.

    known: the saliency by its layer, once it is found.

    Every rank has to come through the same layers and steps, because `gather` waits for all.
    """

    def __init__(
        self,
        table: EditTable,
        slot: int,
        edit: GazeShift,
        gather: Gather,
        known: dict[int, torch.Tensor],
        device: torch.device | None = None,
    ) -> None:
        self.edit, self.known = edit, known
        self._table, self._slot, self._gather = table, slot, gather
        self._turning = keys_of(edit.turning)
        self._keys, self._beside = (
            torch.from_numpy(keys_of(keys)).to(device, non_blocking=True)
            for keys in (edit.keys, edit.beside)
        )
        self._shifts = torch.zeros(table.local_query_heads, len(self._keys), device=device)
        self._before = self._shifts
        """Weights of the last row that was looked at, [local_query_heads, keys]."""

    def acts(self, first: int, rows: int) -> bool:
        """Whether any of the rows [first, first + rows) is looked at or raised."""
        looks = self.edit.saliency_layer not in self.known
        return looks or (first + rows > self.edit.rows.start and first < self.edit.rows.end)

    def carry_out(
        self, item: NDArray[np.int32], layer: int, inputs: LayerInputs, output: torch.Tensor
    ) -> None:
        """Look at a step's rows of the request, and write those that are raised to `output` [tokens,
        local_query_heads, head_dim].

        item: int32 [5], its rows as in `plan.Pattern.items`.
        """
        start, end = int(item[FIRST_POSITION]), int(item[FIRST_POSITION] + item[ROWS])
        offset = int(item[FIRST_TOKEN]) - start
        if layer == self.edit.saliency_layer and layer not in self.known:
            pages = inputs.pages(int(item[BLOCK_TABLE_ROW]))
            self._look(layer, start, end, inputs, offset, pages)
        low, high = max(start, self.edit.rows.start), min(end, self.edit.rows.end)
        if self.edit.on.masks[layer] and low < high:
            pages = inputs.pages(int(item[BLOCK_TABLE_ROW]))
            weights = self._weights(layer, low, high, inputs, offset, pages)
            self._raise(weights, pages, output[low + offset : high + offset])

    def _weights(
        self, layer: int, low: int, high: int, inputs: LayerInputs, offset: int, pages: Pages
    ) -> torch.Tensor:
        """float32 [local_query_heads, rows, keys] of the rows [low, high)."""
        observed = ObservedRows.on_every_key(
            self._table, self._slot, layer, low, high, inputs.scale
        )
        query = inputs.query[low + offset : high + offset].float()
        return observed.weights(query, pages.read(observed.places, "key").float(), 0)

    def _look(
        self, layer: int, start: int, end: int, inputs: LayerInputs, offset: int, pages: Pages
    ) -> None:
        needed = np.union1d(self._turning, self._turning - 1)
        needed = needed[(needed >= start) & (needed < end)]
        low, high = (int(needed[0]), int(needed[-1]) + 1) if len(needed) else (0, 0)
        at_once = max(1, MOST_WEIGHTS // (self._table.local_query_heads * max(high, 1)))
        for first in range(low, high, at_once):
            last = min(first + at_once, high)
            weights = self._weights(layer, first, last, inputs, offset, pages)
            on_keys = weights.index_select(2, self._keys)
            self._add_shifts(on_keys, first)
            self._before = on_keys[:, -1]
        if end > self._turning.max(initial=start):
            shifts = self._gather(self._shifts)
            self.known[layer] = saliency(self.edit, shifts, len(self._turning))

    def _add_shifts(self, on_keys: torch.Tensor, first: int) -> None:
        """on_keys: [local_query_heads, rows, keys], of the rows from `first` on, which follow the last one
        that was looked at where that is needed."""
        held = (self._turning >= first) & (self._turning < first + on_keys.shape[1])
        rows = torch.from_numpy(self._turning[held] - first)
        rows = rows.to(on_keys.device, non_blocking=True)
        rows_before = torch.cat([self._before[:, None], on_keys[:, :-1]], dim=1)
        turned = on_keys.index_select(1, rows) - rows_before.index_select(1, rows)
        self._shifts += turned.clamp_(min=0).sum(dim=1)

    def _raise(self, weights: torch.Tensor, pages: Pages, output: torch.Tensor) -> None:
        """weights: [local_query_heads, rows, keys], which it may change; output: [rows, local_query_heads,
        head_dim]."""
        edit, heads = self.edit, len(weights)
        gain = torch.exp(edit.strength * self.known[edit.saliency_layer])
        on_keys = weights.index_select(2, self._keys)
        on_beside = weights.index_select(2, self._beside)
        sums = on_keys.sum(2), (on_keys * gain).sum(2), on_beside.sum(2)
        plain, raised, beside = self._gather(torch.stack(sums, dim=2)).unbind(2)  # [heads, rows]
        looking, asking = largest(plain, edit.heads), largest(beside, edit.heads)
        given = (plain * looking).sum(dim=0)
        ratio = torch.where(given > 0, (raised * looking).sum(dim=0) / given, 1.0)  # [rows]
        own = slice(self._table.head_start, self._table.head_start + heads)
        looks, asks = looking[own, :, None], asking[own, :, None]
        factor = edit.balance * ratio[None, :, None]
        weights.index_copy_(2, self._keys, torch.where(looks, on_keys * gain, on_keys))
        weights.index_copy_(2, self._beside, torch.where(asks, on_beside * factor, on_beside))
        weights /= weights.sum(dim=2, keepdim=True)
        values = pages.read(np.arange(weights.shape[2]), "value").float()
        by_group = weights.view(len(values), -1, weights.shape[2])
        made = torch.bmm(by_group, values).view(heads, len(output), -1).transpose(0, 1)
        changed = (looks | asks).transpose(0, 1)
        output.copy_(torch.where(changed, made.to(output.dtype), output))
