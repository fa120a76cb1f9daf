"""Attention scale: multiply the logits of chosen heads.

Zhou et al., "On the Role of Attention Heads in Large Language Model Safety" (Ships), ICLR 2025,
arXiv 2410.13708, "undifferentiated attention": the query projection of a head is scaled,

    s'_qk = q_scale s_qk

so that at 0 every row attends uniformly to all keys that it sees. The paper takes 1e-4 or 1e-5 for
that limit; here 0 is allowed and exact. The released code also scales keys, which would sit in the
cache; scaling logits is the same and touches no cached value.
"""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from heed_interventions.method import CacheClass, Method
from heed_interventions.selectors import Heads, Layers
from heed_interventions.views import ModelView, RequestView
from heed_kernels.edits import ALL_KEYS, Edit, KeyScale


class AttentionScale(Method):
    """q_scale > 1 sharpens a head's attention; below 1 it flattens it, down to uniform at 0."""

    title = "Attention scale"
    summary = "Multiply the attention logits of chosen heads; a scale below 1 is privileged."
    paper = "arXiv:2410.13708"
    cache = CacheClass.SALTED
    repeatable = True
    can_be_privileged = True

    method: Literal["attention_scale"] = "attention_scale"
    q_scale: float = Field(
        ge=0, le=10, description="Factor on the logits; below 1 is privileged.", examples=[1.5]
    )
    layers: Layers = "all"
    heads: Heads = "all"

    def is_neutral(self, model: ModelView) -> bool:
        return self.q_scale == 1

    def privileged_parameter(self) -> str | None:
        return "q_scale" if self.q_scale < 1 else None

    def edits(self, request: RequestView) -> Iterator[Edit]:
        yield KeyScale(
            on=self.on(request),
            rows=self.on_rows(request),
            keys=ALL_KEYS,
            scale=self.q_scale,
            absolute=0.0,
            source=request.source,
        )
