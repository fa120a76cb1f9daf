"""Ada-KV: SnapKV's scores, with the budget of a layer shared among its heads by need.

Feng et al., "Ada-KV: Optimizing KV Cache Eviction by Adaptive Budget Allocation for Efficient LLM
Inference", arXiv 2407.11550. Of the H * B keys that the H heads of a layer may choose, head h gets

    (1 - floor) n_h + floor * B      n_h: how many of the layer's H * B highest scores lie in it

With grouped queries the cache has KV heads, and these share; the released code does so only where it
is told that queries are grouped.
"""

import math
from fractions import Fraction
from typing import Literal

from pydantic import Field

from heed_interventions.eviction.budget import Budget
from heed_interventions.eviction.observation_window import Kernel, Pooling, WindowedEviction
from heed_interventions.views import ModelView
from heed_kernels.evict import HeadShare, Share


class AdaKV(WindowedEviction):
    """Heads with a flat attention keep more keys, heads that look at a few keep fewer."""

    title = "Ada-KV"
    summary = "SnapKV's scores; the heads of a layer share its budget by where the highest lie."
    paper = "arXiv:2407.11550"

    method: Literal["adakv"] = "adakv"
    kernel: Kernel = 7
    pooling: Pooling = "max"
    floor: float = Field(
        default=0.5, ge=0, le=1, description="Share of the budget that every head is sure of."
    )

    def share(self, budget: Budget, model: ModelView) -> Share:
        return HeadShare(self.floor)

    def most(self, budget: Budget, model: ModelView) -> int:
        highest = min(budget.candidates, model.kv_heads * budget.free)
        floor = Fraction(self.floor)
        count = math.ceil((1 - floor) * highest + floor * budget.free)
        return budget.protected + min(count, budget.candidates)
