"""TOVA: keep the keys that the last row attends to, averaged over all heads of a layer.

Oren et al., "Transformers are Multi-State RNNs", EMNLP 2024, arXiv 2401.06104:

    score_k = mean over heads h of A_hqk, for the last row q

so that all heads of a layer keep the same keys. Nothing is protected, not even what is recent. In
decode the paper evicts one key per row; here the cache is brought back to the budget, by the row of
that moment, whenever a block of it is full.
"""

from typing import Literal

from pydantic import Field

from heed_interventions.eviction.budget import Budget, EvictionMethod
from heed_kernels.evict import Score, WindowScore


class TOVA(EvictionMethod):
    """One row decides; all heads of a layer keep the same keys."""

    title = "TOVA"
    summary = "Keep the keys that the last row attends to, the same for all heads of a layer."
    paper = "arXiv:2401.06104"

    method: Literal["tova"] = "tova"
    decode: bool = Field(default=True, description="Go on evicting while the answer is generated.")

    def evicts_in_decode(self) -> bool:
        return self.decode

    def score(self, budget: Budget) -> Score:
        return WindowScore(window=1, heads="layer")
