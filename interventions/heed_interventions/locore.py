"""LocoRE: strengthen the attention of generated rows to the tokens just before them.

"Hallucination Begins Where Saliency Drops", ICLR 2026, arXiv 2601.20279, Eq. 8-10: for a generated
row q and the keys k in max(P, q - window) ... q - 1

    a'_k = (1 + beta) a_k / D      and a'_k = a_k / D for all others

which is a bias of ln(1 + beta). The paper leaves open whether the weights are normalised again;
they are here. Its equations begin the window after the image, so that the end of the prompt counts
as well; that is `include_prompt_tail`. The released code calls the method but does not contain it,
and the sources at hand do not give the window: its default is ours.
"""

import math
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from heed_interventions.method import CacheClass, Method
from heed_interventions.selectors import Layers
from heed_interventions.views import ModelView, RequestView
from heed_kernels.edits import OPEN, Edit, KeyBias, Rows, TrailingKeys


class LocoRE(Method):
    """beta > 0 keeps the answer coherent with its own last tokens; large values make it repeat."""

    title = "LocoRE"
    summary = "Strengthen the attention of each generated token to those just before it."
    paper = "arXiv:2601.20279"
    cache = CacheClass.SHARED

    method: Literal["locore"] = "locore"
    beta: float = Field(default=0.15, ge=0, le=1, description="Added weight of the last tokens.")
    window: int = Field(default=16, ge=1, le=256, description="How many tokens back.")
    include_prompt_tail: bool = Field(
        default=False, description="Count the prompt's keys after the last image as well."
    )
    layers: Layers = "all"

    def is_neutral(self, model: ModelView) -> bool:
        return self.beta == 0

    def publication_limit(self, prompt_length: int) -> int:
        return prompt_length

    def edits(self, request: RequestView) -> Iterator[Edit]:
        first = request.prompt.length
        if self.include_prompt_tail:
            first = request.image_end("include_prompt_tail", "`include_prompt_tail`")
        yield KeyBias(
            on=self.on(request),
            rows=Rows(request.prompt.length, OPEN),
            keys=TrailingKeys(first, self.clipped_window(self.window, request)),
            bias=math.log1p(self.beta),
            source=request.source,
        )
