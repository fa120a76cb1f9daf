"""Scheduler seam: what searches have counted is kept beside the prefix cache, so that its hits can be used.

A request that seeks keys without looking ahead goes on from somebody else's rows only with the sums over
these rows. Workers keep them at the starts of segments, under the hash of the block that ends there; the
scheduler alone decides what is kept, and tells the workers with each step (docs/decisions/0011).
"""

from collections import OrderedDict
from collections.abc import Mapping
from typing import Any

from heed_kernels.segments import FIRST_SEGMENT, Segments
from heed_server.engine.messages import NOT_KEPT, ORDERS, Orders
from heed_server.engine.payload import packed_in

MOST_BYTES = 1 << 28
"""Of all that the workers of an engine keep."""


class KeptCountsMixin:
    """Put before the scheduler class that vLLM itself would use, and before `WholePromptMixin`."""

    block_size: int
    _segments: dict[str, Segments]

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._kept: OrderedDict[str, int] = OrderedDict()
        self._kept_bytes = 0

    def schedule(self, *args: Any, **kwargs: Any) -> Any:
        """As in `Scheduler`."""
        output = super().schedule(*args, **kwargs)  # type: ignore[misc]
        if self._segments:
            orders = self._orders(output)
            if orders.keep or orders.resume:
                setattr(output, ORDERS, orders)
        return output

    def update_from_output(self, scheduler_output: Any, model_runner_output: Any) -> Any:
        """As in `Scheduler`; what was not kept is forgotten first."""
        for key in getattr(model_runner_output, NOT_KEPT, ()):
            self._kept_bytes -= self._kept.pop(key, 0)
        return super().update_from_output(scheduler_output, model_runner_output)  # type: ignore[misc]

    def _orders(self, output: Any) -> Orders:
        orders = Orders()
        cached = output.scheduled_cached_reqs
        begun = dict(zip(cached.req_ids, cached.num_computed_tokens, strict=True))
        entered = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
        keys = {name: self._key(name, row) for name, row in (begun | entered).items()}
        # First, so that what is gone on from is not what makes room.
        for name in (*entered, *cached.resumed_req_ids):
            key = keys.pop(name)
            if key is not None:
                orders.resume[name] = key
                self._kept.move_to_end(key)
        for name, key in keys.items():
            if key is not None and key not in self._kept:
                self._keep(name, key, begun[name], orders)
        # One that was dropped may have been kept again, for another request of the step.
        orders.drop[:] = [key for key in dict.fromkeys(orders.drop) if key not in self._kept]
        return orders

    def _keep(self, name: str, key: str, row: int, orders: Orders) -> None:
        size = 8 * row * _searched_heads(self.requests[name])  # type: ignore[attr-defined]
        if size > MOST_BYTES:
            return
        orders.keep[name] = key
        self._kept[key] = size
        self._kept_bytes += size
        while self._kept_bytes > MOST_BYTES:
            oldest, freed = self._kept.popitem(last=False)
            self._kept_bytes -= freed
            orders.drop.append(oldest)

    def _key(self, name: str, row: int) -> str | None:
        """The key of what a request has counted before `row`; None where nothing is kept.

        Rows that may not be published have been counted under edits that are not in the hash. Where no
        segment begins, one that goes on would not know what was found.
        """
        segments = self._segments.get(name)
        if segments is None or segments.ahead or not FIRST_SEGMENT <= row < segments.until:
            return None
        request = self.requests[name]  # type: ignore[attr-defined]
        if row > _payload_of(request)["publication_limit"]:
            return None
        hashes = request.block_hashes
        blocks, rest = divmod(row, self.block_size)
        if row & (row - 1) or rest or not 0 < blocks <= len(hashes):
            return None
        return bytes(hashes[blocks - 1]).hex()

    def _get_local_prefix_cache_hit(self, request: Any) -> Any:
        hit = super()._get_local_prefix_cache_hit(request)  # type: ignore[misc]
        segments = self._segments.get(request.request_id)
        blocks, tokens, *rest = hit
        if segments is None or not tokens:
            return hit
        row = 1 << tokens.bit_length() - 1
        while row >= FIRST_SEGMENT and self._key(request.request_id, row) not in self._kept:
            row >>= 1
        row = row if row >= FIRST_SEGMENT else 0
        manager = self.kv_cache_manager  # type: ignore[attr-defined]
        return (manager.truncate_computed_blocks(blocks, row), row, *rest)


def _payload_of(request: Any) -> Mapping[str, Any]:
    """The packed payload of a request that seeks keys."""
    packed = packed_in(request.sampling_params.extra_args)
    assert packed is not None
    return packed


def _searched_heads(request: Any) -> int:
    edits = _payload_of(request)["edits"]
    (on,) = (edit["on"] for edit in edits if edit["kind"] == "find_keys")
    return sum(int(mask, 16).bit_count() for mask in on)
