"""GIFT (gaze-shift-guided fusion enhancement): raise what the question made the model look at.

"GIFT", ICML 2026, arXiv 2510.22067. Saliency, once per prompt, in one layer, with A the weights
of the rows i of the question on the image's keys j: the mean over rows and the top heads of

    max(A_ij - A_(i-1)j, 0)       clipped to mean +- 3 std and stretched to [0, 1]: S_j

Enhancement, in the last prompt row and each generated one, with H_V and H_Q the top heads by what they
give to the image and to the question, and r the factor by which the first line raises the image's weight
over all of H_V:

    a_j <- a_j exp(alpha S_j)   for the image's keys in H_V,      a_j <- a_j beta r   for the question's in H_Q

then rows are normalised. The released code finds the saliency in a run of its own; here it is found
in the one prefill, which needs the saliency layer to lie below the enhanced ones. Written from the
formulas alone.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Discriminator, Field, Tag

from heed_interventions.errors import join_path
from heed_interventions.method import CacheClass, Method
from heed_interventions.selectors import Layers, layer_of, shape, share_of
from heed_interventions.spans import Range, Spans, find_spans, union
from heed_interventions.views import ModelView, RequestView
from heed_kernels.edits import OPEN, Edit, GazeShift, KeyRanges, Rows

_LAYER_BOUND = 10_000


class GIFT(Method):
    """The larger alpha, the more the answer looks at what the question turned to."""

    title = "GIFT (gaze-shift-guided enhancement)"
    summary = "Raise the attention to the parts of the image that the question turned to."
    paper = "arXiv:2510.22067"
    cache = CacheClass.PRIVATE
    needs_image = True

    method: Literal["gift"] = "gift"
    alpha: float = Field(default=5.0, ge=0, le=8, description="How far salient keys are raised.")
    beta: float = Field(
        default=1.0, ge=0, le=2, description="How far the question's keys follow the image's."
    )
    saliency_layer: int = Field(
        ge=-_LAYER_BOUND,
        lt=_LAYER_BOUND,
        description="Layer in which the saliency is found; below all of `layers`.",
    )
    layers: Layers
    head_fraction: float = Field(
        default=0.5, gt=0, le=1, description="Share of a layer's heads that are the top ones."
    )
    content_rows: Annotated[
        Annotated[Literal["all"], Tag("<text>")] | Annotated[Spans, Tag("<list>")],
        Discriminator(
            shape,
            custom_error_type="wrong_type",
            custom_error_message='must be "all" or a list of spans',
        ),
    ] = Field(default="all", description="Rows of the question that count: its words of content.")

    def is_neutral(self, model: ModelView) -> bool:
        heads = share_of(self.head_fraction, model.query_heads)
        return heads == 0 or (self.alpha == 0 and self.beta == 1)

    def edits(self, request: RequestView) -> Iterator[Edit]:
        on, prompt = self.on(request), request.prompt.length
        path = join_path(request.path, "saliency_layer")
        layer = layer_of(self.saliency_layer, request.model, path)
        if any(on.masks[: layer + 1]):
            raise request.error(
                "saliency_layer",
                f"the saliency is found in layer {layer} while the prompt runs, so `layers` have to "
                "come after it",
                "layer",
            )
        end = request.image_end("method", self.method)
        yield GazeShift(
            on=on,
            rows=Rows(prompt - 1, OPEN),
            keys=request.visual_keys(self.method),
            beside=KeyRanges(((end, prompt - 1),) if end < prompt - 1 else ()),
            turning=KeyRanges(tuple(self._content(request, end, prompt - 1))),
            saliency_layer=layer,
            heads=share_of(self.head_fraction, request.model.query_heads),
            strength=self.alpha,
            balance=self.beta,
            source=request.source,
        )

    def _content(self, request: RequestView, start: int, end: int) -> Iterator[Range]:
        """Rows of the question [start, end) that count."""
        spans = [(start, end)]
        if self.content_rows != "all":
            spans = find_spans(self.content_rows, request, "content_rows")
        for first, last in union(spans):
            if max(first, start) < min(last, end):
                yield max(first, start), min(last, end)
