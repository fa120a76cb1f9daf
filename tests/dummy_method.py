"""A method that nothing but the registry has been told of."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from heed_interventions.method import CacheClass, Method
from heed_interventions.selectors import Heads, Layers
from heed_interventions.views import ModelView, RequestView
from heed_kernels.edits import Edit


class Dummy(Method):
    """It has a field of each kind."""

    title = "Dummy"
    summary = "Does nothing, in a way of its own."
    paper = "none"
    cache = CacheClass.SHARED

    method: Literal["dummy"] = "dummy"
    strength: float = Field(ge=-3, le=3, description="How much of nothing.", examples=[0.5])
    colour: Literal["red", "green"] = "red"
    loud: bool = False
    note: str | None = Field(default=None, max_length=20)
    order: list[int] = Field(default=[1, 2], description="Some numbers.")
    layers: Layers = "all"
    heads: Heads = "all"

    def is_neutral(self, model: ModelView) -> bool:
        return True

    def edits(self, request: RequestView) -> Iterator[Edit]:
        yield from ()
