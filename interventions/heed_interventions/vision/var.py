"""VAR (visual attention redistribution): give the attention of sinks to the rest of the image.

Kang et al., "See What You Are Told: Visual Attention Sink in Large Multimodal Models", ICLR 2025,
arXiv 2503.03321. With the hidden state x of a prompt token at a layer's input

    phi(x) = max over sink_dims of |x_d| / sqrt(mean of x^2 + 1e-6),     a sink: phi > tau

V the keys of the images, S the sinks, N = V without S, m_X the sum of a row's weights on X; in rows after
the image and heads where m_V >= min_visual_mass and m_N >= rho m_V

    a'_k = (1 - p) a_k  for k in S,     a'_k = a_k (1 + p m_S / m_N)  for k in N,     p = move_fraction

Text sinks give too; generated tokens never are sinks; a layer without a visual sink is left alone. The
released code moves 1 - p, takes the complement of rho and does not skip the last layer; this is the
paper's form. docs/methods/var.md has the list.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from heed_interventions.method import CacheClass, Method
from heed_interventions.selectors import Layers, own_layers
from heed_interventions.views import ModelView, RequestView
from heed_kernels.edits import OPEN, Edit, FlagKeys, FoundKeys, Gate, MassTransfer, Rows

_Dimension = Annotated[int, Field(ge=0, lt=1_000_000)]


class VAR(Method):
    """The larger move_fraction, the less the sinks keep; the gate leaves heads alone that look elsewhere."""

    title = "VAR (visual attention redistribution)"
    summary = "Move attention from sinks to the parts of the image that are none."
    paper = "arXiv:2503.03321"
    cache = CacheClass.SALTED
    needs_image = True
    reads_inputs = True

    method: Literal["var"] = "var"
    move_fraction: float = Field(
        default=0.6, ge=0, le=1, description="Share of its weight that a sink gives."
    )
    rho: float = Field(
        default=0.5,
        ge=0,
        le=1,
        description="Least share that the image's other keys have in what a head gives to the image.",
    )
    min_visual_mass: float = Field(
        default=0.2, ge=0, le=1, description="Least weight that a head gives to the image."
    )
    tau: float = Field(default=20.0, gt=0, le=200, description="A token is a sink above this phi.")
    include_text_sinks: bool = Field(
        default=True, description="Sinks outside of the image give as well."
    )
    sink_dims: Annotated[list[_Dimension], Field(min_length=1, max_length=64)] | None = Field(
        default=None,
        description="Dimensions of the hidden state in which sinks stand out; the model's own where "
        "they are known.",
    )
    layers: Layers = own_layers("Layers 2 to L - 2")
    prefill: bool = Field(default=True, description="Edit the prompt's rows after the image.")
    decode: bool = Field(default=True, description="Edit generated rows.")

    def is_neutral(self, model: ModelView) -> bool:
        return self.move_fraction == 0 or not (self.prefill or self.decode)

    def default_layers(self, model: ModelView) -> range:
        return range(2, model.layers - 1)

    def publication_limit(self, prompt_length: int) -> int:
        # Generated tokens are never sinks; as tokens of a longer prompt they might be.
        return prompt_length

    def edits(self, request: RequestView) -> Iterator[Edit]:
        on, prompt = self.on(request), request.prompt.length
        visual = request.visual_keys(self.method)
        dimensions = self._dimensions(request)
        first = request.image_end("method", self.method) if self.prefill else prompt
        end = OPEN if self.decode else prompt
        if first >= end:
            return
        yield FlagKeys(
            on=on,
            rows=Rows(0, prompt),
            dimensions=dimensions,
            threshold=self.tau,
            needed=visual,
            only_needed=not self.include_text_sinks,
            source=request.source,
        )
        yield MassTransfer(
            on=on,
            rows=Rows(first, end),
            sources=FoundKeys(),
            destination=visual,
            fraction=self.move_fraction,
            gate=Gate(visual, visual, ratio=self.rho, least=self.min_visual_mass),
            source=request.source,
        )

    def _dimensions(self, request: RequestView) -> tuple[int, ...]:
        model = request.model
        chosen = tuple(sorted(set(self.sink_dims or model.sink_dims)))
        if not chosen:
            raise request.error(
                "sink_dims",
                "the dimensions in which this model's sinks stand out are not known: find them "
                "with `heed calibrate var` (docs/methods/var.md), and give them here or in a profile",
                "missing_field",
            )
        if chosen[-1] >= model.hidden_size:
            raise request.error(
                "sink_dims",
                f"dimension {chosen[-1]} does not exist: this model's hidden states have "
                f"{model.hidden_size}",
                "out_of_bounds",
            )
        return chosen
