"""AVAR's modulation: more attention to the image, less to the system prompt, by scaled logits.

"AVAR", ICLR 2026, arXiv 2603.03825, its training-free part. Before the softmax, in all heads,

    s'_qk = (1 + alpha_img) s_qk  for the keys of the images
    s'_qk = (1 - alpha_sys) s_qk  for the keys before the first image

The released repository has the training alone; that the factors act on logits, and on the rows after
the image, is taken from ClearSight, whose form it is. The keys before the image hold the model's
attention sink, whose mass goes everywhere when it is lowered; `alpha_sys` is off by default and
privileged.
"""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from heed_interventions.method import CacheClass, Method
from heed_interventions.selectors import Layers, RowScope
from heed_interventions.views import ModelView, RequestView
from heed_kernels.edits import Edit, KeyScale


class AVAR(Method):
    """alpha_img > 0 sharpens the attention to the image; alpha_sys > 0 takes it from the system prompt."""

    title = "AVAR modulation"
    summary = "Scale up the image's logits, and scale down the system prompt's (privileged)."
    paper = "arXiv:2603.03825"
    cache = CacheClass.SALTED
    needs_image = True
    can_be_privileged = True

    method: Literal["avar"] = "avar"
    alpha_img: float = Field(
        default=0.15, ge=0, le=0.5, description="By how much the image's logits are scaled up."
    )
    alpha_sys: float = Field(
        default=0.0,
        ge=0,
        le=0.9,
        description="By how much logits before the first image are scaled down; above 0 is privileged.",
    )
    layers: Layers = "all"
    rows: RowScope = "after_image"

    def is_neutral(self, model: ModelView) -> bool:
        return self.alpha_img == 0 and self.alpha_sys == 0

    def privileged_parameter(self) -> str | None:
        return "alpha_sys" if self.alpha_sys > 0 else None

    def edits(self, request: RequestView) -> Iterator[Edit]:
        on, rows = self.on(request), self.on_rows(request)
        parts = (
            (request.visual_keys(self.method), 1 + self.alpha_img),
            (request.system_keys(self.method), 1 - self.alpha_sys),
        )
        for keys, scale in parts:
            if keys.ranges and scale != 1:
                yield KeyScale(on, rows, keys, scale, absolute=0.0, source=request.source)
