"""Head gain: multiply the output of chosen heads.

Zhou et al., "On the Role of Attention Heads in Large Language Model Safety" (Ships), ICLR 2025,
arXiv 2410.13708, "scaling contribution":

    o'_h = gain o_h      before the output projection

The paper only weakens heads (a factor of 1e-5 stands for removal); here 0 removes a head exactly,
negative values invert it and values above 1 reinforce it. The released code indexes keys by query
head, which is wrong under grouped-query attention; outputs belong to query heads, so it does not
arise here.
"""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from heed_interventions.method import CacheClass, Method
from heed_interventions.selectors import Heads, Layers, RowScope
from heed_interventions.views import ModelView, RequestView
from heed_kernels import edits as primitives


class HeadGain(Method):
    """gain > 1 reinforces heads; below 1 it weakens, removes (0) or inverts them."""

    title = "Head gain"
    summary = "Multiply the output of chosen heads; a gain below 1 is privileged."
    paper = "arXiv:2410.13708"
    cache = CacheClass.SALTED
    repeatable = True
    can_be_privileged = True

    method: Literal["head_gain"] = "head_gain"
    gain: float = Field(
        ge=-2, le=4, description="Factor on the output; below 1 is privileged.", examples=[1.5]
    )
    layers: Layers = "all"
    heads: Heads = "all"
    rows: RowScope = "all"

    def is_neutral(self, model: ModelView) -> bool:
        return self.gain == 1

    def privileged_parameter(self) -> str | None:
        return "gain" if self.gain < 1 else None

    def edits(self, request: RequestView) -> Iterator[primitives.Edit]:
        yield primitives.HeadGain(
            on=self.on(request),
            rows=self.on_rows(request),
            gain=self.gain,
            source=request.source,
        )
