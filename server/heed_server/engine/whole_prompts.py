"""Scheduler seam: prompts that one step computes whole, and steps that end where a segment does.

A request that looks ahead in its prompt (`FindKeys`) needs all of its prompt rows in one step. Where they
do not fit beside the rest of a step the request is passed over, so that others go on; after a few times
nobody behind it is admitted any more, and a step is reserved for it (docs/decisions/0011).
"""

from collections.abc import Mapping
from typing import Any

from heed_kernels.edits import OPEN
from heed_kernels.segments import Segments
from heed_server.engine.payload import packed_in

MOST_PASSES = 3
"""How often a request is passed over before a step is reserved for it."""


def segments_in(packed: Mapping[str, Any] | None) -> Segments | None:
    """The segments of a packed payload (`payload.pack`), or None where no keys are sought."""
    for edit in packed["edits"] if packed is not None else ():
        if edit["kind"] == "find_keys":
            return Segments(edit["prompt"], edit["ahead"], edit["rows"][1] == OPEN)
    return None


class WholePromptMixin:
    """Put before the scheduler class that vLLM itself would use."""

    max_num_scheduled_tokens: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._segments: dict[str, Segments] = {}
        self._passes: dict[str, int] = {}
        self._reserved: str | None = None
        self._tokens_left = 0
        manager = self.kv_cache_manager  # type: ignore[attr-defined]
        stock_allocate_slots = manager.allocate_slots

        def allocate_slots(request: Any, num_new_tokens: int, *args: Any, **kwargs: Any) -> Any:
            blocks = stock_allocate_slots(request, num_new_tokens, *args, **kwargs)
            if blocks is not None:
                self._tokens_left -= num_new_tokens
                if request.request_id == self._reserved:
                    self._reserved = None
            return blocks

        manager.allocate_slots = allocate_slots

    def add_request(self, request: Any) -> None:
        """As in `Scheduler`."""
        params = request.sampling_params
        segments = segments_in(packed_in(params.extra_args)) if params is not None else None
        if segments is not None:
            self._segments[request.request_id] = segments
        super().add_request(request)  # type: ignore[misc]

    def _free_blocks(self, request: Any) -> None:
        super()._free_blocks(request)  # type: ignore[misc]
        self._segments.pop(request.request_id, None)
        self._passes.pop(request.request_id, None)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """As in `Scheduler`; what is left of the step is known to the methods below."""
        self._tokens_left = self.max_num_scheduled_tokens
        self._reserved = self._next_reserved() if self._passes else None
        output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        for name in list(self._passes):
            if name in output.num_scheduled_tokens:
                del self._passes[name]
        if self._reserved is not None:
            # It was not reached, or its blocks went to others: the next steps are everybody's again.
            self._passes[self._reserved] += 1
        return output

    def _next_reserved(self) -> str | None:
        """The request for which this step is reserved, if it can be admitted otherwise."""
        if len(self.running) >= self.max_num_running_reqs:  # type: ignore[attr-defined]
            return None
        free = self.kv_cache_manager.block_pool.get_num_free_blocks()  # type: ignore[attr-defined]
        for name, passes in self._passes.items():
            needed = -(-self.requests[name].num_tokens // self.block_size)  # type: ignore[attr-defined]
            if passes % (MOST_PASSES + 1) == MOST_PASSES and needed <= free:
                return name
        return None

    def _handle_blocked_waiting_request(self, request: Any) -> bool:
        """Called for each request that waits, before anything else; False: passed over in this step."""
        ready: bool = super()._handle_blocked_waiting_request(request)  # type: ignore[misc]
        if not ready:
            return False
        name = request.request_id
        if self._rows_together(request) <= self._tokens_for(name):
            return True
        if self._reserved is not None:
            return False
        passes = self._passes[name] = self._passes.get(name, 0) + 1
        # From then on it is waited for: with no tokens to schedule, the stock loop ends here.
        return passes > MOST_PASSES

    def _reserve_prefill_lookahead(
        self, request: Any, num_computed_tokens: int, num_new_tokens: int
    ) -> int:
        """Called for every request that is about to get blocks, with the size of its chunk."""
        count: int = super()._reserve_prefill_lookahead(  # type: ignore[misc]
            request, num_computed_tokens, num_new_tokens
        )
        if self._reserved is not None:
            count = min(count, max(0, self._tokens_for(request.request_id)))
        segments = self._segments.get(request.request_id)
        if segments is None or count <= 0:
            return count
        together = self._rows_together(request)
        if together > self._tokens_for(request.request_id):
            return 0
        # A limit on long prefills is no reason to cut this one.
        count = max(count, together)
        return min(count, segments.end(num_computed_tokens) - num_computed_tokens)

    def _rows_together(self, request: Any) -> int:
        """How many rows have to be in the request's next step, at least."""
        segments = self._segments.get(request.request_id)
        if segments is None or not segments.ahead or request.num_computed_tokens:
            return 1
        return segments.prompt

    def _tokens_for(self, name: str) -> int:
        """Tokens of this step that the request may have."""
        if self._reserved is None or self._reserved == name:
            return self._tokens_left
        return self._tokens_left - self._segments[self._reserved].prompt
