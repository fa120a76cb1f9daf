"""ZeroTuning: scale the attention that every row pays to the initial token.

Han et al., "ZeroTuning", ICLR 2026, arXiv 2505.11739, Eq. 3.

    a'_0 = gamma a_0 / D,   a'_k = a_k / D,   D = 1 + (gamma - 1) a_0

which is a bias of ln(gamma) on one logit. The released code uses one list of heads in every layer
it touches; here they may differ by layer. Its variant that scales keys or queries instead, for
kernels without access to logits, is another intervention (its factor depends on the query's sign)
and is left out.
"""

import math
from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from heed_interventions.method import CacheClass, Method
from heed_interventions.selectors import Heads, Layers
from heed_interventions.views import ModelView, RequestView
from heed_kernels.edits import Edit, KeyBias, KeyRanges


class ZeroTuning(Method):
    """gamma > 1 draws attention to the initial token, gamma < 1 leaves more to the rest."""

    title = "ZeroTuning"
    summary = "Scale the attention that every row pays to the initial token."
    paper = "arXiv:2505.11739"
    cache = CacheClass.SALTED
    repeatable = True

    method: Literal["zerotuning"] = "zerotuning"
    gamma: float = Field(
        gt=0, le=10, description="Factor on the weight of the initial token.", examples=[1.6]
    )
    position: int = Field(default=0, ge=0, lt=8, description="Position of the initial token.")
    layers: Layers = "all"
    heads: Heads = "all"

    def is_neutral(self, model: ModelView) -> bool:
        return self.gamma == 1

    def edits(self, request: RequestView) -> Iterator[Edit]:
        yield KeyBias(
            on=self.on(request),
            rows=self.on_rows(request),
            keys=KeyRanges(((self.position, self.position + 1),)),
            bias=math.log(self.gamma),
            source=request.source,
        )
