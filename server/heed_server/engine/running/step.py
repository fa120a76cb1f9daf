"""How the runner hands a step's edited rows to the metadata builder, which vLLM calls without them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.plan import Plan
from heed_kernels.table import EditTable


class Observer(Protocol):
    """Looks at a step's attention in each layer."""

    def before_edits(self, layer: int, inputs: Any) -> None:
        """The step's keys are in the cache, the edited rows of the layer are not computed yet."""


class Watcher(Protocol):
    """Looks at a step's hidden states in each layer."""

    @property
    def tokens(self) -> slice:
        """Those of the batch whose hidden states it looks at."""
        ...

    def look(self, layer: int, states: torch.Tensor, block_table: torch.Tensor) -> None:
        """states: float32 [tokens, hidden_size] of its tokens, at the input of `layer`; block_table: int32
        [requests, blocks] of the whole batch."""

    def settle(self, layer: int, block_table: torch.Tensor) -> None:
        """All watchers of the step have looked."""


class Comparer(Protocol):
    """Looks at a step's head outputs in each layer, or multiplies them."""

    def after_edits(self, layer: int, inputs: Any, output: torch.Tensor) -> None:
        """output: [tokens, local_query_heads, head_dim] of the whole batch, before the projection; all
        other edits are in it."""


@dataclass(frozen=True)
class StepEdits:
    """The edited part of one step.

    rows: int32 [edited requests], their places in the batch, in the order in which `plan` knows them.
    observers: what the edited requests have observed; their inputs are the backend's own.
    watchers, comparers: of the edited requests, likewise.
    """

    table: EditTable
    plan: Plan
    rows: NDArray[np.int32]
    observers: tuple[Observer, ...] = ()
    watchers: tuple[Watcher, ...] = ()
    comparers: tuple[Comparer, ...] = ()


_current: StepEdits | None = None


@contextmanager
def carrying(edits: StepEdits | None) -> Iterator[None]:
    """While this is open, builders attach `edits` (None: only plain requests) to what they build."""
    global _current
    _current = edits
    try:
        yield
    finally:
        _current = None


def current() -> StepEdits | None:
    """The edited part of the step that is being prepared."""
    return _current
