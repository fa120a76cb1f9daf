"""PyramidKV: SnapKV with more of the budget for early layers than for late ones.

Cai et al., "PyramidKV: Dynamic KV Cache Compression based on Pyramidal Information Funneling",
arXiv 2406.02069. With b keys to choose per layer and N those to choose from, layer l of L gets

    most - l (most - least) / (L - 1)     least = floor(b / beta), most = 2 b - least

where `most` is cut to N and `least` raised by as much. The released code rounds the step down, so
that the layers together keep more than L times the budget; here the parts are rounded so that they
keep exactly that.
"""

import math
from typing import Literal

from pydantic import Field

from heed_interventions.eviction.budget import Budget
from heed_interventions.eviction.observation_window import WindowedEviction
from heed_interventions.selectors import as_written
from heed_interventions.views import ModelView


class PyramidKV(WindowedEviction):
    """The larger beta, the steeper the pyramid; 1 is SnapKV."""

    title = "PyramidKV"
    summary = "SnapKV with more of the budget for early layers and less for late ones."
    paper = "arXiv:2406.02069"

    method: Literal["pyramidkv"] = "pyramidkv"
    beta: float = Field(
        default=20, ge=1, le=100, description="The last layer gets about 1 / beta of the mean."
    )

    def counts(self, budget: Budget, model: ModelView) -> tuple[int, ...]:
        free, layers = budget.free, model.layers
        if budget.prompt < 2 * free or layers == 1:
            return super().counts(budget, model)
        most = min(2 * free - math.floor(free / as_written(self.beta)), budget.candidates)
        least = 2 * free - most
        # In units of 1 / (layers - 1), so that nothing is lost: the parts add up to layers * free.
        parts = [most * (layers - 1) - (most - least) * layer for layer in range(layers)]
        chosen = [part // (layers - 1) for part in parts]
        by_remainder = sorted(range(layers), key=lambda layer: -(parts[layer] % (layers - 1)))
        for layer in by_remainder[: layers * free - sum(chosen)]:
            chosen[layer] += 1
        return tuple(budget.protected + count for count in chosen)

    def shared_out(self, budget: Budget, model: ModelView) -> dict[str, object]:
        return {"layer_budgets": list(self.counts(budget, model))}
