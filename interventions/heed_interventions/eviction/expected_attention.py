"""Expected Attention: keep the keys that queries to come are expected to attend to.

Devoto et al., "Expected Attention: KV Cache Compression by Estimating Attention from Future Queries
Distribution", arXiv 2510.00636. Queries before rotation are taken as normal with the prompt's mean mu
and covariance C, and R is the mean rotation of the next T positions:

    z_k = key_k . R mu / sqrt(d) + key_k' R C R' key_k / (2 d)
    score_k = (softmax(z)_k + epsilon) |value_k|

The paper weighs values by their norm after the output projection, its code (kvpress) and this file by
their own.
"""

from typing import ClassVar, Literal

from pydantic import Field

from heed_interventions.eviction.budget import Budget, EvictionMethod, Sinks
from heed_interventions.views import RequestView
from heed_kernels.evict import ExpectedScore, Score


class ExpectedAttention(EvictionMethod):
    """Does not depend on the last rows: fit for a text that is questioned later."""

    title = "Expected Attention"
    summary = "Keep the keys that later queries are expected to attend to, by their distribution."
    paper = "arXiv:2510.00636"
    every_row: ClassVar[bool] = True

    method: Literal["expected_attention"] = "expected_attention"
    sinks: Sinks = 4
    n_future_positions: int = Field(
        default=512, ge=1, le=8192, description="Positions over which the rotation is averaged."
    )
    use_covariance: bool = Field(
        default=True,
        description="Whether the covariance of the queries counts, or their mean only.",
    )
    epsilon: float = Field(
        default=0.02, ge=0, le=1, description="Added to the expected weight of every key."
    )

    def check(self, request: RequestView) -> None:
        if not request.model.rotary:
            raise request.error(
                "method",
                "expected_attention needs rotary positions with frequencies that do not change, "
                "and this model has none",
                "unsupported",
            )

    def score(self, budget: Budget) -> Score:
        return ExpectedScore(
            self.n_future_positions, budget.sinks, self.epsilon, self.use_covariance
        )
