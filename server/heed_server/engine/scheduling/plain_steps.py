"""Scheduler seam: while no edited request is in the scheduler, vLLM's own methods run with nothing in between.

Some calls are made for every request of every step. What the other mixins put before them looks at edited
requests alone, and would still cost some microseconds a request. So without such requests it is taken away.
"""

from typing import Any

from heed_server.engine.payload import packed_in
from heed_server.engine.scheduling.paged_cache import PagedCache

STOCK_METHODS = ("_reserve_prefill_lookahead", "_handle_blocked_waiting_request")
"""Of the scheduler, called for each request of a step or for each that waits."""


class PlainStepsMixin(PagedCache):
    """Put before all other mixins, whose replacements of vLLM's methods it takes away and brings back."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._edited: set[str] = set()
        cache = self.kv_cache_manager  # type: ignore[attr-defined]
        replaced = (
            (cache, "allocate_slots"),
            (cache.coordinator, "cache_blocks"),
            (self._manager, "get_num_blocks_to_allocate"),
        )
        self._replacements = [
            (owner, name, getattr(owner, name)) for owner, name in replaced if owner is not None
        ]
        stock = next(kind for kind in type(self).__mro__ if kind.__module__.startswith("vllm."))
        self._stock = {name: getattr(stock, name).__get__(self) for name in STOCK_METHODS}
        self._take_away()

    def add_request(self, request: Any) -> None:
        """As in `Scheduler`."""
        params = request.sampling_params
        if params is not None and packed_in(params.extra_args) is not None:
            if not self._edited:
                self._bring_back()
            self._edited.add(request.request_id)
        super().add_request(request)  # type: ignore[misc]

    def _free_blocks(self, request: Any) -> None:
        super()._free_blocks(request)  # type: ignore[misc]
        if request.request_id in self._edited:
            self._edited.discard(request.request_id)
            if not self._edited:
                self._take_away()

    def _take_away(self) -> None:
        # What stands in an object hides what its class has. Nobody asks for an object's `__dict__` here:
        # CPython would make a real one, and look up all of the object's attributes more slowly from then on.
        for owner, name, _ in self._replacements:
            delattr(owner, name)
        for name, method in self._stock.items():
            setattr(self, name, method)

    def _bring_back(self) -> None:
        for owner, name, replacement in self._replacements:
            setattr(owner, name, replacement)
        for name in self._stock:
            delattr(self, name)
