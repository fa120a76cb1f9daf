"""One request's eviction, from the scoring of its rows to the move of what survives."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from heed_kernels.device import OwnPages, Pages, Summing, Sums
from heed_kernels.edits import OPEN
from heed_kernels.errors import EditError
from heed_kernels.events import EvictionEvents
from heed_kernels.evict import ColumnScore, Evict, QueryShare, WindowScore
from heed_kernels.eviction.observed import KeyScorer
from heed_kernels.eviction.threads import one_thread
from heed_kernels.rope import Rope
from heed_kernels.survivors import LayerScores, pooled, preference, survivors
from heed_kernels.table import EditTable

Gather = Callable[[NDArray[np.float64]], NDArray[np.float64]]
"""gather([local_kv_heads, …]) -> [kv_heads, …] over the tensor-parallel ranks, in the order of heads."""


_NO_MEMORY = "the device has no memory left for the scores of keys"


@dataclass(frozen=True)
class Moved:
    """What an eviction left, over the whole model.

    counts: int32 [layers, kv_heads], keys that were kept.
    survivors: int32 positions, ascending, per layer and KV head; None where nobody asked for them.
    """

    counts: NDArray[np.int32]
    survivors: list[list[NDArray[np.int32]]] | None

    @property
    def most(self) -> int:
        """Keys that are kept by the head which keeps most of all."""
        return int(self.counts.max())

    @property
    def kept_tokens(self) -> float:
        """Keys that were kept, mean over layers and KV heads."""
        return float(self.counts.mean())


class Eviction:
    """Scores while rows come in, decides, moves: one request on one rank.

    A step that ends where an eviction is `due` is followed by `decide`, then `move`. Made anew when a
    request starts, and when it starts again after a preemption: `kept` and `evicted_end` of the slot
    are reset. What it holds between steps, per layer and KV head of the rank: 4 bytes per key for a
    `WindowScore`, 8 per key and query head for a `ColumnScore`, `device.Moments` for an
    `ExpectedScore`, nothing for others. Over the whole model it holds 4 bytes per layer and KV head, the
    number of survivors, and with `positions` 4 more per survivor. From `decide` to `move` 8 bytes per
    survivor come on top.
    """

    def __init__(
        self,
        edit: Evict,
        table: EditTable,
        slot: int,
        prompt_length: int,
        block_size: int,
        summing: Summing | None = None,
        *,
        rows: int = OPEN,
        positions: bool = False,
    ) -> None:
        """summing: needed by a `ColumnScore` and an `ExpectedScore`. rows: as in `EvictionEvents`. positions:
        whether `Moved` tells them; neither scores nor later evictions need them.

        Raises `EditError` where `edit` is not that of such a prompt, or does not fit the rank.
        """
        if edit.rows.start != prompt_length:
            raise EditError(f"eviction after {edit.rows.start} tokens of {prompt_length}")
        group_heads = table.query_heads // table.kv_heads
        if table.head_start % group_heads or table.local_query_heads % group_heads:
            raise EditError("the query heads of a KV head lie on several ranks")
        self.edit, self._table, self._slot = edit, table, slot
        self._prompt, self._block_size = prompt_length, block_size
        self._events = EvictionEvents.of(edit, rows)
        self._observer = KeyScorer(edit, table, slot, prompt_length, summing)
        self._counts = np.zeros((table.layers, table.kv_heads), np.int32)
        nothing = [np.zeros(0, np.int32)] * table.kv_heads
        self._positions = [nothing] * table.layers if positions else None
        self._end = 0
        self._decided: tuple[int, list[list[NDArray[np.int64]]]] | None = None
        self._failure: str | None = None
        table.kept[slot] = 0
        table.evicted_end[slot] = 0

    def wants(self, first: int, rows: int) -> bool:
        """Whether any of the rows [first, first + rows) has to be scored in the forward; none is after an
        error."""
        if self._failure is not None:
            return False
        if first >= self._prompt:
            at_event = self._events.ends_at(first + rows, self._block_size)
            return self.edit.again and self._observer.wants_generated(at_event)
        evicts = self.edit.again or self._events.fewest < self._prompt
        return evicts and self._observer.wants_prompt(first, rows)

    def observe(
        self,
        layer: int,
        query: torch.Tensor,
        pages: Pages,
        first: int,
        scale: float,
        rope: Rope | None,
    ) -> None:
        """Score the rows from `first` on in `layer`, once the step's keys are in the cache.

        query: [rows, local_query_heads, head_dim]; pages: the layer's; scale: on the logits; rope: needed by
        `ExpectedScore`. What a `ColumnScore` sums goes through `columns`. Raises `EditError` where the last
        `together` rows of the prompt do not come at once, or a score over every row misses some; `decide`
        raises the same then, on every rank.
        """
        try:
            places = self._places(layer, first + len(query))
            self._observer.observe(layer, query, pages, places, first, scale, rope)
        except EditError as error:
            self._failure = str(error)
            raise
        except torch.OutOfMemoryError:
            self._failure = _NO_MEMORY

    @property
    def sums_columns(self) -> bool:
        """Whether the weights of its rows are to be added to `columns`."""
        return isinstance(self.edit.score, ColumnScore)

    @property
    def sees_queries(self) -> bool:
        """Whether its rows are to be shown to `observe`."""
        return not self.sums_columns or self.edit.share is not None

    def columns(self, layer: int, first: int, rows: int) -> Sums | None:
        """Where the weights of rows [first, first + rows) in `layer` are to be added; None after an error,
        which `decide` tells."""
        if self._failure is not None:
            return None
        try:
            return self._observer.columns(layer, first, rows)
        except EditError as error:
            self._failure = str(error)
        except torch.OutOfMemoryError:
            self._failure = _NO_MEMORY
        return None

    def due(self, computed: int) -> bool:
        """Whether an eviction takes place when so many tokens are computed."""
        return self._events.evicts_at(computed, self._block_size)

    @one_thread
    def decide(self, computed: int, pages: Sequence[Pages], gather: Gather) -> None:
        """Choose the survivors of all layers, alike on all ranks, and remember them for `move`.

        pages: by layer; gather: called as often, with the same shapes, on every rank. Raises
        `EditError` on all ranks where one of them has no scores.
        """
        own = self._own_scores(computed, pages)
        failed = np.full(self._table.local_kv_heads, self._failure is not None, np.float64)
        if gather(failed).any():
            raise EditError(self._failure or "another rank has no scores")
        layers = []
        for layer, local in enumerate(own):
            scores = gather(local)
            if isinstance(self.edit.score, WindowScore):
                scores = pooled(scores, self.edit.score, self.edit.recent)
            vectors = self._observer.vectors(layer)
            liking = 0.0
            if isinstance(self.edit.share, QueryShare):
                features = gather(self._observer.query_features(layer))
                liking = preference(self.edit.share, features)
            layers.append(LayerScores(scores, None if vectors is None else gather(vectors), liking))
        self._decided = computed, survivors(self.edit, layers)

    def _own_scores(self, computed: int, pages: Sequence[Pages]) -> list[NDArray[np.float64]]:
        """By layer, float64 [local_kv_heads, keys]; an error is kept for `decide` to tell."""
        own: list[NDArray[np.float64]] = []
        try:
            for layer in range(self._table.layers if self._failure is None else 0):
                places = self._places(layer, computed)
                own.append(self._observer.scores(layer, pages[layer], places, computed))
        except EditError as error:
            self._failure = str(error)
        except torch.OutOfMemoryError:
            self._failure = _NO_MEMORY
        return own

    @one_thread
    def move(self, pages: Sequence[OwnPages], block_row: ArrayLike, targets: ArrayLike) -> Moved:
        """Write the survivors' keys and values to the first places of `targets`, and tell the edit table.

        pages: by layer; block_row: int32 [blocks], the request's own. targets: int32 block ids, enough for
        `Moved.most` keys. Each is the request's own at that place, or none of its blocks. The block that rows
        from `computed` on share with earlier ones, if there is one, stays where it is in the request's list,
        whatever `targets` says. Raises `EditError` where nothing was decided, or blocks are missing or would be
        overwritten before they are read; nothing has moved then.
        """
        if self._decided is None:
            raise EditError("there is no decision to be carried out")
        computed, chosen = self._decided
        moved = Moved(
            np.array([[len(keys) for keys in heads] for heads in chosen], np.int32),
            self._surviving(chosen, computed),
        )
        into = self._targets(block_row, targets, computed)
        if len(into) * self._block_size < moved.most:
            raise EditError(f"{len(into)} target blocks do not hold {moved.most} keys")
        self._check_order(block_row, into, computed)
        own = slice(
            self._table.kv_head_start, self._table.kv_head_start + self._table.local_kv_heads
        )
        for layer, heads in enumerate(chosen):
            places = self._places(layer, computed)
            kept = [places[keys] for keys in heads[own]]
            pages[layer].move(kept, into)
            for head, of_head in enumerate(kept):
                self._observer.keep(layer, head, of_head)
            self._table.kept[self._slot, layer] = moved.counts[layer, own]
        self._decided, self._end = None, computed
        self._counts, self._positions = moved.counts, moved.survivors
        self._table.evicted_end[self._slot] = computed
        if not self.edit.again:
            self._observer.forget()
        return moved

    def _surviving(
        self, chosen: list[list[NDArray[np.int64]]], computed: int
    ) -> list[list[NDArray[np.int32]]] | None:
        """Positions of the chosen ones of the keys that heads hold; None where they are not followed."""
        if self._positions is None:
            return None
        later = np.arange(self._end, computed, dtype=np.int32)
        return [
            [
                np.concatenate([before, later])[keys]
                for before, keys in zip(known, heads, strict=True)
            ]
            for known, heads in zip(self._positions, chosen, strict=True)
        ]

    def _targets(
        self, block_row: ArrayLike, targets: ArrayLike, computed: int
    ) -> NDArray[np.int32]:
        into = np.asarray(targets, np.int32)
        begun = computed // self._block_size
        if computed % self._block_size == 0 or len(into) < begun:
            return into
        return np.append(into[:begun], np.asarray(block_row, np.int32)[begun])

    def _check_order(self, block_row: ArrayLike, targets: NDArray[np.int32], computed: int) -> None:
        """`EditError` where a target is read later than it is written. Blocks that hold no key of the request
        any more may be others' by now."""
        most = int(self._counts.max())
        places = np.concatenate([np.arange(most), np.arange(self._end, computed)])
        held = np.unique(places // self._block_size)
        row = np.asarray(block_row, np.int32)
        same = (row[held][:, None] == targets) & (held[:, None] != np.arange(len(targets)))
        if same.any():
            block = targets[same.any(axis=0).argmax()]
            raise EditError(f"target block {block} holds keys of another place")

    def _places(self, layer: int, computed: int) -> NDArray[np.int64]:
        """Places of the keys that every KV head of the layer holds, ascending."""
        kept = int(self._counts[layer, 0])
        return np.concatenate([np.arange(kept), np.arange(self._end, computed)])
