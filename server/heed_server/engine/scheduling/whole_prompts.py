"""Scheduler seam: prompts that one step computes whole, and steps that end where a segment does.

A request that looks ahead in its prompt (`FindKeys`, or a `HeadChoice` for all rows) needs all of its prompt
rows in one step (docs/decisions/0011).
"""

from collections.abc import Mapping
from typing import Any

from heed_kernels.edits import OPEN
from heed_kernels.segments import Segments
from heed_server.engine.payload import packed_in
from heed_server.engine.scheduling.rows_together import RowsTogetherMixin


def segments_in(packed: Mapping[str, Any] | None) -> Segments | None:
    """The segments of a packed payload (`payload.pack`), or None where no keys are sought."""
    for edit in packed["edits"] if packed is not None else ():
        if edit["kind"] == "find_keys":
            running = edit["rows"][1] == OPEN
            return Segments(edit["prompt"], edit["ahead"], running, edit["until"])
    return None


def whole_prompt_in(packed: Mapping[str, Any] | None) -> int:
    """How many rows of the prompt, which are all of it, the edits of a packed payload need in one step; or 0."""
    for edit in packed["edits"] if packed is not None else ():
        if edit["kind"] == "find_keys" and edit["ahead"]:
            return int(edit["prompt"])
        if edit["kind"] == "head_choice" and edit["rows"][0] < edit["at"]:
            return int(edit["at"]) + 1
    return 0


class WholePromptMixin(RowsTogetherMixin):
    """Put before the scheduler class that vLLM itself would use."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._segments: dict[str, Segments] = {}
        self._whole: dict[str, int] = {}

    def add_request(self, request: Any) -> None:
        """As in `Scheduler`."""
        params = request.sampling_params
        packed = packed_in(params.extra_args) if params is not None else None
        segments, whole = segments_in(packed), whole_prompt_in(packed)
        if segments is not None:
            self._segments[request.request_id] = segments
        if whole:
            self._whole[request.request_id] = whole
        super().add_request(request)  # type: ignore[misc]

    def _free_blocks(self, request: Any) -> None:
        super()._free_blocks(request)
        self._segments.pop(request.request_id, None)
        self._whole.pop(request.request_id, None)

    def _rows_together(self, request: Any, computed: int) -> int:
        rows = super()._rows_together(request, computed)
        return rows if computed else max(rows, self._whole.get(request.request_id, 1))

    def _reserve_prefill_lookahead(
        self, request: Any, num_computed_tokens: int, num_new_tokens: int
    ) -> int:
        """Called for every request that is about to get blocks, with the size of its chunk."""
        count = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        segments = self._segments.get(request.request_id)
        if segments is None:
            return count
        return min(count, segments.end(num_computed_tokens) - num_computed_tokens)
