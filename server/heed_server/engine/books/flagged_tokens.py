"""The flagged tokens of the requests in the edit table: who has some, and what was flagged. No vLLM here."""

from collections.abc import Container, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.beside.flags import BlockFlags, FoundTable, KeyFlags
from heed_kernels.edits import Edit, FlagKeys
from heed_kernels.errors import EditError
from heed_kernels.plan import FIRST_POSITION, SLOT
from heed_kernels.table import EditTable
from heed_server.engine.payload import POSITIONS


class FlaggedTokens:
    """By slot of the edit table."""

    def __init__(
        self,
        table: EditTable,
        flags: BlockFlags,
        found: FoundTable,
        device: torch.device | None = None,
    ) -> None:
        """device: of the model; None for the CPU."""
        self._table, self._flags, self._found, self._device = table, flags, found, device
        self._by_slot: dict[int, KeyFlags] = {}

    def enter(self, slot: int, edits: Sequence[Edit], computed_tokens: int) -> None:
        """A request has got its slot; after a preemption it starts again.

        Rows that come out of the prefix cache were flagged as this one's are: what is sought is in the salt.
        """
        edit = next((edit for edit in edits if isinstance(edit, FlagKeys)), None)
        if edit is not None:
            self._by_slot[slot] = KeyFlags(
                self._table, slot, edit, self._flags, self._found, computed_tokens, self._device
            )

    def leave(self, slot: int) -> None:
        """The slot's request is gone."""
        self._by_slot.pop(slot, None)

    def watches(self, slot: int, first: int) -> bool:
        """Whether hidden states of a slot's rows from `first` on are looked at, layer by layer."""
        flags = self._by_slot.get(slot)
        return flags is not None and flags.watches(first)

    def advance(self, items: NDArray[np.int32]) -> tuple[tuple[KeyFlags, ...], dict[int, str]]:
        """What looks at a step, and by slot why a request cannot go on.

        items: int32 [requests, 5], all rows that the step has of each edited request, see
        `plan.Pattern.items`.
        """
        watchers, failures = [], {}
        for item in items if self._by_slot else ():
            slot = int(item[SLOT])
            flags = self._by_slot.get(slot)
            if flags is None:
                continue
            wanted = flags.watches(int(item[FIRST_POSITION]))
            try:
                flags.advance(item)
            except EditError as error:
                failures[slot] = str(error)
                self.leave(slot)
                continue
            if wanted:
                watchers.append(flags)
        return tuple(watchers), failures

    def told(self, slot: int, detailed: Container[int]) -> dict[int, dict[str, Any]]:
        """The report's part, by intervention: by layer how many sinks hold, the first positions of
        them (all where detailed), and how many more there are than can hold. Waits for the device."""
        flags = self._by_slot.get(slot)
        if flags is None:
            return {}
        layers = [layer for layer, mask in enumerate(flags.edit.on.masks) if mask]
        found = {str(layer): flags.found(layer) for layer in layers}
        told: dict[str, Any] = {
            "sinks": {layer: len(keys) for layer, keys in found.items()},
            "sink_positions": {layer: keys[:POSITIONS] for layer, keys in found.items() if keys},
        }
        left_out = {str(layer): flags.left_out(layer) for layer in layers if flags.left_out(layer)}
        if left_out:
            told["sinks_left_out"] = left_out
        if flags.edit.source in detailed:
            told["sink_keys"] = {layer: keys for layer, keys in found.items() if keys}
        return {flags.edit.source: told}
