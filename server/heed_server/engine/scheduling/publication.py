"""Scheduler seam: which blocks of an edited request may enter and leave the prefix cache.

A block is published only when each of its rows would be the same under any continuation of the
prompt, so blocks past a request's publication limit are neither hashed nor read. The salt that
keeps differently edited prefixes apart is part of the block hash already (`heed_server/salt.py`). Where a worker could
not edit a request as its salt says, its blocks are taken out again (docs/decisions/0005).
"""

from typing import Any

from heed_server.engine.messages import FAILED
from heed_server.engine.payload import packed_in
from heed_server.engine.scheduling.paged_cache import PagedCache


class PublicationMixin(PagedCache):
    """Put before the scheduler class that vLLM itself would use."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._withheld: set[str] = set()
        coordinator = self.kv_cache_manager.coordinator  # type: ignore[attr-defined]
        stock_cache_blocks = coordinator.cache_blocks

        def cache_blocks(request: Any, num_computed_tokens: int) -> None:
            limit = self._publication_limit(request)
            if limit is not None:
                num_computed_tokens = min(num_computed_tokens, limit)
            stock_cache_blocks(request, num_computed_tokens)

        coordinator.cache_blocks = cache_blocks

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """As in `Scheduler`; what may not be found is taken out of the prefix cache first."""
        for name in getattr(model_runner_output, FAILED, ()):
            self._withhold(name)
        return super().update_from_output(scheduler_output, model_runner_output)  # type: ignore[misc]

    def _withhold(self, name: str) -> None:
        """Publish nothing of the request any more, and nothing of what it holds.

        Nor of those who hold some of it too: they may have begun on it in the very step that failed.
        What was right is computed again, which costs time and is never wrong.
        """
        if name not in self.requests or self._manager is None:  # type: ignore[attr-defined]
            return
        held = {
            request: {block.block_id for block in blocks if not block.is_null}
            for request, blocks in self._manager.req_to_blocks.items()
        }
        own = held.get(name, set())
        self._withheld.add(name)
        self._withheld |= {request for request, blocks in held.items() if blocks & own}
        self._pool.evict_blocks(own.union(*(held.get(each, set()) for each in self._withheld)))

    def _free_blocks(self, request: Any) -> None:
        super()._free_blocks(request)  # type: ignore[misc]
        self._withheld.discard(request.request_id)

    def _get_local_prefix_cache_hit(self, request: Any) -> Any:
        hit = super()._get_local_prefix_cache_hit(request)  # type: ignore[misc]
        # A preempted request looks up its generated tokens too, and a longer prompt with the same
        # salt may have published rows that are prompt rows there and generated ones here.
        limit = self._publication_limit(request)
        return hit if limit is None else self._shortened(hit, limit)

    def _publication_limit(self, request: Any) -> int | None:
        """First position of `request` (a `vllm.v1.request.Request`) that is never published, in tokens."""
        if request.request_id in self._withheld:
            return 0
        params = request.sampling_params
        packed = packed_in(params.extra_args) if params is not None else None
        return packed["publication_limit"] if packed is not None else None
