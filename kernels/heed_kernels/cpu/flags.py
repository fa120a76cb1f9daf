"""Flagged tokens of one request (`FlagKeys`), from hidden states as its rows come in."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.edits import SOURCES, FlagKeys
from heed_kernels.errors import EditError
from heed_kernels.plan import FIRST_POSITION, FIRST_TOKEN, ROWS
from heed_kernels.ranges import inside
from heed_kernels.table import EditTable

EPSILON = 1e-6
"""Added to the mean square of a hidden state."""


def magnitudes(states: torch.Tensor, dimensions: tuple[int, ...]) -> torch.Tensor:
    """float32 [tokens]: the largest magnitude of `dimensions` over the root mean square of all.

    states: [tokens, hidden_size].
    """
    states = states.float()
    scale = (states.square().mean(dim=1) + EPSILON).sqrt()
    return states[:, list(dimensions)].abs().amax(dim=1) / scale


class BlockFlags:
    """Which tokens of the cache's blocks are flagged, by layer: noted with a block's keys, and as long good as
    these are. Whoever finds a block in the prefix cache finds its flags here."""

    def __init__(self, layers: int, blocks: int, block_size: int) -> None:
        self._flags = np.zeros((layers, blocks, block_size), bool)

    def note(
        self, layer: int, blocks: Sequence[int], first: int, flagged: NDArray[np.bool_]
    ) -> None:
        """Of the tokens from position `first` on. blocks: those of their request, from its position 0 on."""
        at = self._places(blocks, first, first + len(flagged))
        self._flags[layer][at] = flagged

    def flagged(self, layer: int, blocks: Sequence[int], end: int) -> NDArray[np.int64]:
        """The flagged ones of positions [0, end), ascending."""
        return np.flatnonzero(self._flags[layer][self._places(blocks, 0, end)])

    def _places(
        self, blocks: Sequence[int], first: int, end: int
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        size = self._flags.shape[2]
        position = np.arange(first, end)
        block = np.array(blocks[: -(-end // size)], np.int64)
        return block[position // size], position % size


class KeyFlags:
    """Writes the table's found keys, the same ones for all heads of a layer.

    A row sees what is flagged up to itself, so that it does not matter how rows are cut into steps.

    blocks: of the request, in order; it may grow. computed: so many tokens were computed before, by requests
        that flagged as this one does.
    """

    def __init__(
        self,
        table: EditTable,
        slot: int,
        edit: FlagKeys,
        flags: BlockFlags,
        blocks: Sequence[int],
        computed: int = 0,
    ) -> None:
        self.table, self.slot, self.edit = table, slot, edit
        self._flags, self._blocks = flags, blocks
        self._item = np.zeros(5, np.int32)
        self._next_row = computed
        self._flagged: dict[int, NDArray[np.int64]] = {}

    def advance(self, item: NDArray[np.int32]) -> None:
        """The next step's rows, int32 [5] as in `plan.Pattern.items`.

        Raises `EditError` when they are not the next ones.
        """
        first = int(item[FIRST_POSITION])
        if first != self._next_row:
            raise EditError(f"row {first} came where row {self._next_row} was to be looked at")
        self._item, self._next_row = item, first + int(item[ROWS])

    def look(self, layer: int, states: torch.Tensor) -> None:
        """The step's hidden states at the input of `layer`, [tokens, hidden_size] of the whole batch."""
        first, start = int(self._item[FIRST_POSITION]), int(self._item[FIRST_TOKEN])
        count = min(int(self._item[ROWS]), self.edit.rows.end - first)
        if not self.edit.on.masks[layer] or count <= 0:
            return
        above = magnitudes(states[start : start + count], self.edit.dimensions)
        self._flags.note(layer, self._blocks, first, (above > self.edit.threshold).numpy())

    def settle(self, layer: int) -> None:
        """After the looks of all requests of the step: one may have found blocks that another one computes in
        this very step."""
        first, end = int(self._item[FIRST_POSITION]), self.edit.rows.end
        if not self.edit.on.masks[layer] or (layer in self._flagged and first >= end):
            return
        self._flagged[layer] = self._flags.flagged(layer, self._blocks, min(self._next_row, end))
        self._write(layer)

    def found(self, layer: int) -> list[int]:
        """The flagged keys that hold, ascending."""
        return self._found(layer)[:SOURCES]

    def left_out(self, layer: int) -> int:
        """How many more there are than can hold."""
        return max(len(self._found(layer)) - SOURCES, 0)

    def _found(self, layer: int) -> list[int]:
        flagged = self._flagged.get(layer, np.zeros(0, np.int64))
        needed = inside(flagged, np.array(self.edit.needed.ranges, np.int64).reshape(-1, 2))
        if not needed.any():
            return []
        kept: list[int] = flagged[needed if self.edit.only_needed else slice(None)].tolist()
        return kept

    def _write(self, layer: int) -> None:
        table, slot = self.table, self.slot
        keys = np.array(self.found(layer), np.int64)
        starts = table.range_start[slot, : table.range_count[slot]]
        table.found_keys[slot, layer, :, : len(keys)] = keys
        table.found_range[slot, layer, :, : len(keys)] = (
            np.searchsorted(starts, keys, side="right") - 1
        )
        table.found_count[slot, layer] = len(keys)
