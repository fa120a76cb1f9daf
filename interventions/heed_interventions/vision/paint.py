"""PAINT: raise the logits of the image's patches that its encoder's class token attends to.

"Fixing Imbalanced Attention to Mitigate In-Context Hallucination of Large Vision-Language Model",
arXiv 2501.12206, as released. With c_1 and c_2 what the class token of a CLIP encoder gives to each of an
image's n patches in its first layer and in its last but one, summed over the encoder's heads

    summary = the k largest c_2, k the number of those above Q3 + 1.5 (Q3 - Q1)
    local   = the floor(local_ratio n) largest c_1, without the summary
    s'_qk   = s_qk + alpha |s_qk|   for the tokens k of local patches, beta in place of alpha in the summary

before the softmax, in all heads, for the last prompt row and all generated ones. The paper's first version
speaks of head-specific strengths, which its code does not have. Its "spatial" patches are ranked by sums
of softmax rows, which are all 1, and are left out here; so is contrastive decoding, which is no edit of
attention. The released code uses layers 2 to 31 of 32 and so begins at layer 2 here.
"""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from heed_interventions.method import CacheClass, Method
from heed_interventions.selectors import Layers, own_layers, share_of
from heed_interventions.views import ModelView, RequestView
from heed_kernels.edits import OPEN, Edit, KeyRanges, KeyScale, PatchKeys, Rows


class PAINT(Method):
    """The larger alpha and beta, the more the answer looks at these patches; above 0.7 it degenerates."""

    title = "PAINT (attention to the image's salient patches)"
    summary = "Raise the attention of the answer to the patches that the image encoder attends to."
    paper = "arXiv:2501.12206"
    cache = CacheClass.SHARED
    needs_image = True
    reads_tower = True

    method: Literal["paint"] = "paint"
    alpha: float = Field(
        default=0.7, ge=0, le=0.75, description="Share by which logits of local patches grow."
    )
    beta: float = Field(
        default=0.3, ge=0, le=0.5, description="The same for the patches of the summary."
    )
    local_ratio: float = Field(
        default=0.25, ge=0, le=0.3, description="Share of an image's patches that are local."
    )
    layers: Layers = own_layers("Layers 2 to L - 1")

    def is_neutral(self, model: ModelView) -> bool:
        return self.beta == 0 and (self.alpha == 0 or self.local_ratio == 0)

    def default_layers(self, model: ModelView) -> range:
        return range(2, model.layers)

    def publication_limit(self, prompt_length: int) -> int:
        return prompt_length - 1

    def edits(self, request: RequestView) -> Iterator[Edit]:
        on, rows = self.on(request), Rows(request.prompt.length - 1, OPEN)
        images = request.visual_keys(self.method)
        patches = self._patches(images, request)
        local = share_of(self.local_ratio, patches)
        for strength, summary, most in (self.alpha, False, local), (self.beta, True, patches // 4):
            if strength and most:
                keys = PatchKeys(images, summary, most)
                yield KeyScale(on, rows, keys, 1.0, strength, request.source)

    def _patches(self, images: KeyRanges, request: RequestView) -> int:
        """Of every image. Raises `InterventionError` where tokens do not stand for patches."""
        lengths = {end - start for start, end in images.ranges}
        expected = request.model.patches or min(lengths)
        if lengths != {expected} or len(images.ranges) != len(request.prompt.images):
            raise request.error(
                "method",
                f"each image has to be {expected} tokens in one piece, one for each patch",
                "vision",
            )
        return expected
