"""Task-KV: heads that differ from the layer's others keep all keys, the others a few.

"Task-KV: Task-aware KV Cache Optimization via Semantic Differentiation of Attention Heads",
arXiv 2501.15113. The semantic vector of a head is the sum over its t most attended keys of weight
times value; the centre is the mean over heads. In layer r of R layers with n heads, the

    f(r) = n beta - (n beta - m) / (R - 1) * r

farthest from the centre and the single nearest keep all keys; the others keep sinks, recent tokens
and, of those between, what the budget of the layer leaves. The paper has no rule for a budget that
is too small for this: here the chosen heads then share what the others' protected tokens leave.
Heads are KV heads, f is rounded down, and the distance is Euclidean (the paper does not say).
"""

import math
from typing import Literal

from pydantic import Field

from heed_interventions.eviction.budget import Budget, Recent, Sinks
from heed_interventions.eviction.observation_window import Kernel, WindowedEviction
from heed_interventions.selectors import as_written
from heed_interventions.views import ModelView, RequestView
from heed_kernels.evict import KindShare, Share
from heed_kernels.survivors import kind_counts


class TaskKV(WindowedEviction):
    """Far heads look at what is particular to a task, so they are spared."""

    title = "Task-KV"
    summary = "Heads far from the layer's semantic centre keep all keys, the others a few."
    paper = "arXiv:2501.15113"

    method: Literal["task_kv"] = "task_kv"
    sinks: Sinks = 16
    recent: Recent | None = 256
    kernel: Kernel = 7
    beta: float = Field(default=0.25, ge=0, le=1, description="Share of far heads in layer 0.")
    m: int = Field(default=1, ge=0, le=1024, description="Far heads in the last layer.")
    t: int = Field(
        default=256, ge=1, le=4096, description="Most attended keys in a head's semantic vector."
    )

    def own_recent(self, count: int) -> int:
        return 256

    def check(self, request: RequestView) -> None:
        heads = request.model.kv_heads
        if self.wrote("m") and self.m > heads:
            raise request.error(
                "m", f"m is {self.m}, and this model has {heads} KV heads in a layer", "head"
            )

    def share(self, budget: Budget, model: ModelView) -> Share:
        return KindShare(self.far_heads(model), self.t)

    def shared_out(self, budget: Budget, model: ModelView) -> dict[str, object]:
        whole = [
            min(far + 1, model.kv_heads)
            if self._of_a_chosen_head(budget, model, far) == budget.prompt
            else 0
            for far in self.far_heads(model)
        ]
        return {"whole_heads": whole}

    def most(self, budget: Budget, model: ModelView) -> int:
        return max(self._of_a_chosen_head(budget, model, far) for far in self.far_heads(model))

    def far_heads(self, model: ModelView) -> tuple[int, ...]:
        """f(r) of each layer; the method's own m is clipped to n * beta, so that f never rises."""
        first, steps = model.kv_heads * as_written(self.beta), model.layers - 1
        last = self.m if self.wrote("m") else min(self.m, math.floor(first))
        if steps == 0:
            return (min(model.kv_heads, math.floor(first)),)
        return tuple(
            math.floor((first * (steps - layer) + last * layer) / steps)
            for layer in range(model.layers)
        )

    def _of_a_chosen_head(self, budget: Budget, model: ModelView, far: int) -> int:
        chosen = min(far + 1, model.kv_heads)
        others = model.kv_heads - chosen
        return kind_counts(chosen, others, budget.prompt, budget.protected, budget.count)[0][0]
