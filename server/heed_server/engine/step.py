"""How the runner hands a step's edited rows to the metadata builder, which vLLM calls without them."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from heed_kernels.plan import Plan
from heed_kernels.table import EditTable


@dataclass(frozen=True)
class StepEdits:
    """The edited part of one step.

    rows: int32 [edited requests], their places in the batch, in the order in which `plan` knows them.
    """

    table: EditTable
    plan: Plan
    rows: NDArray[np.int32]


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
