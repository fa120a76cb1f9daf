"""Searches for keys on the CPU. No vLLM here."""

from collections.abc import Sequence
from dataclasses import dataclass

from heed_kernels.cpu.search import KeySearch, LayerInputs, search_keys
from heed_kernels.edits import FindKeys
from heed_kernels.table import EditTable


@dataclass(frozen=True)
class StepSearches:
    """The searches that a step brings forward: an observer of the step."""

    table: EditTable
    searches: tuple[KeySearch, ...]

    def before_edits(self, layer: int, inputs: LayerInputs) -> None:
        """See `step.Observer`."""
        search_keys(self.searches, self.table, layer, inputs)


@dataclass(frozen=True)
class SearchingOnCPU:
    """See `key_searches.Searching`."""

    table: EditTable

    def new(self, slot: int, edit: FindKeys) -> KeySearch:
        """See `key_searches.Searching`."""
        return KeySearch(self.table, slot, edit)

    def observer(self, searches: Sequence[KeySearch]) -> StepSearches:
        """See `key_searches.Searching`."""
        return StepSearches(self.table, tuple(searches))
