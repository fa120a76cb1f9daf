"""What a request wants to know of its own attention, as plain values that travel to the workers."""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from heed_kernels.edits import (
    Edit,
    KeyBias,
    KeyScale,
    MassTransfer,
    VisibleKeys,
    VisibleRanges,
)

Quantity = Literal[
    "weights", "mass", "entropy", "columns", "dormancy", "distance", "ahead", "queries", "apart"
]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)

_OF_ROWS: frozenset[Quantity] = frozenset({"weights", "mass", "entropy", "queries"})

LOCAL_WINDOW = 10
"""W of WAAD, in tokens (arXiv 2510.13554)."""

AHEAD = (10, 100)
"""Least and most distance in tokens of the rows that FAI looks ahead to, both included (same paper)."""


OnWeights = KeyBias | KeyScale | VisibleKeys | VisibleRanges | MassTransfer
"""Edits that change weights; all others act before or after them."""

SLOWER = 3
"""How much longer a weight takes that is made by the definition of the edits."""


@dataclass(frozen=True)
class Inspection:
    """Which parts of a prompt's attention are measured while it is computed.

    length: tokens of the prompt, and of the continuation where there is one.
    layers, heads: ascending; query heads of the whole model, the same in every layer.
    rows: ascending absolute positions; `weights`, `mass`, `entropy` and `queries` are of these.
    key_sets: sets of keys as [start, end) ranges, sorted and disjoint, for `mass`.
    response: first row of the continuation, `length` where there is none; `distance` and `ahead` are
        of the rows from there on.
    without: keys as [start, end) ranges, sorted and disjoint. `apart` is of the last row: how far its head
        outputs are from those of the same prompt without these tokens, which is run before it.
    """

    length: int
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    rows: tuple[int, ...]
    key_sets: tuple[tuple[tuple[int, int], ...], ...]
    response: int
    quantities: tuple[Quantity, ...]
    without: tuple[tuple[int, int], ...] = ()

    def shape(self, quantity: Quantity) -> tuple[int, ...]:
        """Shape of a quantity, behind the axes of layers and heads."""
        rows, keys = len(self.rows), self.length
        shapes: dict[Quantity, tuple[int, ...]] = {
            "weights": (rows, keys),
            "mass": (rows, len(self.key_sets)),
            "entropy": (rows,),
            "columns": (keys,),
            "dormancy": (1 + keys,),
            "distance": (self.length - self.response, 2),
            "ahead": (keys,),
            "queries": (),
            "apart": (),
        }
        return shapes[quantity]

    @property
    def first_row(self) -> int:
        """The first row that has to be seen: 0 where a quantity is of more rows than those in `rows`."""
        return self.rows[0] if self.rows and set(self.quantities) <= _OF_ROWS else 0

    @property
    def values(self) -> int:
        """Numbers that are measured in all."""
        total = 0
        for quantity in self.quantities:
            each = 1
            for size in self.shape(quantity):
                each *= size
            total += each
        return total * len(self.layers) * len(self.heads)

    def dense_rows(self, edits: Iterable[Edit]) -> NDArray[np.bool_]:
        """bool [length]: rows whose weights are made again; kernels sum columns, but not behind a transfer."""
        wanted = set(self.quantities)
        dense = np.zeros(self.length, bool)
        if wanted & {"weights", "mass", "entropy"}:
            dense[list(self.rows)] = True
        if wanted & {"distance", "ahead"}:
            dense[self.response :] = True
        if "dormancy" in wanted or ("columns" in wanted and transfers(edits)):
            dense[:] = True
        return dense

    def work(self, edits: Iterable[Edit]) -> int:
        """Weights that are made again under these edits, in units of those under edits of logits alone."""
        edits = list(edits)
        keys = int((np.flatnonzero(self.dense_rows(edits)) + 1).sum())
        each = 1 if of_logits(edits) else SLOWER
        return each * keys * len(self.layers) * len(self.heads)


def of_logits(edits: Iterable[Edit]) -> bool:
    """Whether all that changes weights is added to logits or scales them."""
    return all(
        isinstance(edit, KeyBias | KeyScale) for edit in edits if isinstance(edit, OnWeights)
    )


def transfers(edits: Iterable[Edit]) -> bool:
    """Whether mass is moved after the softmax."""
    return any(isinstance(edit, MassTransfer) for edit in edits)


def inspection_to_wire(inspection: Inspection) -> dict[str, Any]:
    """Plain values."""
    return asdict(inspection)


def inspection_from_wire(packed: Mapping[str, Any]) -> Inspection:
    """Inverse of `inspection_to_wire`, also when tuples have become lists on the way."""
    return Inspection(
        length=packed["length"],
        layers=tuple(packed["layers"]),
        heads=tuple(packed["heads"]),
        rows=tuple(packed["rows"]),
        key_sets=tuple(tuple((start, end) for start, end in keys) for keys in packed["key_sets"]),
        response=packed["response"],
        quantities=tuple(packed["quantities"]),
        without=tuple((start, end) for start, end in packed["without"]),
    )
