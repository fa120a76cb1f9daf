"""The searches for keys of the requests in the edit table: who has one, and what they have found. No vLLM here."""

from collections.abc import Container, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heed_kernels.cpu.search import Counted, KeySearch, LayerInputs, search_keys
from heed_kernels.edits import Edit, FindKeys, MassTransfer
from heed_kernels.errors import EditError
from heed_kernels.plan import SLOT
from heed_kernels.table import EditTable
from heed_server.engine.kept_counts import Orders


@dataclass(frozen=True)
class StepSearches:
    """The searches that a step brings forward: an observer of the step."""

    table: EditTable
    searches: tuple[KeySearch, ...]

    def before_edits(self, layer: int, inputs: LayerInputs) -> None:
        """See `step.Observer`."""
        search_keys(self.searches, self.table, layer, inputs)


class KeySearches:
    """By slot of the edit table, and what is kept for requests to come."""

    def __init__(self, table: EditTable) -> None:
        self._table = table
        self._by_slot: dict[int, KeySearch] = {}
        self._name: dict[int, str] = {}
        self._kept: dict[str, Counted] = {}
        self._orders = Orders()
        self._fraction: dict[int, float] = {}

    def order(self, orders: Orders) -> None:
        """What the step that comes now keeps and goes on from."""
        for key in self._orders.drop:
            self._kept.pop(key, None)
        self._orders = orders

    def enter(self, name: str, slot: int, edits: Sequence[Edit], computed_tokens: int) -> None:
        """A request has got its slot.

        Raises `EditError` when it begins behind rows of which nothing is kept.
        """
        edit = next((edit for edit in edits if isinstance(edit, FindKeys)), None)
        if edit is None:
            return
        search = KeySearch(self._table, slot, edit)
        if computed_tokens:
            counted = self._kept.get(self._orders.resume.get(name, ""))
            if counted is None or counted.rows != computed_tokens:
                raise EditError(f"{computed_tokens} rows came out of the prefix cache uncounted")
            search.resume(counted)
        self._by_slot[slot], self._name[slot] = search, name
        transfers = [edit for edit in edits if isinstance(edit, MassTransfer)]
        self._fraction[slot] = transfers[0].fraction if transfers else 0.0

    def leave(self, slot: int) -> None:
        """The slot's request is gone."""
        self._by_slot.pop(slot, None)
        self._name.pop(slot, None)
        self._fraction.pop(slot, None)

    def advance(self, items: NDArray[np.int32]) -> tuple[StepSearches | None, dict[int, str]]:
        """What a step brings forward, and by slot why a search cannot go on.

        items: int32 [requests, 5], all rows that the step has of each edited request, see
        `plan.Pattern.items`.
        """
        searches, failures = [], {}
        for item in items if self._by_slot else ():
            slot = int(item[SLOT])
            search = self._by_slot.get(slot)
            if search is None:
                continue
            key = self._orders.keep.get(self._name[slot])
            counted = search.counted() if key is not None else None
            try:
                search.advance(item)
            except EditError as error:
                failures[slot] = str(error)
                self.leave(slot)
                continue
            searches.append(search)
            if key is not None and counted is not None:
                self._kept[key] = counted
        step = StepSearches(self._table, tuple(searches)) if searches else None
        return step, failures

    def not_kept(self) -> list[str]:
        """Keys that this step was to keep something under, and did not: the search has failed, now or
        before. To be asked once the step has run."""
        return [key for key in self._orders.keep.values() if key not in self._kept]

    def told(self, slot: int, detailed: Container[int]) -> dict[int, dict[str, Any]]:
        """What was found so far, by intervention, as plain values: empty where nothing is sought.

        detailed: interventions whose reports have their long parts. counts: by layer the number of
        pairs of head and found key; positions: by layer the keys that some head found; keys: by layer
        and head, where detailed; moved: by layer the mass taken from the found keys, summed over heads and
        rows, of which there are `rows`; heads: by layer how many are searched on all ranks. The rest is
        of this rank's heads.
        """
        search = self._by_slot.get(slot)
        if search is None:
            return {}
        layers = [layer for layer in range(self._table.layers) if search.edit.on.masks[layer]]
        found = {layer: search.found(layer) for layer in layers}
        told: dict[str, Any] = {
            "counts": {layer: sum(map(len, heads.values())) for layer, heads in found.items()},
            "positions": {
                layer: sorted(set(chain.from_iterable(heads.values())))
                for layer, heads in found.items()
            },
            "moved": {layer: self._fraction[slot] * search.mass(layer) for layer in layers},
            "heads": {layer: search.edit.on.masks[layer].bit_count() for layer in layers},
            "rows": search.rows,
        }
        if search.edit.source in detailed:
            told["keys"] = found
        return {search.edit.source: told}
