"""The searches for keys of the requests in the edit table: who has one, and what they have found. No vLLM here."""

from collections.abc import Container, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from heed_kernels.beside.key_search import Counted, KeySearch
from heed_kernels.edits import Edit, FindKeys, MassTransfer
from heed_kernels.errors import EditError
from heed_kernels.plan import SLOT
from heed_server.engine.messages import Orders
from heed_server.engine.running.step import Observer


class Searching(Protocol):
    """How keys are searched for on a device."""

    def new(self, slot: int, edit: FindKeys) -> KeySearch:
        """The search of a request that has got its slot."""
        ...

    def observer(self, searches: Sequence[Any]) -> Observer:
        """What brings forward the searches that a step has rows of. They are made by `new`."""
        ...


class KeySearches:
    """By slot of the edit table, and what is kept for requests to come."""

    def __init__(self, device: Searching) -> None:
        self._device = device
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
        search = self._device.new(slot, edit)
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
        search = self._by_slot.pop(slot, None)
        if search is not None:
            search.close()
        self._name.pop(slot, None)
        self._fraction.pop(slot, None)

    def counts(self, slot: int, first: int) -> bool:
        """Whether rows of the slot that begin at `first` are counted, layer by layer."""
        search = self._by_slot.get(slot)
        return search is not None and search.counts(first)

    def advance(self, items: NDArray[np.int32]) -> tuple[Observer | None, dict[int, str]]:
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
        return self._device.observer(searches) if searches else None, failures

    def not_kept(self) -> list[str]:
        """Keys that this step was to keep something under, and did not: the search has failed, now or
        before. To be asked once the step has run."""
        return [key for key in self._orders.keep.values() if key not in self._kept]

    def told(self, slot: int, detailed: Container[int]) -> dict[int, dict[str, Any]]:
        """What was found so far (`KeySearch.told`), by intervention: empty where nothing is sought.

        detailed: interventions whose reports have their long parts.
        """
        search = self._by_slot.get(slot)
        if search is None:
            return {}
        source = search.edit.source
        return {source: search.told(self._fraction[slot], detailed=source in detailed)}
