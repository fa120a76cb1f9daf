"""SPIN: weaken the heads that look at the image least, anew for each row of the answer.

Sarkar et al., "Mitigating Hallucinations in Vision-Language Models through Image-Guided Head
Suppression", EMNLP 2025, arXiv 2505.16411. For the last prompt row and all generated ones, with the
logits s before any edit and V the keys of the images

    g_h = sum over k in V of s_hqk,     o'_h = o_h  for the floor(ratio H) largest g_h,
                                        o'_h = lambda o_h  for the other heads

before the output projection. A ratio that keeps no head is refused: it would be a gain on all of them,
which is privileged in `head_gain`. The released code divides g_h by a standard deviation and takes a softmax,
neither of which moves the ranking.
"""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from heed_interventions.method import CacheClass, Method
from heed_interventions.selectors import Layers, share_of
from heed_interventions.views import ModelView, RequestView
from heed_kernels.edits import OPEN, Edit, HeadRanking, Rows


class SPIN(Method):
    """The smaller ratio and lambda, the more heads are weakened, and the further."""

    title = "SPIN (image-guided head suppression)"
    summary = "Weaken, in each row of the answer, the heads that attend least to the image."
    paper = "arXiv:2505.16411"
    cache = CacheClass.SHARED
    needs_image = True

    method: Literal["spin"] = "spin"
    ratio: float = Field(
        default=0.8, gt=0, le=1, description="Share of a layer's heads that stay, at least one."
    )
    lambda_: float = Field(
        default=0.1, ge=0, le=1, alias="lambda", description="Factor on the other heads' outputs."
    )
    layers: Layers = "all"

    def is_neutral(self, model: ModelView) -> bool:
        return self.lambda_ == 1 or self._kept(model) == model.query_heads

    def publication_limit(self, prompt_length: int) -> int:
        return prompt_length - 1

    def edits(self, request: RequestView) -> Iterator[Edit]:
        kept, heads = self._kept(request.model), request.model.query_heads
        if not kept and not self.is_neutral(request.model):
            message = f"it keeps none of a layer's {heads} heads; at least one has to stay"
            raise request.error("ratio", message, "out_of_bounds")
        yield HeadRanking(
            on=self.on(request),
            rows=Rows(request.prompt.length - 1, OPEN),
            keys=request.visual_keys(self.method),
            kept=kept,
            factor=self.lambda_,
            source=request.source,
        )

    def _kept(self, model: ModelView) -> int:
        return share_of(self.ratio, model.query_heads)
