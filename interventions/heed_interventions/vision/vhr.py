"""VHR (vision-aware head reinforcement): raise the heads whose output the image changes most.

He et al., "Cracking the Code of Hallucination in LVLMs with Vision-aware Head Divergence", ACL 2025,
arXiv 2412.13949, Eq. 4, 6, 7. At the last prompt row P - 1, layer by layer, with o_h a head's output
before the output projection and b_h its output without the image

    VHD_h = |o_h - b_h|,  set to 0 where VHD_h and |b_h|^2 both exceed mean + std over the layer's heads
    o'_h = alpha o_h      for the floor(select_fraction H) largest VHD_h, in row P - 1 and all later ones,
                          or with `rows` "all" in all rows

The paper takes b_h from a second run without the image's tokens: `mode` "companion". It is never
reinforced here, and so an ordinary run of a text. With "masked" b_h is what the same row gives when the
image's keys are left out of its softmax, which misses what earlier layers have already taken from the
image. docs/methods/vhr.md says how far the two agree.
"""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from heed_interventions.method import CacheClass, Method
from heed_interventions.selectors import Layers, own_layers, share_of
from heed_interventions.views import ModelView, RequestView
from heed_kernels.edits import OPEN, Edit, HeadChoice, KeyRanges, Rows

COMPANION = "companion"
"""The mode of the second run, and the report's key of what it costs."""


class VHR(Method):
    """The larger alpha, the more the chosen heads weigh; above 3 answers degenerate in the paper."""

    title = "VHR (vision-aware head reinforcement)"
    summary = "Reinforce the heads whose output depends on the image most, chosen once per answer."
    paper = "arXiv:2412.13949"
    cache = CacheClass.SHARED
    needs_image = True

    method: Literal["vhr"] = "vhr"
    alpha: float = Field(default=2.0, gt=0, le=3.5, description="Factor on the chosen heads.")
    select_fraction: float = Field(
        default=0.5, gt=0, lt=1, description="Share of a layer's heads that are chosen."
    )
    filter: bool = Field(
        default=True, description="Leave heads out that are outliers with and without the image."
    )
    mode: Literal["companion", "masked"] = Field(
        default="companion",
        description='What a head gives without the image: "companion" runs the prompt without it first; '
        '"masked" leaves the image\'s keys out of the softmax, which is cheaper and differs.',
    )
    rows: Literal["last_and_generated", "all"] = Field(
        default="last_and_generated",
        description='Which rows are reinforced: "all" are those of the prompt too, whose prefill is one step.',
    )
    layers: Layers = own_layers("Layer 1 and the last 14")

    def default_layers(self, model: ModelView) -> list[int]:
        return sorted({1, *range(max(model.layers - 14, 0), model.layers)})

    def is_neutral(self, model: ModelView) -> bool:
        return self.alpha == 1 or share_of(self.select_fraction, model.query_heads) == 0

    def looks_ahead(self) -> bool:
        return self.rows == "all"

    def publication_limit(self, prompt_length: int) -> int:
        return prompt_length - 1

    def edits(self, request: RequestView) -> Iterator[Edit]:
        last = request.prompt.length - 1
        if self.rows == "all" and not self.is_neutral(request.model):
            request.check_one_step("rows", "all", "last_and_generated")
        keys = request.visual_keys(self.method)
        twin = self.mode == COMPANION
        if twin:
            length = self._text_length(keys, request)
            if not self.is_neutral(request.model):
                request.report[COMPANION] = {"prompt_tokens": length}
        yield HeadChoice(
            on=self.on(request),
            rows=Rows(0 if self.rows == "all" else last, OPEN),
            at=last,
            keys=keys,
            chosen=share_of(self.select_fraction, request.model.query_heads),
            gain=self.alpha,
            outliers_out=self.filter,
            source=request.source,
            twin=twin,
        )

    def _text_length(self, keys: KeyRanges, request: RequestView) -> int:
        """Tokens of the second run. Raises `InterventionError` where it cannot be had."""
        obstacle = request.model.companion_obstacle
        length = request.prompt.length - sum(end - start for start, end in keys.ranges)
        if not length:
            obstacle = "without its image this prompt is empty"
        if obstacle is not None:
            raise request.error("mode", f'{obstacle}: set it to "masked"', "unsupported")
        return length
