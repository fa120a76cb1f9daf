"""Scheduler and KV cache manager seam: survivors of an eviction get blocks, and the rest goes to the pool.

A prompt is plain until it is computed: its blocks come from and go to the prefix cache, and others may
hold them. So keys that survive are moved to blocks which nobody else reads, the targets. They are
chosen when the step that ends at the event gets its blocks, told to the workers with the step, and put
into the request's own list when the step has run (docs/decisions/0010 has the argument).
"""

from dataclasses import dataclass, field
from typing import Any

from heed_server.engine.messages import EVICTED, EVICTING, RELEASED, Event
from heed_server.engine.payload import packed_in
from heed_server.engine.scheduling.eviction_events import EvictionPolicy, eviction_in
from heed_server.engine.scheduling.paged_cache import PagedCache
from heed_server.engine.scheduling.rows_together import RowsTogetherMixin


@dataclass
class Evicting:
    """A request that evicts, since it entered the batch.

    event: what is under way. fresh: its targets that the request does not hold otherwise.
    freed_blocks: blocks that went back to the pool beyond those that were taken for survivors; below 0
        where others hold the prompt. told: as the workers know it.
    """

    policy: EvictionPolicy
    event: Event | None = None
    fresh: list[Any] = field(default_factory=list)
    freed_blocks: int = 0
    told: int = 0


class EvictionMixin(PagedCache, RowsTogetherMixin):
    """Put before the scheduler class that vLLM itself would use."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._evicting: dict[str, Evicting] = {}
        self._untold: dict[str, tuple[int, None]] = {}
        if self._manager is None:
            return
        cache = self.kv_cache_manager  # type: ignore[attr-defined]
        stock_allocate_slots = cache.allocate_slots
        stock_blocks_to_allocate = self._manager.get_num_blocks_to_allocate

        def allocate_slots(request: Any, *args: Any, **kwargs: Any) -> Any:
            blocks = stock_allocate_slots(request, *args, **kwargs)
            evicting = self._evicting.get(request.request_id)
            if blocks is not None and evicting is not None:
                self._choose_targets(request, evicting, *args, **kwargs)
            return blocks

        def blocks_to_allocate(
            request_id: str,
            num_tokens: int,
            hits: Any,
            *args: Any,
            apply_admission_cap: bool = False,
            **kwargs: Any,
        ) -> int:
            needed: int = stock_blocks_to_allocate(
                request_id, num_tokens, hits, *args,
                apply_admission_cap=apply_admission_cap, **kwargs,
            )  # fmt: skip
            evicting = self._evicting.get(request_id)
            if evicting is None:
                return needed
            policy, end = evicting.policy, num_tokens
            if apply_admission_cap:
                end = policy.prompt_length
                needed = min(needed, policy.most_blocks(num_tokens, self._size))
            if not policy.evicts_at(end, self._size):
                return needed
            # Where others hold a block, there is no way but another one.
            count = policy.target_blocks(end, self._size)
            held = self._manager.req_to_blocks.get(request_id, ())[:count]
            found = hits[: count - len(held)]
            needed += sum(b.ref_cnt > 1 for b in held) + sum(b.ref_cnt > 0 for b in found)
            return needed

        cache.allocate_slots = allocate_slots
        self._manager.get_num_blocks_to_allocate = blocks_to_allocate

    def add_request(self, request: Any) -> None:
        """As in `Scheduler`."""
        params = request.sampling_params
        packed = packed_in(params.extra_args) if params is not None else None
        policy = eviction_in(packed, request.max_tokens)
        if policy is not None and self._manager is not None:
            self._evicting[request.request_id] = Evicting(policy)
        super().add_request(request)  # type: ignore[misc]

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """As in `Scheduler`; says which requests evict after the step, and into which blocks."""
        output = super().schedule(*args, **kwargs)
        if not self._evicting and not self._untold:
            return output
        events: dict[str, Event] = {}
        # Requests that the workers hear to have ended with this step.
        freed, self._untold = self._untold, {}
        for request_id, evicting in self._evicting.items():
            if request_id not in output.num_scheduled_tokens:
                continue
            if evicting.event is not None:
                events[request_id] = evicting.event
            if evicting.freed_blocks != evicting.told:
                evicting.told = evicting.freed_blocks
                freed[request_id] = (evicting.freed_blocks, None)
        if events:
            setattr(output, EVICTING, events)
        if freed:
            setattr(output, RELEASED, getattr(output, RELEASED, {}) | freed)
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """As in `Scheduler`; what a step has evicted is settled first."""
        kept = getattr(model_runner_output, EVICTED, {})
        events: dict[str, Event] = getattr(scheduler_output, EVICTING, {})
        for request_id, event in events.items():
            evicting = self._evicting.get(request_id)
            # It may have been preempted or aborted, and may even be on its way to the next event.
            if evicting is not None and evicting.event is event:
                self._settle(request_id, evicting, kept.get(request_id))
        return super().update_from_output(scheduler_output, model_runner_output)  # type: ignore[misc]

    def _free_request_blocks(self, request: Any) -> None:
        """Called for requests that end and for those that are preempted."""
        super()._free_request_blocks(request)  # type: ignore[misc]
        evicting = self._evicting.get(request.request_id)
        if evicting is not None:
            self._pool.free_blocks(evicting.fresh)
            self._evicting[request.request_id] = Evicting(evicting.policy, told=evicting.told)

    def _free_blocks(self, request: Any) -> None:
        evicting = self._evicting.get(request.request_id)
        if evicting is not None and evicting.freed_blocks != evicting.told:
            self._untold[request.request_id] = (evicting.freed_blocks, None)
        super()._free_blocks(request)
        self._evicting.pop(request.request_id, None)

    def _get_local_prefix_cache_hit(self, request: Any) -> Any:
        hit = super()._get_local_prefix_cache_hit(request)  # type: ignore[misc]
        evicting = self._evicting.get(request.request_id)
        return hit if evicting is None else self._shortened(hit, evicting.policy.cached_rows)

    def _rows_together(self, request: Any, computed: int) -> int:
        rows = super()._rows_together(request, computed)
        evicting = self._evicting.get(request.request_id)
        return rows if evicting is None else max(rows, evicting.policy.rows_together(computed))

    def _reserve_prefill_lookahead(
        self, request: Any, num_computed_tokens: int, num_new_tokens: int
    ) -> int:
        """Called for every request that is about to get blocks, with the size of its chunk."""
        evicting = self._evicting.get(request.request_id)
        if evicting is not None and evicting.event is not None:
            # Steps run ahead, and this one would need to know what the last one has evicted.
            return 0
        count = super()._reserve_prefill_lookahead(request, num_computed_tokens, num_new_tokens)
        if evicting is None:
            return count
        return evicting.policy.chunk(num_computed_tokens, count, self._size)

    def _choose_targets(
        self,
        request: Any,
        evicting: Evicting,
        num_new_tokens: int,
        num_new_computed_tokens: int = 0,
        **rest: Any,
    ) -> None:
        """The request has got the blocks of a step."""
        end = request.num_computed_tokens + num_new_computed_tokens + num_new_tokens
        policy, pool = evicting.policy, self._pool
        if not policy.evicts_at(end, self._size):
            return
        blocks = self._manager.req_to_blocks[request.request_id]
        targets = list(blocks[: policy.target_blocks(end, self._size)])
        shared = [place for place, block in enumerate(targets) if block.ref_cnt > 1]
        published = [
            place for place, block in enumerate(targets) if block.ref_cnt == 1 and block.block_hash
        ]
        others = sum(other is not request for other in self.running)  # type: ignore[attr-defined]
        # They may need one each in this step.
        spare = max(0, pool.get_num_free_blocks() - len(shared) - others)
        # A lookup ends at the first block that is missing: the first ones are worth the most.
        places = shared + published[:spare]
        evicting.fresh = pool.get_new_blocks(len(places))
        for place, block in zip(places, evicting.fresh, strict=True):
            targets[place] = block
        pool.evict_blocks({targets[place].block_id for place in published[spare:]})
        evicting.event = Event(end, [block.block_id for block in targets])

    def _settle(self, request_id: str, evicting: Evicting, kept: int | None) -> None:
        """kept: the most keys that any head kept; None where nothing was let go."""
        pool, event, taken = self._pool, evicting.event, evicting.fresh
        evicting.event, evicting.fresh = None, []
        if kept is None or event is None:
            pool.free_blocks(taken)
            return
        free = pool.get_num_free_blocks()
        blocks = self._manager.req_to_blocks[request_id]
        let_go = []
        for place, target in enumerate(event.targets):
            if blocks[place].block_id != target:
                let_go.append(blocks[place])
                blocks[place] = pool.blocks[target]
        hidden = evicting.policy.hidden_blocks(event.end, kept, self._size)
        self._manager._remove_blocks_in_range(request_id, hidden.start, hidden.stop)
        # The last ones are taken out of the prefix cache first, as when a request ends.
        pool.free_blocks(reversed(let_go))
        evicting.freed_blocks += pool.get_num_free_blocks() - free - len(taken)
