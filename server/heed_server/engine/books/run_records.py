"""What the worker ran for one request, and what its report says of it."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from heed_kernels.edits import OPEN, Edit, FlagKeys, Rows, VisibleKeys
from heed_kernels.evict import Evict
from heed_server.engine.payload import Payload

if TYPE_CHECKING:
    from heed_server.engine.books.evicting_requests import LetGo


@dataclass
class RunRecord:
    """What the worker ran for one engine request.

    scopes: per intervention (its index in the request's list) the rows that its edits hold for.
    computed: absolute positions `[start, stop)` that were computed, one range per stay in the batch.
    letting_go: the intervention that lets keys go for good, if there is one.
    freed_blocks: what the scheduler freed for it so far.
    evicted_tokens: keys that it let go so far, per layer and KV head.
    let_go: what its last eviction left.
    detailed: interventions whose reports have their long parts.
    found: by intervention, what a search for keys had found when the request last left the batch.
    told: by intervention, further parts of its report.
    on_images: where a report says so, masses on images (`InspectedRequests.on_images`).
    taken: whether the API process has its report already (a stop string ends a request there first), or
        never asks for it (a twin's).
    """

    prompt_length: int
    scopes: dict[int, Rows]
    computed: list[list[int]] = field(default_factory=list)
    letting_go: int | None = None
    freed_blocks: int = 0
    evicted_tokens: float = 0
    let_go: "LetGo | None" = None
    detailed: tuple[int, ...] = ()
    found: dict[int, dict[str, Any]] = field(default_factory=dict)
    told: dict[int, dict[str, Any]] = field(default_factory=dict)
    on_images: dict[str, Any] | None = None
    failure: str | None = None
    taken: bool = False

    @classmethod
    def of(cls, payload: Payload) -> "RunRecord":
        """The record of a request that enters the batch for the first time."""
        return cls(
            payload.prompt_length,
            scopes_of(payload.edits),
            letting_go=next(
                (e.source for e in payload.edits if isinstance(e, VisibleKeys | Evict)), None
            ),
            detailed=payload.detailed,
            taken=payload.twin is not None,
        )

    def report(self, block_bytes: int) -> dict[str, Any]:
        """Plain values for the API process: row ranges in scope, and those of them computed here.

        Per intervention `computed` lists disjoint `[start, stop)` ranges of absolute positions;
        prompt rows in scope that are in none of them came out of the prefix cache.
        """
        ranges = _union(self.computed)
        return {
            "prompt_length": self.prompt_length,
            "failure": self.failure,
            "interventions": {
                source: {
                    "scope": [rows.start, rows.end],
                    "computed": [
                        [max(start, rows.start), min(stop, rows.end)]
                        for start, stop in ranges
                        if max(start, rows.start) < min(stop, rows.end)
                    ],
                }
                | (self._memory(block_bytes) if source == self.letting_go else {})
                | ({"found": self.found[source]} if source in self.found else {})
                | ({"told": self.told[source]} if source in self.told else {})
                | (
                    {"on_images": self.on_images}
                    if source in self.detailed and self.on_images is not None
                    else {}
                )
                for source, rows in self.scopes.items()
            },
        }

    def _memory(self, block_bytes: int) -> dict[str, Any]:
        measured: dict[str, Any] = {
            "freed_blocks": self.freed_blocks,
            "freed_bytes": self.freed_blocks * block_bytes,
            "evicted_tokens": self.evicted_tokens,
        }
        if self.let_go is not None:
            if self.let_go.blocks_per_head:
                saving = self.freed_blocks / self.let_go.blocks_per_head
                measured["realised_saving"] = round(saving, 4)
            measured |= self.let_go.told()
        return measured


def scopes_of(edits: Iterable[Edit]) -> dict[int, Rows]:
    """Per intervention the rows [first, last) that its edits hold for."""
    scopes: dict[int, Rows] = {}
    for edit in edits:
        if isinstance(edit, FlagKeys):
            continue  # looks at rows that nothing is done to
        rows = Rows(0, OPEN) if isinstance(edit, VisibleKeys) else edit.rows
        known = scopes.get(edit.source, rows)
        scopes[edit.source] = Rows(min(known.start, rows.start), max(known.end, rows.end))
    return scopes


def _union(ranges: Iterable[list[int]]) -> list[list[int]]:
    merged: list[list[int]] = []
    for start, stop in sorted(ranges):
        if merged and start <= merged[-1][1]:
            merged[-1][1] = max(merged[-1][1], stop)
        elif start < stop:
            merged.append([start, stop])
    return merged
