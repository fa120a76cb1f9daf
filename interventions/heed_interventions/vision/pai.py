"""PAI (Pay Attention to Image): raise the logits of the image's keys.

Liu et al., "Paying More Attention to Image", ECCV 2024, arXiv 2407.21771, Eq. 3. For the last prompt
row and all generated ones, and the keys k of the images

    s'_qk = s_qk + alpha |s_qk|

before the softmax, in all heads. The paper combines it with contrastive decoding against the prompt
without its image (Eq. 4, `gamma`), which is not an edit of attention and is not offered: `gamma` above
1 is refused. The released code uses layers 2 to 31 of 32 and so begins at layer 2 here.
"""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from heed_interventions.method import CacheClass, Method
from heed_interventions.selectors import Layers, own_layers
from heed_interventions.views import ModelView, RequestView
from heed_kernels.edits import OPEN, Edit, KeyScale, Rows


class PAI(Method):
    """The larger alpha, the more the answer looks at the image; near 0.7 it begins to degenerate."""

    title = "PAI (pay attention to image)"
    summary = "Raise the attention of the answer to the image."
    paper = "arXiv:2407.21771"
    cache = CacheClass.SHARED
    needs_image = True

    method: Literal["pai"] = "pai"
    alpha: float = Field(
        default=0.5, ge=0, le=0.7, description="Share of its magnitude by which a logit grows."
    )
    gamma: float = Field(
        default=1.0,
        ge=1,
        le=2,
        description="Weight of contrastive decoding, which is not offered: only 1 is served.",
    )
    layers: Layers = own_layers("Layers 2 to L - 1")

    def is_neutral(self, model: ModelView) -> bool:
        return self.alpha == 0

    def default_layers(self, model: ModelView) -> range:
        return range(2, model.layers)

    def publication_limit(self, prompt_length: int) -> int:
        return prompt_length - 1

    def edits(self, request: RequestView) -> Iterator[Edit]:
        if self.gamma != 1:
            raise request.error(
                "gamma",
                "contrastive decoding needs a second run without the image and is not offered; leave "
                "`gamma` at 1",
                "unsupported",
            )
        yield KeyScale(
            on=self.on(request),
            rows=Rows(request.prompt.length - 1, OPEN),
            keys=request.visual_keys(self.method),
            scale=1.0,
            absolute=self.alpha,
            source=request.source,
        )
