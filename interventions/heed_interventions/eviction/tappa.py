"""TAPPA: layers whose queries change more from row to row keep more keys.

TAPPA, ICLR 2026, arXiv 2601.21709. With q the mean cosine of two different ones of the last w queries
(rotated), averaged over heads,

    pref_l = 1 - q_l                                                          alpha null (infinity)
    pref_l = entropy_l^(1 / tau1) variance_l^(1 / tau2) + alpha (1 - q_l)     otherwise

layers share the budget in proportion to pref; inside of a layer

    score_k = pool(mean_q A_qk + gamma_c var_q A_qk)   over the rows q of the window

The released code evicts layer by layer as the preferences come in; here all are known before.
"""

from typing import Literal

from pydantic import Field

from heed_interventions.eviction.budget import Budget
from heed_interventions.eviction.observation_window import WindowedEviction
from heed_interventions.views import ModelView
from heed_kernels.evict import QueryShare, Score, Share, WindowScore


class TAPPA(WindowedEviction):
    """Keys are scored by mean and variance over the window, layers by how alike its queries are."""

    title = "TAPPA"
    summary = "Layers whose queries resemble each other less get more of the budget."
    paper = "arXiv:2601.21709"

    method: Literal["tappa"] = "tappa"
    window: int = Field(
        default=32, ge=2, le=256, description="Last prompt rows that are observed; their keys stay."
    )
    gamma_c: float = Field(
        default=200, ge=0, le=1e4, description="Factor on the variance of a key's weights."
    )
    alpha: float | None = Field(
        default=None, ge=0, le=1e6, description="Factor on 1 - q; null: nothing else counts."
    )
    tau1: float = Field(default=1.6, ge=0.1, le=10, description="Root of the entropy.")
    tau2: float = Field(default=0.4, ge=0.1, le=10, description="Root of the variance.")

    def score(self, budget: Budget) -> Score:
        pooling: Literal["mean", "max"] = "max" if self.pooling == "max" else "mean"
        return WindowScore(self.window, self.kernel, pooling, variance=self.gamma_c)

    def share(self, budget: Budget, model: ModelView) -> Share:
        return QueryShare(self.window, self.alpha, self.tau1, self.tau2)

    def most(self, budget: Budget, model: ModelView) -> int:
        return budget.protected + min(budget.candidates, model.layers * budget.free)
