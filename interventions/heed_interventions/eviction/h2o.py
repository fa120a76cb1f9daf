"""H2O: keep the heavy hitters, the keys with the most attention so far, and the recent ones.

Zhang et al., "H2O: Heavy-Hitter Oracle for Efficient Generative Inference of Large Language Models",
NeurIPS 2023, arXiv 2306.14048:

    score_k = sum of A_qk over all rows q so far

The sum favours early keys, which more rows have seen. In decode the paper evicts one key per row;
here the cache is brought back to the budget whenever a block of it is full.
"""

from typing import ClassVar, Literal

from pydantic import Field

from heed_interventions.eviction.budget import Budget, EvictionMethod
from heed_kernels.evict import ColumnScore, Score


class H2O(EvictionMethod):
    """Half of the budget goes to the most recent tokens, unless `recent` says otherwise."""

    title = "H2O"
    summary = "Keep the keys with the most attention over all rows, and the recent ones."
    paper = "arXiv:2306.14048"
    every_row: ClassVar[bool] = True

    method: Literal["h2o"] = "h2o"
    decode: bool = Field(default=True, description="Go on evicting while the answer is generated.")

    def own_recent(self, count: int) -> int:
        return count // 2

    def evicts_in_decode(self) -> bool:
        return self.decode

    def score(self, budget: Budget) -> Score:
        return ColumnScore()
