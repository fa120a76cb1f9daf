"""What a request wants to know of its own attention, as plain values that travel to the workers."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

Quantity = Literal[
    "weights", "mass", "entropy", "columns", "dormancy", "distance", "ahead", "queries"
]
QUANTITIES: tuple[Quantity, ...] = get_args(Quantity)

LOCAL_WINDOW = 10
"""W of WAAD, in tokens (arXiv 2510.13554)."""

AHEAD = (10, 100)
"""Least and most distance in tokens of the rows that FAI looks ahead to, both included (same paper)."""


@dataclass(frozen=True)
class Inspection:
    """Which parts of a prompt's attention are measured while it is computed.

    length: tokens of the prompt, and of the continuation where there is one.
    layers, heads: ascending; query heads of the whole model, the same in every layer.
    rows: ascending absolute positions; `weights`, `mass`, `entropy` and `queries` are of these.
    key_sets: sets of keys as [start, end) ranges, sorted and disjoint, for `mass`.
    response: first row of the continuation, `length` where there is none; `distance` and `ahead` are
        of the rows from there on.
    """

    length: int
    layers: tuple[int, ...]
    heads: tuple[int, ...]
    rows: tuple[int, ...]
    key_sets: tuple[tuple[tuple[int, int], ...], ...]
    response: int
    quantities: tuple[Quantity, ...]

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
        }
        return shapes[quantity]

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
    )
