"""ScalingVis, the fixed form of AdaptVis: scale the logits of the image in the last prompt row.

Chen et al., "Why Is Spatial Reasoning Hard for VLMs?", ICML 2025, arXiv 2503.01773. For the row P - 1,
whose output is the first token of the answer, and the keys k of the images

    s'_qk = w s_qk

before the softmax, in all heads: w > 1 sharpens the attention to the image, w < 1 spreads it. Generated
rows are not edited. AdaptVis chooses between two values of w by the confidence of an unedited first
token; the second run of that row is not offered, so `w` is given.
"""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from heed_interventions.method import CacheClass, Method
from heed_interventions.selectors import Layers
from heed_interventions.views import ModelView, RequestView
from heed_kernels.edits import Edit, KeyScale, Rows


class AdaptVis(Method):
    """w > 1 where the model looks at the right place already; w < 1 where it should look elsewhere."""

    title = "AdaptVis (fixed w: ScalingVis)"
    summary = "Sharpen or spread the attention to the image in the row that gives the first token."
    paper = "arXiv:2503.01773"
    cache = CacheClass.SHARED
    needs_image = True

    method: Literal["adaptvis"] = "adaptvis"
    w: float = Field(ge=0.25, le=4, description="Factor on the image's logits.", examples=[1.5])
    layers: Layers = "all"

    def is_neutral(self, model: ModelView) -> bool:
        return self.w == 1

    def publication_limit(self, prompt_length: int) -> int:
        return prompt_length - 1

    def edits(self, request: RequestView) -> Iterator[Edit]:
        prompt = request.prompt.length
        yield KeyScale(
            on=self.on(request),
            rows=Rows(prompt - 1, prompt),
            keys=request.visual_keys(self.method),
            scale=self.w,
            absolute=0.0,
            source=request.source,
        )
