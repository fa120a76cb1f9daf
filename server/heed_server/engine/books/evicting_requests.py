"""The worker's book of evictions: which rows of a step are scored, and what an event has let go. No vLLM here."""

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from heed_kernels.device import LayerInputs, OwnPages, Summing
from heed_kernels.edits import Edit
from heed_kernels.errors import EditError
from heed_kernels.evict import Evict
from heed_kernels.eviction import Eviction, Gather, Moved
from heed_kernels.plan import BLOCK_TABLE_ROW, FIRST_POSITION, FIRST_TOKEN, ROWS, SLOT, Plan
from heed_kernels.table import EditTable
from heed_server.engine.payload import Payload
from heed_server.engine.running.step import Observer
from heed_server.engine.scheduling.eviction_events import rows_at_most
from heed_server.engine.scheduling.hidden_blocks import blocks_for

MOST_POSITIONS = 1_000_000
"""Positions of survivors, over layers and KV heads, that a full report has at most."""


class Evicting(Protocol):
    """How requests evict on a device."""

    @property
    def block_size(self) -> int:
        """Tokens of a block of its cache."""
        ...

    def enter(self, slot: int, evict: Evict, rows: int) -> Summing:
        """A request has got its slot. Returns what sums its weights.

        rows: it computes no more. Raises `EditError` where there is no room for what its scores take.
        """
        ...

    def leave(self, slot: int) -> None:
        """The slot's request is gone."""
        ...

    def observer(self, evictions: Sequence[Eviction], items: NDArray[np.int32]) -> Observer:
        """What adds the rows of a step to the column sums of several requests.

        items: int32 [requests, 5], as in `plan.Pattern.items`, one for each of `evictions`.
        """
        ...

    def pages(self, block_row: NDArray[np.int32]) -> Sequence[OwnPages]:
        """By layer, of the request with these blocks."""
        ...

    def moved(self, slot: int) -> None:
        """Survivors of a slot were moved, and the edit table says so."""
        ...


@dataclass(frozen=True)
class LetGo:
    """What one request's events have let go so far.

    tokens: keys, averaged over layers and KV heads.
    blocks_per_head: blocks that it would hold less if each head of each layer had a block table of its
        own, averaged over them; None where all keep the same number of keys anyway.
    survivors: int32 positions by layer and KV head, of the last event; None where no report has them.
    left_out: why a full report has none.
    """

    tokens: float
    blocks_per_head: float | None
    survivors: Sequence[Sequence[NDArray[np.int32]]] | None
    left_out: str | None

    def told(self) -> dict[str, Any]:
        """The long part of a report, as plain values."""
        if self.left_out is not None:
            return {"kept_left_out": self.left_out}
        if self.survivors is None:
            return {}
        layers = enumerate(self.survivors)
        return {"kept": {str(layer): [keys.tolist() for keys in heads] for layer, heads in layers}}


@dataclass(frozen=True)
class ScoredRows:
    """Rows of one request in one step that its eviction scores: an observer of the step.

    item: int32 [5], as in `plan.Pattern.items`.
    """

    eviction: Eviction
    item: NDArray[np.int32]

    def load(self, plan: Plan) -> None:
        """See `device_edits.DeviceObserver`: there is nothing to be prepared."""

    def before_edits(self, layer: int, inputs: LayerInputs) -> None:
        """See `step.Observer`."""
        first, start = int(self.item[FIRST_POSITION]), int(self.item[FIRST_TOKEN])
        count = int(self.item[ROWS])
        if not self.eviction.wants(first, count):
            return
        query = inputs.query[start : start + count]
        pages = inputs.pages(int(self.item[BLOCK_TABLE_ROW]))
        # What goes wrong in the forward comes up again at the event, on all ranks at once.
        with suppress(EditError):
            self.eviction.observe(layer, query, pages, first, inputs.scale, inputs.rope)


@dataclass
class EvictingRequest:
    """One request.

    uneven: heads or layers keep different numbers of keys. left_out: see `LetGo`.
    """

    eviction: Eviction
    uneven: bool
    left_out: str | None


class EvictingRequests:
    """Evictions of the requests in a worker's batch, by slot of the edit table."""

    def __init__(self, table: EditTable, device: Evicting, gather: Gather) -> None:
        self._table, self._device, self._gather = table, device, gather
        self._by_slot: dict[int, EvictingRequest] = {}

    def enter(self, slot: int, payload: Payload, max_tokens: int | None) -> None:
        """A request has got its slot; after a preemption it starts again. One whose answer ends before a row
        of it is computed lets nothing go, and nothing of it is scored.

        max_tokens: of the answer; None for no limit.
        Raises `EditError` where the eviction is not that of such a prompt, or there is no room for it.
        """
        evict, rows = evict_in(payload.edits), rows_at_most(payload.prompt_length, max_tokens)
        if evict is None or rows <= payload.prompt_length:
            return
        detailed, left_out = evict.source in payload.detailed, None
        positions = sum(evict.counts) * self._table.kv_heads
        if detailed and positions > MOST_POSITIONS:
            left_out = (
                f"a report has at most {MOST_POSITIONS:,} positions, and these are {positions:,}"
            )
        self._by_slot[slot] = EvictingRequest(
            Eviction(
                evict,
                self._table,
                slot,
                payload.prompt_length,
                self._device.block_size,
                self._device.enter(slot, evict, rows),
                rows=rows,
                positions=detailed and left_out is None,
            ),
            uneven=evict.share is not None or len(set(evict.counts)) > 1,
            left_out=left_out,
        )

    def leave(self, slot: int) -> None:
        """The slot's request is gone."""
        self._by_slot.pop(slot, None)
        self._device.leave(slot)

    def scores(self, slot: int, first: int, rows: int) -> bool:
        """Whether any of a slot's rows [first, first + rows) is scored, layer by layer."""
        request = self._by_slot.get(slot)
        return request is not None and request.eviction.wants(first, rows)

    def observers(self, items: NDArray[np.int32]) -> tuple[Observer, ...]:
        """Which rows of a step are scored.

        items: int32 [requests, 5], all rows that the step has of each edited request, see
        `plan.Pattern.items`.
        """
        found: list[Observer] = []
        summed: list[tuple[Eviction, NDArray[np.int32]]] = []
        for item in items if self._by_slot else ():
            request = self._by_slot.get(int(item[SLOT]))
            rows = int(item[FIRST_POSITION]), int(item[ROWS])
            if request is None or not request.eviction.wants(*rows):
                continue
            if request.eviction.sums_columns:
                summed.append((request.eviction, item))
            if request.eviction.sees_queries:
                found.append(ScoredRows(request.eviction, item))
        if summed:
            evictions, rows_of = zip(*summed, strict=True)
            found.append(self._device.observer(evictions, np.array(rows_of)))
        return tuple(found)

    def evict(
        self, slot: int, end: int, block_row: NDArray[np.int32], targets: Sequence[int]
    ) -> tuple[int, LetGo] | None:
        """Carry out the event at `end` computed tokens, after the step's forward.

        block_row: int32 [blocks], the request's row of the block table. targets: blocks for the
        survivors. Returns the most keys that any head of the whole model kept, and what was let go;
        None where every head keeps all it has. Every rank has to come here. Raises `EditError` on all
        of them alike, with nothing moved, where the event cannot be carried out.
        """
        request = self._by_slot.get(slot)
        if request is None or not request.eviction.due(end):
            return None
        eviction, size = request.eviction, self._device.block_size
        pages = self._device.pages(block_row)
        eviction.decide(end, pages, self._gather)
        moved = eviction.move(pages, block_row, targets)
        self._device.moved(slot)
        possible = blocks_per_head(moved, end, size) if request.uneven else None
        let_go = LetGo(end - moved.kept_tokens, possible, moved.survivors, request.left_out)
        return moved.most, let_go


def blocks_per_head(moved: Moved, end: int, block_size: int) -> float:
    """Blocks that the request would hold less after the event at `end` if each head of each layer had a
    block table of its own, averaged over them."""
    whole = end // block_size
    needed = [min(blocks_for(count, block_size), whole) for count in moved.counts.ravel().tolist()]
    return whole - sum(needed) / len(needed)


def evict_in(edits: Sequence[Edit]) -> Evict | None:
    """The one edit of a set that lets keys go after the prompt, if there is one."""
    return next((edit for edit in edits if isinstance(edit, Evict)), None)
