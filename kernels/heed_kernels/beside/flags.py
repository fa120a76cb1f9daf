"""Flagged tokens of one request (`FlagKeys`), from hidden states as its rows come in, on any device."""

from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.edits import SOURCES, FlagKeys
from heed_kernels.errors import EditError
from heed_kernels.plan import BLOCK_TABLE_ROW, FIRST_POSITION, FIRST_TOKEN, ROWS
from heed_kernels.table import EditTable

EPSILON = 1e-6
"""Added to the mean square of a hidden state."""


def magnitudes(states: torch.Tensor, dimensions: torch.Tensor) -> torch.Tensor:
    """float32 [tokens]: the largest magnitude of `dimensions` over the root mean square of all.

    states: float32 [tokens, hidden_size].
    """
    scale = (states.square().mean(dim=1) + EPSILON).sqrt()
    return states.index_select(1, dimensions).abs().amax(dim=1) / scale


class FoundTable(Protocol):
    """Where attention on a device reads the keys that were found."""

    def reserve(self, slot: int) -> None:
        """A request that flags keys has got a slot. Raises `EditError` where there is no room for them."""

    def write(self, slot: int, layer: int, keys: torch.Tensor, count: torch.Tensor) -> None:
        """The same ones for all local heads of a layer.

        keys: int64 [SOURCES], of which the first `count` hold, ascending.
        """


class BlockFlags:
    """Which tokens of the cache's blocks are flagged, by layer: noted with a block's keys, and as long good as
    these are. Whoever finds a block in the prefix cache finds its flags here."""

    def __init__(
        self, layers: int, blocks: int, block_size: int, device: torch.device | None = None
    ) -> None:
        shape = layers, blocks, block_size
        self._flags = torch.zeros(shape, dtype=torch.bool, device=device)

    def note(self, layer: int, blocks: torch.Tensor, first: int, flagged: torch.Tensor) -> None:
        """bool, of the tokens from position `first` on. blocks: int32, those of their request, from its
        position 0 on."""
        self._flags[layer][self._places(blocks, first, first + len(flagged))] = flagged

    def flagged(self, layer: int, blocks: torch.Tensor, end: int) -> torch.Tensor:
        """bool [end]: of positions [0, end)."""
        return self._flags[layer][self._places(blocks, 0, end)]

    def _places(
        self, blocks: torch.Tensor, first: int, end: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        size = self._flags.shape[2]
        position = torch.arange(first, end, device=blocks.device)
        return blocks[position // size].long(), position % size


class KeyFlags:
    """Writes the found keys, the same ones for all heads of a layer. All of it stays on the device, and
    nothing waits for it but `found` and `left_out`.

    A row sees what is flagged up to itself, so that it does not matter how rows are cut into steps.

    computed: so many tokens were computed before, by requests that flagged as this one does.
    """

    def __init__(
        self,
        table: EditTable,
        slot: int,
        edit: FlagKeys,
        flags: BlockFlags,
        found: FoundTable,
        computed: int = 0,
        device: torch.device | None = None,
    ) -> None:
        self.edit = edit
        self._slot, self._flags, self._table = slot, flags, found
        self._layers = [layer for layer in range(table.layers) if edit.on.masks[layer]]
        self._item = np.zeros(5, np.int32)
        self._next_row = computed
        self._unseen: set[int] = set()
        self._dimensions = torch.tensor(edit.dimensions).to(device, non_blocking=True)
        ranges = edit.needed.ranges
        needed = torch.zeros(ranges[-1][1] if ranges else 0, dtype=torch.bool)
        for start, end in ranges:
            needed[start:end] = True
        self._needed = needed.to(device, non_blocking=True)
        found.reserve(slot)
        self._found: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}
        """By layer int64 [SOURCES], the first flagged keys, and how many there are."""

    @property
    def tokens(self) -> slice:
        """Those of the step's batch whose hidden states are looked at."""
        first, start = int(self._item[FIRST_POSITION]), int(self._item[FIRST_TOKEN])
        count = min(int(self._item[ROWS]), self.edit.rows.end - first)
        return slice(start, start + max(count, 0))

    def watches(self, first: int) -> bool:
        """Whether a step whose rows begin at `first` is looked at, or its flags are read for the first time."""
        return first < self.edit.rows.end or not self._found

    def advance(self, item: NDArray[np.int32]) -> None:
        """The next step's rows, int32 [5] as in `plan.Pattern.items`.

        Raises `EditError` when they are not the next ones, or rows of the step before were not looked at.
        """
        first = int(item[FIRST_POSITION])
        if first != self._next_row:
            raise EditError(f"row {first} came where row {self._next_row} was to be looked at")
        if self._unseen:
            raise EditError(f"hidden states of layer {min(self._unseen)} were not looked at")
        self._item, self._next_row = item, first + int(item[ROWS])
        if self.watches(first):
            self._unseen = set(self._layers)

    def look(self, layer: int, states: torch.Tensor, block_table: torch.Tensor) -> None:
        """The hidden states of `tokens` at the input of `layer`, float32 [tokens, hidden_size].

        block_table: int32 [requests, blocks], of the whole batch.
        """
        if not self.edit.on.masks[layer] or not len(states):
            return
        above = magnitudes(states, self._dimensions) > self.edit.threshold
        blocks = block_table[int(self._item[BLOCK_TABLE_ROW])]
        self._flags.note(layer, blocks, int(self._item[FIRST_POSITION]), above)

    def settle(self, layer: int, block_table: torch.Tensor) -> None:
        """After the looks of all requests of the step: one may have found blocks that another one computes in
        this very step."""
        if layer not in self._unseen:
            return
        self._unseen.discard(layer)
        blocks = block_table[int(self._item[BLOCK_TABLE_ROW])]
        end = min(self._next_row, self.edit.rows.end)
        flagged = self._flags.flagged(layer, blocks, end)
        inside = self._needed[:end]
        needed = torch.zeros_like(flagged)
        needed[: len(inside)] = flagged[: len(inside)] & inside
        held = needed if self.edit.only_needed else flagged & needed.any()
        rank = held.cumsum(0)
        # The place behind the last one takes all that do not hold, so that nothing waits for their number.
        place = torch.where(held & (rank <= SOURCES), rank - 1, SOURCES)
        keys = torch.zeros(SOURCES + 1, dtype=torch.int64, device=flagged.device)
        keys = keys.scatter_(0, place, torch.arange(end, device=flagged.device))[:SOURCES]
        self._found[layer] = keys, rank[-1]
        self._table.write(self._slot, layer, keys, rank[-1].clamp(max=SOURCES))

    def found(self, layer: int) -> list[int]:
        """The flagged keys that hold, ascending."""
        if layer not in self._found:
            return []
        keys, count = self._found[layer]
        held: list[int] = keys[: int(count)].tolist()
        return held

    def left_out(self, layer: int) -> int:
        """How many more there are than can hold."""
        return max(int(self._found[layer][1]) - SOURCES, 0) if layer in self._found else 0
