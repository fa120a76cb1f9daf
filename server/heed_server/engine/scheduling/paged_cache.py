"""Scheduler and KV cache manager seam: what Heed's schedulers know of the pool that they free blocks to."""

from typing import Any

from vllm.v1.core.single_type_kv_cache_manager import FullAttentionManager


class PagedCache:
    """Put before the scheduler class that vLLM itself would use.

    _manager: vLLM's manager of the one group of full-attention layers, which holds each request's
        blocks; None where there are others, and edited requests are refused (`model_support.py`).
    _pool: the blocks of the cache.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        coordinator = self.kv_cache_manager.coordinator  # type: ignore[attr-defined]
        managers = coordinator.single_type_managers
        alone = [type(manager) for manager in managers] == [FullAttentionManager]
        self._manager: Any = managers[0] if alone else None
        self._pool: Any = coordinator.block_pool

    @property
    def _size(self) -> int:
        """Tokens of a block."""
        size: int = self._manager.block_size
        return size

    def _shortened(self, hit: Any, tokens: int) -> Any:
        """A hit in the prefix cache, cut to whole blocks of at most `tokens`."""
        blocks, found, *rest = hit
        if found <= tokens:
            return hit
        kept = tokens // self._size * self._size
        manager = self.kv_cache_manager  # type: ignore[attr-defined]
        return (manager.truncate_computed_blocks(blocks, kept), kept, *rest)
