"""Searches for keys on a GPU. No vLLM here."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from heed_kernels.edits import FindKeys
from heed_kernels.plan import Plan

if TYPE_CHECKING:  # Triton is not on every machine that serves
    from heed_kernels.triton import DeviceSearches, LayerInputs
    from heed_kernels.triton.searching import KeySearch


@dataclass(frozen=True)
class StepSearches:
    """The searches that a step brings forward: an observer of the step, see `device_edits.DeviceObserver`."""

    device: "DeviceSearches"
    searches: "tuple[KeySearch, ...]"

    def load(self, plan: Plan) -> None:
        """See `device_edits.DeviceObserver`."""
        self.device.load(plan, self.searches)

    def before_edits(self, layer: int, inputs: "LayerInputs") -> None:
        """See `step.Observer`."""
        self.device.observe(layer, inputs, self.searches)


@dataclass(frozen=True)
class SearchingOnCUDA:
    """See `key_searches.Searching`."""

    device: "DeviceSearches"

    def new(self, slot: int, edit: FindKeys) -> "KeySearch":
        """See `key_searches.Searching`."""
        return self.device.new(slot, edit)

    def observer(self, searches: "Sequence[KeySearch]") -> StepSearches:
        """See `key_searches.Searching`."""
        return StepSearches(self.device, tuple(searches))
