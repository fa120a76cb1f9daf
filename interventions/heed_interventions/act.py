"""ACT (attention calibration): take attention away from sinks that are not the first one.

Yu et al., "Unveiling and Harnessing Hidden Attention Sinks", ICML 2024, arXiv 2406.15765. With the
mean weight of a key over the N prompt rows that see it

    mean_k = sum over q >= k of a_qk / (N - k),     S = {k : mean_k > threshold} without the protected

and m_q the sum of row q's weights on S:

    a'_qk = beta a_qk  for k in S,     a'_qk = a_qk (1 - beta m_q) / (1 - m_q)  for all other k

The released code protects the first key above the threshold, which is not position 0 where that one
is below it; its threshold is an absolute one, the paper's is alpha / N; its treatment of generated rows
breaks their sum. docs/methods/act.md has the list.
"""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from heed_interventions.method import CacheClass, Method
from heed_interventions.selectors import Heads, Layers, own_layers
from heed_interventions.views import ModelView, RequestView
from heed_kernels.edits import (
    ALL_KEYS,
    OPEN,
    SOURCES,
    Edit,
    FindKeys,
    FoundKeys,
    Gate,
    KeyRanges,
    MassTransfer,
    Rows,
)

DEFAULT_ALPHA = 5.0


class ACT(Method):
    """The smaller beta, the less the sinks keep; what they give goes to the other keys in proportion."""

    title = "ACT (attention calibration)"
    summary = "Find attention sinks in the prompt and give most of their weight to the other keys."
    paper = "arXiv:2406.15765"
    cache = CacheClass.PRIVATE
    exclusive = ("tau", "alpha_over_n")

    method: Literal["act"] = "act"
    beta: float = Field(default=0.4, ge=0, le=1, description="Share of its weight a sink keeps.")
    tau: float | None = Field(
        default=None, gt=0, le=1, description="A key is a sink when its mean weight is above this."
    )
    alpha_over_n: float | None = Field(
        default=None,
        gt=0,
        le=100,
        description="In place of tau: the threshold is this over the number of rows counted; 5 where "
        "neither is given.",
    )
    stats: Literal["full", "causal"] = Field(
        default="full",
        description='"full": sinks from all prompt rows, whose prefill is one step; "causal": from '
        "the rows before, renewed at rows 32, 64, 128, ...",
    )
    decode: Literal["frozen", "running", "off"] = Field(
        default="frozen",
        description="Generated rows: with the prompt's sinks, with sinks renewed at each row, or not.",
    )
    protect: Literal["first_flagged", "position_0"] = Field(
        default="first_flagged", description="Which key above the threshold is no sink."
    )
    max_sinks: int = Field(
        default=SOURCES, ge=1, le=SOURCES, description="Most sinks per head: the largest means."
    )
    min_rows: int = Field(
        default=1, ge=1, lt=OPEN, description="Rows that must see a key for it to be a sink."
    )
    layers: Layers = own_layers("Layers 2 to L - 2")
    heads: Heads = "all"

    def is_neutral(self, model: ModelView) -> bool:
        return self.beta == 1

    def default_layers(self, model: ModelView) -> range:
        return range(2, model.layers - 1)

    def looks_ahead(self) -> bool:
        return self.stats == "full"

    def publication_limit(self, prompt_length: int) -> int:
        return prompt_length

    def edits(self, request: RequestView) -> Iterator[Edit]:
        on, prompt = self.on(request), request.prompt.length
        until = prompt if self.decode == "off" else OPEN
        if self.stats == "full" and not self.is_neutral(request.model):
            request.check_one_step("stats", "full", "causal")
        yield FindKeys(
            on=on,
            rows=Rows(0, OPEN if self.decode == "running" else prompt),
            threshold=self.tau or self.alpha_over_n or DEFAULT_ALPHA,
            least_rows=self.min_rows,
            most=self.max_sinks,
            protected=KeyRanges(((0, 1),) if self.protect == "position_0" else ()),
            protect_first=self.protect == "first_flagged",
            source=request.source,
            relative=self.tau is None,
            prompt=prompt,
            ahead=self.stats == "full",
            until=until,
        )
        yield MassTransfer(
            on=on,
            rows=Rows(0, until),
            sources=FoundKeys(),
            destination=ALL_KEYS,
            fraction=1 - self.beta,
            gate=Gate(),
            source=request.source,
        )
