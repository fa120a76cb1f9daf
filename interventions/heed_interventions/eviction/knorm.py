"""Knorm: keep the keys with the smallest norm.

Devoto et al., "A Simple and Effective L2 Norm-Based Strategy for KV Cache Compression", EMNLP 2024,
arXiv 2406.11430:

    score_k = -|key_k|

In trained models keys of small norm tend to be those that get much attention. The paper leaves the
first two layers alone; here all layers have the same budget.
"""

from typing import Literal

from heed_interventions.eviction.budget import Budget, EvictionMethod
from heed_kernels.evict import NormScore, Score


class Knorm(EvictionMethod):
    """Looks at no query and costs next to nothing."""

    title = "Knorm"
    summary = "Keep the keys with the smallest norm."
    paper = "arXiv:2406.11430"

    method: Literal["knorm"] = "knorm"

    def score(self, budget: Budget) -> Score:
        return NormScore()
