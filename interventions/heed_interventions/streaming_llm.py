"""StreamingLLM: every row sees a few initial tokens and a window of recent ones.

Xiao et al., "Efficient Streaming Language Models with Attention Sinks", ICLR 2024,
arXiv 2309.17453:

    row q sees the keys k < sinks and the keys k > q - window

The window holds the row's own key, so it is the released code with recent_size = window - 1. The
code runs the prompt densely and drops keys between turns; here every row, prompt rows included, has
the same rule, so that neither chunks nor the prefix cache change the result.
"""

from collections.abc import Iterator
from typing import Literal

from pydantic import Field

from heed_interventions.method import CacheClass, Method
from heed_interventions.views import ModelView, RequestView
from heed_kernels.edits import Edit, VisibleKeys


class StreamingLLM(Method):
    """Bounds what a row reads; what lies between sinks and window is out of reach for good."""

    title = "StreamingLLM"
    summary = "Let every row see only some initial tokens and a window of recent ones."
    paper = "arXiv:2309.17453"
    cache = CacheClass.SALTED

    method: Literal["streaming_llm"] = "streaming_llm"
    sinks: int = Field(default=4, ge=0, le=64, description="Initial tokens that stay visible.")
    window: int = Field(
        default=1020, ge=16, lt=2**31 - 1, description="Recent tokens, the row's own included."
    )
    positions: Literal["rolling", "original"] = Field(
        default="rolling",
        description='"rolling" counts positions over the visible keys, as the paper does.',
    )

    def is_neutral(self, model: ModelView) -> bool:
        # The first key is hidden from row sinks + window, which such a model never reaches.
        return self.sinks + self.window >= model.max_length

    def bounds_positions(self, model: ModelView) -> bool:
        return self.positions == "rolling" and not self.is_neutral(model)

    def edits(self, request: RequestView) -> Iterator[Edit]:
        rolling = self.positions == "rolling"
        if rolling and not request.model.rotary:
            raise request.error(
                "positions",
                'this model\'s positions cannot be rolled; "original" is what it has',
                "out_of_bounds",
            )
        window = self.clipped_window(self.window, request)
        request.report["window"] = window
        yield VisibleKeys(self.sinks, window, rolling, request.source)
