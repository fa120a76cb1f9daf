"""Scheduler and KV cache manager seam: blocks that a streaming request no longer reads go back to the pool.

The scheduler alone knows of it. Workers are never told which blocks of a running request were freed:
they keep the numbers, which may soon be somebody else's, and read none of those blocks
(docs/decisions/0008 has the argument).
"""

from dataclasses import dataclass
from typing import Any

from heed_server.engine.messages import RELEASED
from heed_server.engine.model.longer_streams import streaming_length
from heed_server.engine.payload import packed_in
from heed_server.engine.scheduling.hidden_blocks import Window, window_in
from heed_server.engine.scheduling.paged_cache import PagedCache


@dataclass
class Stream:
    """A request whose rows see a window.

    length: tokens of prompt and answer together, at most.
    freed_blocks: blocks that went back to the pool while it ran; one that another request still
        holds did not, and one that was freed again after a preemption counts again.
    hidden_blocks: blocks of its sequence that it does not hold because none of its rows will read
        them, whether it freed them or never took them out of the prefix cache.
    told: the totals that the workers have.
    """

    window: Window
    length: int
    freed_blocks: int = 0
    hidden_blocks: int = 0
    told: tuple[int, int] = (0, 0)


class ReleaseMixin(PagedCache):
    """Put before the scheduler class that vLLM itself would use."""

    max_model_len: int

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._streams: dict[str, Stream] = {}
        if self._manager is None:
            return
        longest = streaming_length()
        if longest is not None:
            # The door keeps all other requests to the model's own length.
            self.max_model_len = max(longest, self.max_model_len)
            self.kv_cache_manager.max_model_len = self.max_model_len  # type: ignore[attr-defined]
        self._batches_under_way: int = self.vllm_config.max_concurrent_batches  # type: ignore[attr-defined]
        stock_blocks_to_allocate = self._manager.get_num_blocks_to_allocate

        def blocks_to_allocate(
            request_id: str, *args: Any, apply_admission_cap: bool = False, **kwargs: Any
        ) -> int:
            needed: int = stock_blocks_to_allocate(
                request_id, *args, apply_admission_cap=apply_admission_cap, **kwargs
            )
            stream = self._streams.get(request_id)
            if not apply_admission_cap or stream is None:
                return needed
            # It has to hold a window, and what it computes beside it: `_reserve_prefill_lookahead`
            # cuts that to what is free.
            return min(needed, stream.window.most_blocks(self._chunk(stream), self._size))

        self._manager.get_num_blocks_to_allocate = blocks_to_allocate

    def add_request(self, request: Any) -> None:
        """As in `Scheduler`."""
        params = request.sampling_params
        window = window_in(packed_in(params.extra_args)) if params is not None else None
        if window is not None and self._manager is not None:
            length = request.num_prompt_tokens + request.max_tokens
            self._streams[request.request_id] = Stream(window, length)
        super().add_request(request)  # type: ignore[misc]

    def _free_blocks(self, request: Any) -> None:
        super()._free_blocks(request)  # type: ignore[misc]
        self._streams.pop(request.request_id, None)

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """As in `Scheduler`; hidden blocks are free before anybody asks for blocks."""
        if not self._streams:
            return super().schedule(*args, **kwargs)  # type: ignore[misc]
        for request in self.running:  # type: ignore[attr-defined]
            stream = self._streams.get(request.request_id)
            if stream is not None:
                self._release(request, stream)
        output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        told = self._told(output.num_scheduled_tokens)
        if told:
            setattr(output, RELEASED, told)
        return output

    def _release(self, request: Any, stream: Stream) -> None:
        # Steps under way may still read what is hidden only from later rows.
        row = max(0, request.num_computed_tokens - request.num_in_flight_tokens)
        hidden = stream.window.hidden_blocks(row, self._size)
        free = self._pool.get_num_free_blocks()
        self._manager._remove_blocks_in_range(request.request_id, hidden.start, hidden.stop)
        stream.freed_blocks += self._pool.get_num_free_blocks() - free
        stream.hidden_blocks = len(hidden)

    def _told(self, scheduled: Any) -> dict[str, tuple[int, int]]:
        """What changed for the requests of a step since the workers were told last."""
        told: dict[str, tuple[int, int]] = {}
        for request_id, stream in self._streams.items():
            totals = (stream.freed_blocks, stream.hidden_blocks * self._size)
            if request_id in scheduled and totals != stream.told:
                stream.told = told[request_id] = totals
        return told

    def _get_local_prefix_cache_hit(self, request: Any) -> Any:
        hit = super()._get_local_prefix_cache_hit(request)  # type: ignore[misc]
        stream = self._streams.get(request.request_id)
        if stream is None:
            return hit
        blocks, tokens, *rest = hit
        hidden = stream.window.hidden_blocks(tokens, self._size)
        stream.hidden_blocks = len(hidden)
        if not hidden:
            return hit
        # Were they taken, a hit could need more blocks than the pool has.
        (found,) = blocks.blocks
        seen = list(found)
        seen[hidden.start : hidden.stop] = [self._pool.null_block] * len(hidden)
        return (self.kv_cache_manager.create_kv_cache_blocks((seen,)), tokens, *rest)  # type: ignore[attr-defined]

    def _reserve_prefill_lookahead(
        self, request: Any, num_computed_tokens: int, num_new_tokens: int
    ) -> int:
        """Called for every request that is about to get blocks, with the size of its chunk."""
        count: int = super()._reserve_prefill_lookahead(  # type: ignore[misc]
            request, num_computed_tokens, num_new_tokens
        )
        stream = self._streams.get(request.request_id)
        if stream is None or count <= 1:
            return count
        return min(count, self._most(stream), max(1, self._room(request, num_computed_tokens)))

    def _room(self, request: Any, computed: int) -> int:
        """Tokens for which there are blocks, with one left for each other running request."""
        held = self._manager.req_to_blocks.get(request.request_id)
        free: int = self._pool.get_num_free_blocks()
        free -= sum(other is not request for other in self.running)  # type: ignore[attr-defined]
        if held:
            covered = (len(held) + free) * self._size
            return covered - computed
        # Blocks of a hit may be free as yet; they are needed themselves.
        stream = self._streams[request.request_id]
        found = computed // self._size - stream.hidden_blocks
        return (free - found) * self._size

    def _most(self, stream: Stream) -> int:
        """Tokens of one chunk with which the request would fit into a pool of its own."""
        pool_blocks = self._pool.num_gpu_blocks - 1
        budget: int = self.max_num_scheduled_tokens  # type: ignore[attr-defined]
        if pool_blocks * self._size >= stream.length:
            return budget
        most = stream.window.most_tokens(pool_blocks, self._size) // self._batches_under_way
        return max(1, min(most, budget))

    def _chunk(self, stream: Stream) -> int:
        """Tokens of a chunk for which there has to be room before the request is admitted."""
        return min(self._most(stream), stream.window.window)
