"""KeyDiff: keep the keys that differ most from the others.

Park et al., "KeyDiff: Key Similarity-Based KV Cache Eviction for Long-Context LLM Inference in
Resource-Constrained Environments", arXiv 2504.15364:

    score_k = -cos(key_k, mean of all keys at unit length)

with keys as they are cached, after their rotation. The paper evicts block by block through the
prompt; here all of the prompt is at hand when keys are chosen.
"""

from typing import Literal

from heed_interventions.eviction.budget import Budget, EvictionMethod
from heed_kernels.evict import DifferenceScore, Score


class KeyDiff(EvictionMethod):
    """Looks at no query: the same keys are kept whatever is asked about the text."""

    title = "KeyDiff"
    summary = "Keep the keys that are least similar to the mean key."
    paper = "arXiv:2504.15364"

    method: Literal["keydiff"] = "keydiff"

    def score(self, budget: Budget) -> Score:
        return DifferenceScore()
