"""Eviction by what the last rows of the prompt look at: fields and score that these methods share."""

from typing import Annotated, Literal

from pydantic import AfterValidator, Field
from pydantic_core import PydanticCustomError

from heed_interventions.eviction.budget import Budget, EvictionMethod
from heed_kernels.evict import Score, WindowScore


def _odd(kernel: int) -> int:
    if kernel % 2 == 0:
        raise PydanticCustomError("out_of_bounds", "must be odd")
    return kernel


Window = Annotated[
    int, Field(ge=1, le=256, description="Last prompt rows that are observed; their keys are kept.")
]
Kernel = Annotated[
    int,
    Field(ge=1, le=63, description="Keys over which scores are pooled; odd; 1: no pooling."),
    AfterValidator(_odd),
]
Pooling = Annotated[Literal["avg", "max"], Field(description="How scores are pooled.")]


class WindowedEviction(EvictionMethod):
    """Keys are scored by their mean weight over the rows of an observation window."""

    window: Window = 32
    kernel: Kernel = 5
    pooling: Pooling = "avg"

    def window_length(self) -> int:
        return self.window

    def score(self, budget: Budget) -> Score:
        pooling: Literal["mean", "max"] = "max" if self.pooling == "max" else "mean"
        return WindowScore(self.window, self.kernel, pooling)
