"""Scheduler seam: rows of one request that have to be in one step, and how they get room there.

Where they do not fit beside the rest of a step, the request is passed over, so that others go on. One that
waits is passed over a few times; then nobody behind it is admitted any more, and a step is reserved for
it. One that is running has its blocks already, and is due at once. Between two reserved steps, whoever they
are for, there are a few that are everybody's (docs/decisions/0011).
"""

from dataclasses import dataclass
from typing import Any

from vllm.v1.request import RequestStatus

MOST_PASSES = 3
"""How often a waiting request is passed over before a step is reserved for it, and how many steps there
are between two reserved ones."""


@dataclass
class PassedOver:
    """times: how often, since it was last scheduled. rows: that have to be together."""

    times: int
    rows: int


class RowsTogetherMixin:
    """Put before the scheduler class that vLLM itself would use."""

    max_num_scheduled_tokens: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # In the order in which their turn comes: of the first pass, or after a step that came to nothing.
        self._passed: dict[str, PassedOver] = {}
        self._reserved: str | None = None
        self._since_reserved = MOST_PASSES
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

    def _rows_together(self, request: Any, computed: int) -> int:
        """How many rows a step of the request has to hold that begins after `computed` ones, at least."""
        return 1

    def _free_blocks(self, request: Any) -> None:
        super()._free_blocks(request)  # type: ignore[misc]
        self._passed.pop(request.request_id, None)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """As in `Scheduler`; what is left of the step is known to the methods below."""
        self._tokens_left = self.max_num_scheduled_tokens
        self._reserved = self._next_reserved()
        self._since_reserved = 0 if self._reserved is not None else self._since_reserved + 1
        output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        for name in list(self._passed):
            if name in output.num_scheduled_tokens:
                del self._passed[name]
        if self._reserved is not None:
            # It was not reached, or its blocks went to others: it goes behind those who wait as well.
            self._passed[self._reserved] = self._passed.pop(self._reserved)
        return output

    def _next_reserved(self) -> str | None:
        """The request for which this step is reserved, if it can be scheduled otherwise."""
        if self._since_reserved < MOST_PASSES:
            return None
        due = (name for name, passed in self._passed.items() if passed.times >= MOST_PASSES)
        return next((name for name in due if self._has_room(name)), None)

    def _has_room(self, name: str) -> bool:
        request = self.requests[name]  # type: ignore[attr-defined]
        if request.status == RequestStatus.RUNNING:
            return True
        if len(self.running) >= self.max_num_running_reqs:  # type: ignore[attr-defined]
            return False
        free: int = self.kv_cache_manager.block_pool.get_num_free_blocks()  # type: ignore[attr-defined]
        needed: int = -(-request.num_tokens // self.block_size)  # type: ignore[attr-defined]
        return needed <= free

    def _handle_blocked_waiting_request(self, request: Any) -> bool:
        """Called for each request that waits, before anything else; False: passed over in this step."""
        ready: bool = super()._handle_blocked_waiting_request(request)  # type: ignore[misc]
        if not ready:
            return False
        name, rows = request.request_id, self._rows_together(request, request.num_computed_tokens)
        if rows <= self._tokens_for(name):
            return True
        if self._reserved is not None:
            return False
        passed = self._passed.setdefault(name, PassedOver(0, rows))
        passed.times += 1
        # From then on it is waited for: with no tokens to schedule, the stock loop ends here.
        return passed.times > MOST_PASSES

    def _try_schedule_encoder_inputs(
        self,
        request: Any,
        num_computed_tokens: int,
        num_new_tokens: int,
        encoder_compute_budget: int,
        shift_computed_tokens: int = 0,
    ) -> Any:
        """Called for every request with images that is about to get blocks, before the size of its chunk is
        settled: a chunk ends before an image for which the encoder has no room.

        Rows that have to be together get the images of all of them, or none and wait.
        """
        rows = self._rows_together(request, num_computed_tokens)
        fits = 1 < rows <= self._tokens_for(request.request_id)
        wanted = max(num_new_tokens, rows) if fits else num_new_tokens
        found = super()._try_schedule_encoder_inputs(  # type: ignore[misc]
            request, num_computed_tokens, wanted, encoder_compute_budget, shift_computed_tokens
        )
        if fits and found[1] < wanted:
            return [], 0, encoder_compute_budget, [], []
        return found

    def _reserve_prefill_lookahead(
        self, request: Any, num_computed_tokens: int, num_new_tokens: int
    ) -> int:
        """Called for every request that is about to get blocks, with the size of its chunk."""
        count: int = super()._reserve_prefill_lookahead(  # type: ignore[misc]
            request, num_computed_tokens, num_new_tokens
        )
        name, left = request.request_id, self._tokens_for(request.request_id)
        if self._reserved is not None:
            count = min(count, max(0, left))
        rows = self._rows_together(request, num_computed_tokens)
        if rows <= 1 or count <= 0:
            return count
        if rows > left:
            if self._reserved is None and name not in self._passed:
                # It is running, or was admitted but for what it has found in the prefix cache.
                self._passed[name] = PassedOver(MOST_PASSES, rows)
            return 0
        # A limit on long prefills is no reason to cut these.
        return max(count, rows)

    def _tokens_for(self, name: str) -> int:
        """Tokens of this step that the request may have."""
        if self._reserved is None or self._reserved == name:
            return self._tokens_left
        return self._tokens_left - self._passed[self._reserved].rows
