"""SnapKV: keep the keys that the last rows of the prompt look at.

Li et al., "SnapKV: LLM Knows What You are Looking for Before Generation", NeurIPS 2024,
arXiv 2404.14469. With the weights A of the last w prompt rows,

    score_k = pool(sum_q A_qk)   for the keys before the window

and each KV head keeps the window and the keys with the highest scores. The released code scores and
caches query heads; here the query heads of a KV head are averaged.
"""

from typing import Literal

from heed_interventions.eviction.observation_window import WindowedEviction


class SnapKV(WindowedEviction):
    """The window is the question in most prompts: what it does not look at is dropped for good."""

    title = "SnapKV"
    summary = "Keep the keys that the last rows of the prompt attend to; evict the rest."
    paper = "arXiv:2404.14469"

    method: Literal["snapkv"] = "snapkv"
