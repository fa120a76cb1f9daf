"""Emphasis (PASTA): weaken the attention to everything in the prompt but the user's spans.

Zhang et al., "Tell Your Model Where to Attend: Post-hoc Attention Steering for LLMs", ICLR 2024,
arXiv 2311.02262:

    a'_k = alpha a_k / D  for prompt keys k outside of the spans,   a'_k = a_k / D  for all others

which is a bias of ln(alpha) on the keys outside; generated keys keep weight 1. The released code
runs once per span, so that with n spans the outside gets alpha^n and each span alpha^(n - 1); here
the spans are a union. The paper weakens position 0, where most models have their sink, as well;
`protect_positions` spares it unless it is set to an empty list.
"""

import math
from collections.abc import Iterator
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from heed_interventions.method import CacheClass, Method
from heed_interventions.selectors import Heads, Layers, RowScope
from heed_interventions.spans import Range, Spans, complement, find_spans
from heed_interventions.views import ModelView, RequestView
from heed_kernels.edits import Edit, KeyBias, KeyRanges

_Position = Annotated[int, Field(ge=0, lt=2**31 - 1)]


class Emphasis(Method):
    """The smaller alpha, the more a row looks at the spans and at what was generated."""

    title = "Emphasis (PASTA)"
    summary = "Turn attention to chosen spans of the prompt by weakening the rest of it."
    paper = "arXiv:2311.02262"
    cache = CacheClass.SALTED
    repeatable = True
    of_the_prompt: ClassVar = {"spans": [{"start": 0, "end": 1}]}

    method: Literal["emphasis"] = "emphasis"
    spans: Spans
    alpha: float = Field(
        default=0.01,
        gt=0,
        le=1,
        description="Factor on the weight of prompt keys outside the spans.",
    )
    protect_positions: Annotated[list[_Position], Field(max_length=64)] = Field(
        default=[0], description="Prompt positions that keep weight 1."
    )
    layers: Layers = "all"
    heads: Heads = "all"
    rows: RowScope = "all"

    def is_neutral(self, model: ModelView) -> bool:
        return self.alpha == 1

    def publication_limit(self, prompt_length: int) -> int:
        rows = super().publication_limit(prompt_length)
        # Generated keys keep weight 1, and where they begin depends on the prompt's length.
        return prompt_length if rows is None else rows

    def edits(self, request: RequestView) -> Iterator[Edit]:
        on, rows = self.on(request), self.on_rows(request)
        spans = find_spans(self.spans, request)
        outside = complement([*spans, *self._protected(request)], request.prompt.length)
        most = request.model.max_key_ranges
        if len(outside) > most:
            raise request.error(
                "spans",
                f"the spans cut the rest of the prompt into {len(outside)} pieces; at most {most} "
                "are allowed",
                "span",
            )
        if outside:
            keys = KeyRanges(tuple(outside))
            yield KeyBias(on, rows, keys, bias=math.log(self.alpha), source=request.source)

    def _protected(self, request: RequestView) -> Iterator[Range]:
        for index, position in enumerate(self.protect_positions):
            if position >= request.prompt.length:
                raise request.error(
                    f"protect_positions.{index}",
                    f"position {position} is not in the prompt, which has {request.prompt.length} "
                    "tokens",
                    "out_of_bounds",
                )
            yield position, position + 1
