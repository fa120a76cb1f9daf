"""The worker's book of evictions: which rows of a step are scored, and what an event has let go. No vLLM here."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.cpu.eviction import Eviction, Gather, Moved
from heed_kernels.cpu.layout import Layout
from heed_kernels.cpu.observation import add_columns
from heed_kernels.cpu.search import LayerInputs
from heed_kernels.edits import Edit
from heed_kernels.errors import EditError
from heed_kernels.evict import Evict
from heed_kernels.plan import BLOCK_TABLE_ROW, FIRST_POSITION, FIRST_TOKEN, ROWS, SLOT
from heed_kernels.table import EditTable
from heed_server.engine.eviction_events import rows_at_most
from heed_server.engine.hidden_blocks import blocks_for
from heed_server.engine.payload import Payload
from heed_server.engine.step import Observer

MOST_POSITIONS = 1_000_000
"""Positions of survivors, over layers and KV heads, that a full report has at most."""


@dataclass(frozen=True)
class Cache:
    """The KV cache of one worker.

    pages: by layer, as vLLM holds them. block_size: tokens of a block.
    """

    pages: Mapping[int, torch.Tensor]
    layout: Layout
    block_size: int


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

    def before_edits(self, layer: int, inputs: LayerInputs) -> None:
        """See `step.Observer`."""
        first, start = int(self.item[FIRST_POSITION]), int(self.item[FIRST_TOKEN])
        count = int(self.item[ROWS])
        if not self.eviction.wants(first, count):
            return
        # What goes wrong in the forward comes up again at the event, on all ranks at once.
        with suppress(EditError):
            self.eviction.observe(
                layer,
                inputs.query[start : start + count],
                inputs.kv_cache,
                inputs.block_table[int(self.item[BLOCK_TABLE_ROW])],
                first,
                count,
                inputs.scale,
                inputs.rope,
                inputs.layout,
            )


@dataclass(frozen=True)
class SummedColumns:
    """Rows of a step that add to the column sums of several requests: an observer of the step, with one call of
    the kernel for all of them.

    items: int32 [requests, 5], as in `plan.Pattern.items`, one for each of `evictions`.
    calls: what the step's layers have in common, see `add_columns`.
    """

    table: EditTable
    evictions: tuple[Eviction, ...]
    items: NDArray[np.int32]
    calls: dict[object, Any] = field(default_factory=dict)

    def before_edits(self, layer: int, inputs: LayerInputs) -> None:
        """See `step.Observer`."""
        columns = [
            eviction.columns(layer, int(item[FIRST_POSITION]), int(item[ROWS]))
            for eviction, item in zip(self.evictions, self.items, strict=True)
        ]
        wanted = [place for place, sums in enumerate(columns) if sums is not None]
        if not wanted:
            return
        add_columns(
            inputs.query,
            inputs.kv_cache,
            inputs.block_table,
            self.table,
            self.items[wanted],
            layer,
            inputs.scale,
            inputs.rope,
            inputs.layout,
            [sums for sums in columns if sums is not None],
            self.calls,
        )


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

    def __init__(self, table: EditTable, cache: Cache, gather: Gather) -> None:
        self._table, self._cache, self._gather = table, cache, gather
        self._by_slot: dict[int, EvictingRequest] = {}

    def enter(self, slot: int, payload: Payload, max_tokens: int | None) -> None:
        """A request has got its slot; after a preemption it starts again. One whose answer ends before a row
        of it is computed lets nothing go, and nothing of it is scored.

        max_tokens: of the answer; None for no limit.
        Raises `EditError` where the eviction is not that of such a prompt.
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
                self._cache.block_size,
                rows=rows,
                positions=detailed and left_out is None,
            ),
            uneven=evict.share is not None or len(set(evict.counts)) > 1,
            left_out=left_out,
        )

    def leave(self, slot: int) -> None:
        """The slot's request is gone."""
        self._by_slot.pop(slot, None)

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
            else:
                found.append(ScoredRows(request.eviction, item))
        if summed:
            evictions, rows_of = zip(*summed, strict=True)
            found.append(SummedColumns(self._table, evictions, np.array(rows_of)))
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
        cache, eviction = self._cache, request.eviction
        eviction.decide(end, cache.pages, block_row, cache.layout, self._gather)
        moved = eviction.move(cache.pages, block_row, targets, cache.layout)
        possible = blocks_per_head(moved, end, cache.block_size) if request.uneven else None
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
