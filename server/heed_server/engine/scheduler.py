"""Scheduler seam: Heed's schedulers, and which blocks of an edited request may enter and leave the prefix cache.

A block is published only when each of its rows would be the same under any continuation of the
prompt, so blocks past a request's publication limit are neither hashed nor read. The salt that
keeps differently edited prefixes apart is part of the block hash already (`door.py`).
"""

from typing import Any

from vllm.v1.core.sched.async_scheduler import AsyncScheduler
from vllm.v1.core.sched.scheduler import Scheduler

from heed_server.engine.kept_counts import KeptCountsMixin
from heed_server.engine.kv_eviction import EvictionMixin
from heed_server.engine.kv_release import ReleaseMixin
from heed_server.engine.paged_cache import PagedCache
from heed_server.engine.payload import packed_in
from heed_server.engine.whole_prompts import WholePromptMixin


def publication_limit(request: Any) -> int | None:
    """First position of `request` (a `vllm.v1.request.Request`) that is never published, in tokens."""
    params = request.sampling_params
    packed = packed_in(params.extra_args) if params is not None else None
    return packed["publication_limit"] if packed is not None else None


class PublicationMixin(PagedCache):
    """Put before the scheduler class that vLLM itself would use."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        coordinator = self.kv_cache_manager.coordinator  # type: ignore[attr-defined]
        stock_cache_blocks = coordinator.cache_blocks

        def cache_blocks(request: Any, num_computed_tokens: int) -> None:
            limit = publication_limit(request)
            if limit is not None:
                num_computed_tokens = min(num_computed_tokens, limit)
            stock_cache_blocks(request, num_computed_tokens)

        coordinator.cache_blocks = cache_blocks

    def _get_local_prefix_cache_hit(self, request: Any) -> Any:
        hit = super()._get_local_prefix_cache_hit(request)  # type: ignore[misc]
        # A preempted request looks up its generated tokens too, and a longer prompt with the same
        # salt may have published rows that are prompt rows there and generated ones here.
        limit = publication_limit(request)
        return hit if limit is None else self._shortened(hit, limit)


class HeedMixins(KeptCountsMixin, WholePromptMixin, EvictionMixin, ReleaseMixin, PublicationMixin):
    """All that Heed adds: put before the scheduler class that vLLM itself would use."""


class HeedScheduler(HeedMixins, Scheduler):  # type: ignore[misc]
    """vLLM's scheduler with the publication rule, blocks freed while requests run, and steps cut where
    found keys change."""


class HeedAsyncScheduler(HeedMixins, AsyncScheduler):  # type: ignore[misc]
    """vLLM's asynchronous scheduler with the same."""
