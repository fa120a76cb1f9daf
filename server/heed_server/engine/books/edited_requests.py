"""The worker's book of edited requests: who has a row in the edit table, and what ran for whom.

No vLLM here: a runner tells it who enters and leaves and what each step holds.
"""

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from enum import Enum
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from heed_kernels.errors import EditError
from heed_kernels.table import EditTable
from heed_server.engine.books.patch_keys import Attention, with_patches
from heed_server.engine.books.run_records import RunRecord
from heed_server.engine.payload import Payload
from heed_server.engine.running.step import Comparer, Observer, StepEdits, Watcher

if TYPE_CHECKING:  # compiled code for the CPU, which other devices have no use for
    from heed_server.engine.books.compared_heads import ComparedHeads
    from heed_server.engine.books.evicting_requests import EvictingRequests
    from heed_server.engine.books.flagged_tokens import FlaggedTokens
    from heed_server.engine.books.inspected_requests import InspectedRequests
    from heed_server.engine.books.key_searches import KeySearches
    from heed_server.engine.books.sink_samples import SinkSamples

REPORTS_KEPT = 4096
"""Finished reports kept until the API process takes them; the oldest go first."""


class LookedAt(Enum):
    """Where a step is looked at: nowhere; at its queries, keys and outputs, in the attention layers; or at
    hidden states too, in hooks that compiled code and its graphs do not have."""

    NOWHERE = 0
    IN_ATTENTION = 1
    EVERYWHERE = 2


class EditedRequests:
    """Edit-table rows by request id, and a bounded ring of finished reports."""

    evicting: "EvictingRequests | None" = None
    """None on devices where requests cannot evict."""
    flagging: "FlaggedTokens | None" = None
    """None where hidden states cannot be looked at."""
    comparing: "ComparedHeads | None" = None
    """None on devices where outputs cannot be compared."""
    inspected: "InspectedRequests | None" = None
    """None on devices where attention cannot be observed."""
    sinks: "SinkSamples | None" = None
    """The same."""
    class_attention: Attention | None = None
    """None where the model has no image encoder with a class token."""

    def __init__(self, table: EditTable, searches: "KeySearches | None" = None) -> None:
        """searches: where weights can be observed while the model runs."""
        self.table, self.searches = table, searches
        self._slots: dict[str, int] = {}
        self._keys: dict[str, tuple[str, int]] = {}
        self._live: dict[str, dict[int, RunRecord]] = {}
        self._finished: OrderedDict[str, dict[int, RunRecord]] = OrderedDict()
        self._failed: list[str] = []

    def enter(
        self,
        request_id: str,
        payload: Payload,
        computed_tokens: int,
        slot: int | None = None,
        max_tokens: int | None = None,
        features: Sequence[Any] = (),
    ) -> None:
        """Give a request that enters the batch (or comes back after preemption) its table row.

        computed_tokens: position of the first token that it will compute. slot: the row it gets
        where the runner numbers its requests itself; by default any free one.
        max_tokens: of its answer; None for no limit. features: vLLM's, of its images.
        An edit set that the table cannot take leaves the request without a row and with a failure
        in its report; the API process checks sets with the same code first, so this is a defect
        that must reach the client and not the worker's life.
        """
        report, choice = payload.report, _choice_of(request_id, payload.choices)
        self._keys[request_id] = (report, choice)
        record = self._live.setdefault(report, {}).setdefault(
            choice,
            RunRecord.of(payload),
        )
        if request_id in self._slots:
            self._release(request_id, record)
        try:
            if self.class_attention is not None:
                payload, told = with_patches(payload, self.class_attention, features)
                record.told |= told
            slot = self.table.insert(payload.edits, slot, payload.prompt_length)
            self._slots[request_id] = slot
            if self.searches is not None:
                self.searches.enter(request_id, slot, payload.edits, computed_tokens)
            if self.evicting is not None:
                self.evicting.enter(slot, payload, max_tokens)
            if self.flagging is not None:
                self.flagging.enter(slot, payload.edits, computed_tokens)
            if self.comparing is not None:
                self.comparing.enter(slot, request_id, payload)
            for book in (self.inspected, self.sinks):
                if book is not None:
                    book.enter(slot, payload)
        except EditError as error:
            self.leave(request_id, finished=False)
            record.failure = str(error)
            self._failed.append(request_id)
            return
        record.computed.append([computed_tokens, computed_tokens])

    def leave(self, request_id: str, *, finished: bool) -> None:
        """Release the row of a request that ended, or that was preempted and may come back."""
        if request_id in self._slots:
            self._release(request_id, self._record(request_id))
        if not finished or request_id not in self._keys:
            return
        if self.comparing is not None:
            self.comparing.forget(request_id)
        report, choice = self._keys.pop(request_id)
        record = self._live[report].pop(choice)
        if not self._live[report]:
            del self._live[report]
        if record.taken:
            return
        self._finished.setdefault(report, {})[choice] = record
        while len(self._finished) > REPORTS_KEPT:
            self._finished.popitem(last=False)

    def _release(self, request_id: str, record: RunRecord) -> None:
        slot = self._slots.pop(request_id)
        self._note_found(slot, record)
        if self.searches is not None:
            self.searches.leave(slot)
        for book in (self.evicting, self.flagging, self.comparing, self.inspected, self.sinks):
            if book is not None:
                book.leave(slot)
        self.table.release(slot)

    def _note_found(self, slot: int, record: RunRecord) -> None:
        if self.searches is not None:
            record.found |= self.searches.told(slot, record.detailed)
        if self.flagging is not None:
            record.told |= self.flagging.told(slot, record.detailed)
        if self.comparing is not None:
            record.told |= self.comparing.told(slot)
        if self.inspected is not None and record.detailed:
            record.on_images = self.inspected.on_images(slot) or record.on_images

    def __contains__(self, request_id: str) -> bool:
        return request_id in self._slots

    @property
    def rows_in_use(self) -> int:
        """Rows of the edit table that are taken."""
        return len(self._slots)

    def plan(
        self, request_ids: Sequence[str], query_starts: np.ndarray, positions: np.ndarray
    ) -> StepEdits | None:
        """The edited part of one step, or None when nobody in the batch has an edit.

        request_ids: the batch in order. query_starts: int [requests + 1], offsets into the flat
        token batch. positions: int [requests], absolute position of each request's first token.
        """
        if not self._slots:
            return None
        slots = self._slots
        rows = [row for row, name in enumerate(request_ids) if name in slots]
        if not rows:
            return None
        for row in rows:
            first = int(positions[row])
            last = self._record(request_ids[row]).computed[-1]
            last[1] = max(last[1], first + int(query_starts[row + 1] - query_starts[row]))
        index = np.asarray(rows, dtype=np.int32)
        starts = query_starts[index]
        requests = (
            np.fromiter((slots[request_ids[row]] for row in rows), np.int32, len(rows)),
            starts.astype(np.int32),
            (query_starts[index + 1] - starts).astype(np.int32),
            positions[index].astype(np.int32),
            index,
        )
        plan = self.table.plan(*requests)
        items = np.column_stack(requests)
        return StepEdits(
            self.table,
            plan,
            index,
            self._observers(items),
            self._watchers(items),
            self._comparers(items),
        )

    def looks_at(self, rows: Mapping[str, tuple[int, int]]) -> LookedAt:
        """Where somebody looks at a step while it is computed, which no replayed graph allows.

        rows: by request id the position of the step's first row, and how many rows it has.
        """
        looked_at = LookedAt.NOWHERE
        for name, (first, count) in rows.items():
            slot = self._slots.get(name)
            if slot is None:
                continue
            if self.flagging is not None and self.flagging.watches(slot, first):
                return LookedAt.EVERYWHERE
            if self._attention_looked_at(slot, first, count):
                looked_at = LookedAt.IN_ATTENTION
        return looked_at

    def _attention_looked_at(self, slot: int, first: int, count: int) -> bool:
        return (
            (self.searches is not None and self.searches.counts(slot, first))
            or (self.evicting is not None and self.evicting.scores(slot, first, count))
            or (self.comparing is not None and self.comparing.compares(slot, first, count))
            or (self.inspected is not None and self.inspected.sees(slot, first))
        )

    def _observers(self, items: NDArray[np.int32]) -> tuple[Observer, ...]:
        """items: int32 [edited requests, 5], as in `Pattern.items`."""
        watching: tuple[Observer, ...] = ()
        for book in (self.evicting, self.inspected, self.sinks):
            watching += book.observers(items) if book is not None else ()
        if self.searches is None:
            return watching
        step, failures = self.searches.advance(items)
        self._note_failures(failures)
        # Searches come first: the others look at weights with the keys that hold for these rows.
        return watching if step is None else (step, *watching)

    def _watchers(self, items: NDArray[np.int32]) -> tuple[Watcher, ...]:
        if self.flagging is None:
            return ()
        watchers, failures = self.flagging.advance(items)
        self._note_failures(failures)
        return watchers

    def _comparers(self, items: NDArray[np.int32]) -> tuple[Comparer, ...]:
        # Outputs are looked at before a comparison multiplies them.
        looking = self.inspected.comparers(items) if self.inspected is not None else ()
        if self.comparing is None:
            return looking
        comparers, failures = self.comparing.advance(items)
        self._note_failures(failures)
        return (*looking, *comparers)

    def _note_failures(self, failures: Mapping[int, str]) -> None:
        """failures: by slot."""
        for name, slot in self._slots.items() if failures else ():
            if slot in failures:
                self._record(name).failure = failures[slot]
                self._failed.append(name)

    def evict(
        self, request_id: str, end: int, block_row: NDArray[np.int32], targets: Sequence[int]
    ) -> int | None:
        """As `EvictingRequests.evict`; what was let go goes into the request's report.

        Where the event cannot be carried out the report says why, and the request goes on and lets
        nothing go any more.
        """
        if self.evicting is None or request_id not in self._slots:
            return None
        slot, record = self._slots[request_id], self._record(request_id)
        try:
            evicted = self.evicting.evict(slot, end, block_row, targets)
        except EditError as error:
            self.evicting.leave(slot)
            record.failure = str(error)
            return None
        if evicted is None:
            return None
        kept, let_go = evicted
        record.let_go, record.evicted_tokens = let_go, let_go.tokens
        return kept

    def take_failed(self) -> list[str]:
        """Requests whose prompts have rows, since this was last asked, that are not edited as they should be."""
        failed, self._failed = self._failed, []
        return failed

    def released(self, totals: Mapping[str, tuple[int, int | None]]) -> None:
        """What the scheduler says of the memory of requests that run (`messages.RELEASED`)."""
        for request_id, (blocks, tokens) in totals.items():
            if request_id in self._keys:
                record = self._record(request_id)
                record.freed_blocks = blocks
                if tokens is not None:
                    record.evicted_tokens = tokens

    def take(
        self, report_ids: Iterable[str], block_bytes: int = 0
    ) -> dict[str, dict[int, dict[str, Any]]]:
        """Reports by id and choice; finished ones are handed over, running ones copied.

        block_bytes: of one KV block, over all layers and ranks.
        """
        taken: dict[str, dict[int, dict[str, Any]]] = {}
        for report in report_ids:
            if self.comparing is not None:
                self.comparing.drop(report)
            live = self._live.get(report, {})
            for record in live.values():
                record.taken = True
            for name, slot in self._slots.items() if live else ():
                if self._keys[name][0] == report:
                    self._note_found(slot, live[self._keys[name][1]])
            records = live | self._finished.pop(report, {})
            if records:
                taken[report] = {
                    choice: record.report(block_bytes) for choice, record in records.items()
                }
        return taken

    def _record(self, request_id: str) -> RunRecord:
        report, choice = self._keys[request_id]
        return self._live[report][choice]


def _choice_of(request_id: str, choices: int) -> int:
    # vLLM names the children of a request with n > 1 "<index>_<id>".
    return int(request_id.split("_", 1)[0]) if choices > 1 else 0
