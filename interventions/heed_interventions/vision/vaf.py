"""VAF (visual amplification fusion, ClearSight): scale the logits of image and system keys.

Yin et al., "ClearSight", CVPR 2025, arXiv 2503.13107. For the rows after the image, before the softmax

    s'_qk = enh_para s_qk  for the keys of the images,   s'_qk = sup_para s_qk  for those before the first

in all heads of the layers in the middle (9 to 14 of 32). A factor moves a logit away from zero, so a
negative one falls. The paper chooses heads and also lowers the system prompt (0.9; the command in the
released repository has 0.95); here that is off by default, because it weakens the operator's
instructions, and privileged.
"""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from heed_interventions.method import CacheClass, Method
from heed_interventions.selectors import Layers, own_layers
from heed_interventions.views import ModelView, RequestView
from heed_kernels.edits import OPEN, Edit, KeyScale, Rows


class VAF(Method):
    """enh_para > 1 sharpens the attention to the image; sup_para < 1 takes it from the system prompt."""

    title = "VAF (ClearSight)"
    summary = (
        "Scale the logits of the image, and of what stands before it; the latter is privileged."
    )
    paper = "arXiv:2503.13107"
    cache = CacheClass.SALTED
    needs_image = True
    can_be_privileged = True

    method: Literal["vaf"] = "vaf"
    enh_para: float = Field(default=1.15, ge=1, le=2, description="Factor on the image's logits.")
    sup_para: float = Field(
        default=1.0,
        ge=0,
        le=1,
        description="Factor on the logits before the first image; below 1 is privileged.",
    )
    layers: Layers = own_layers("Layers 9 to 14")

    def is_neutral(self, model: ModelView) -> bool:
        return self.enh_para == 1 and self.sup_para == 1

    def default_layers(self, model: ModelView) -> range:
        return range(9, 15)

    def privileged_parameter(self) -> str | None:
        return "sup_para" if self.sup_para < 1 else None

    def edits(self, request: RequestView) -> Iterator[Edit]:
        on = self.on(request)
        rows = Rows(request.image_end("method", self.method), OPEN)
        parts = (
            (request.visual_keys(self.method), self.enh_para),
            (request.system_keys(self.method), self.sup_para),
        )
        for keys, scale in parts:
            if keys.ranges and scale != 1:
                yield KeyScale(on, rows, keys, scale, absolute=0.0, source=request.source)
