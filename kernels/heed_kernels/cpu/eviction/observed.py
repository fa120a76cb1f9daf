"""What a request's rows tell about its keys, layer by layer, until the survivors are chosen."""

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.cpu.eviction.pages import Pages
from heed_kernels.cpu.eviction.scores import (
    QueryMoments,
    difference_scores,
    expected_scores,
    mean_rotation,
    norm_scores,
    query_similarity,
)
from heed_kernels.cpu.eviction.threads import one_thread
from heed_kernels.cpu.eviction.window import ObservedRows
from heed_kernels.cpu.observation import ColumnSums
from heed_kernels.edits import HeadSet, ObserveColumns, Rows
from heed_kernels.errors import EditError
from heed_kernels.evict import (
    ColumnScore,
    DifferenceScore,
    Evict,
    ExpectedScore,
    KindShare,
    NormScore,
    QueryShare,
    WindowScore,
)
from heed_kernels.rope import Rope
from heed_kernels.table import EditTable


class KeyScorer:
    """Sees the queries of one request, and scores its keys on one rank. Used by `Eviction`."""

    def __init__(self, edit: Evict, table: EditTable, slot: int, prompt_length: int) -> None:
        self._edit, self._table, self._slot = edit, table, slot
        self._prompt = prompt_length
        self._group_heads = table.query_heads // table.kv_heads
        score, share = edit.score, edit.share
        self._every_row = isinstance(score, ColumnScore | ExpectedScore)
        self._window = score.window if isinstance(score, WindowScore) else 0
        self._last = max(self._window, share.rows if isinstance(share, QueryShare) else 0)
        self.forget()

    def forget(self) -> None:
        """Drop all that was seen."""
        self._seen: dict[int, int] = {}
        self._scores: dict[int, tuple[int, NDArray[np.float32]]] = {}
        self._vectors: dict[int, NDArray[np.float64]] = {}
        self._features: dict[int, NDArray[np.float64]] = {}
        self._columns: dict[int, ColumnSums] = {}
        self._moments: dict[int, QueryMoments] = {}
        self._turning: dict[int, tuple[Rope, float]] = {}
        self._rotation: tuple[Rope, int, torch.Tensor] | None = None

    def wants_prompt(self, first: int, rows: int) -> bool:
        """Whether it has to see some of these prompt rows."""
        return self._every_row or (bool(self._last) and first + rows > self._prompt - self._last)

    def wants_generated(self, at_event: bool) -> bool:
        """Whether it has to see generated rows, which may end at an eviction."""
        return self._every_row or (bool(self._window) and at_event)

    def observe(
        self,
        layer: int,
        query: torch.Tensor,
        pages: Pages,
        places: NDArray[np.int64],
        first: int,
        scale: float,
        rope: Rope | None,
    ) -> None:
        """See `Eviction.observe`. places: of the keys that each KV head holds, these rows' included. A
        `ColumnScore` takes them through `columns`."""
        score = self._edit.score
        if isinstance(score, ExpectedScore):
            self._follow(layer, first, len(query))
            if rope is None:
                raise EditError("expected attention needs the model's rotary embedding")
            if layer not in self._moments:
                self._moments[layer] = QueryMoments(score, *query.shape[1:])
            self._moments[layer].add(query, first, rope)
            self._turning[layer] = rope, scale
        end = first + len(query)
        if not self._last or end <= self._prompt - self._last:
            return
        needed = min(self._last, self._prompt) if first < self._prompt else 1
        if len(query) < needed or end < self._prompt:
            raise EditError(f"the last {needed} prompt rows have to be computed together")
        if isinstance(self._edit.share, QueryShare):
            last = query[-min(self._edit.share.rows, len(query)) :]
            similarity = query_similarity(last).view(-1, self._group_heads).mean(dim=1)
            self._features[layer] = np.zeros((len(similarity), 3))
            self._features[layer][:, 0] = similarity.numpy()
        if self._window:
            last = query[-min(self._window, len(query)) :]
            window = ObservedRows(
                self._table, self._slot, layer, end - len(last), places, self._edit.recent, scale
            )
            self._score_window(window, last.float(), pages, end)

    def columns(self, layer: int, first: int, rows: int) -> ColumnSums:
        """Where a `ColumnScore` has the weights of the next rows added, with room for their keys."""
        self._follow(layer, first, rows)
        columns = self._columns.get(layer)
        if columns is None:
            every = HeadSet(((1 << self._table.query_heads) - 1,) * self._table.layers)
            edit = ObserveColumns(every, Rows(), self._edit.source)
            columns = ColumnSums(self._table, self._slot, edit, layer, self._prompt)
            self._columns[layer] = columns
        if columns.sums.shape[1] < first + rows:
            columns.sums = np.pad(columns.sums, ((0, 0), (0, first + rows)))
        return columns

    def scores(
        self, layer: int, pages: Pages, places: NDArray[np.int64], computed: int
    ) -> NDArray[np.float64]:
        """float64 [local_kv_heads, keys]; those of a window are not pooled yet. `EditError` where the
        rows that they are made of were not seen."""
        score = self._edit.score
        if self._every_row and self._seen.get(layer) != computed:
            raise EditError(f"layer {layer} has not seen all {computed} rows")
        if isinstance(score, WindowScore):
            end, known = self._scores.get(layer, (0, None))
            if known is None or end != computed:
                raise EditError(f"layer {layer} has not seen the last rows")
            return known.astype(np.float64)
        if isinstance(score, ColumnScore):
            columns = self._columns[layer].as_float()[:, places]
            by_group = columns.reshape(-1, self._group_heads, len(places))
            return np.asarray(by_group.mean(axis=1))
        key = pages.read(places, "key").double()
        if isinstance(score, NormScore):
            return np.asarray(norm_scores(key).numpy())
        if isinstance(score, DifferenceScore):
            return np.asarray(difference_scores(key).numpy())
        value = pages.read(places, "value").double()
        return np.array(
            [
                self._expected(score, layer, head, key[head], value[head], computed)
                for head in range(len(key))
            ]
        )

    def vectors(self, layer: int) -> NDArray[np.float64] | None:
        """float64 [local_kv_heads, head_dim], the semantic vectors of `KindShare`; None for others."""
        return self._vectors.get(layer)

    def query_features(self, layer: int) -> NDArray[np.float64]:
        """float64 [local_kv_heads, 3], see `survivors.preference`."""
        return self._features[layer]

    def keep(self, layer: int, head: int, places: NDArray[np.int64]) -> None:
        """The keys of a local KV head at `places` move to its first places; the others are gone."""
        if layer not in self._columns:
            return
        own = slice(head * self._group_heads, (head + 1) * self._group_heads)
        for sums in self._columns[layer].sums[own]:
            left = sums[places]
            sums[:] = 0
            sums[: len(left)] = left

    def _follow(self, layer: int, first: int, rows: int) -> None:
        if first != self._seen.get(layer, 0):
            raise EditError(f"row {first} comes after row {self._seen.get(layer, 0) - 1}")
        self._seen[layer] = first + rows

    @one_thread
    def _score_window(
        self, window: ObservedRows, query: torch.Tensor, pages: Pages, end: int
    ) -> None:
        score, share, layer = self._edit.score, self._edit.share, window.layer
        assert isinstance(score, WindowScore)
        only_mean = not score.variance and layer not in self._features
        key = pages.read(window.places, "key").float()
        seen = window.statistics(query, key, only_mean=only_mean)
        self._scores[layer] = end, seen.mean + np.float32(score.variance) * seen.variance
        if layer in self._features:
            self._features[layer][:, 1], self._features[layer][:, 2] = (
                seen.entropy,
                seen.total_variance,
            )
        if isinstance(share, KindShare):
            value = pages.read(window.places, "value").double().numpy()
            top = np.argsort(-seen.mean, axis=1, kind="stable")[:, : share.top]
            weight = np.take_along_axis(seen.mean, top, axis=1).astype(np.float64)
            best = np.take_along_axis(value, top[:, :, None], axis=1)
            self._vectors[layer] = np.einsum("gk,gkd->gd", weight, best)

    def _expected(
        self,
        score: ExpectedScore,
        layer: int,
        head: int,
        key: torch.Tensor,
        value: torch.Tensor,
        computed: int,
    ) -> NDArray[np.float64]:
        rope, scale = self._turning[layer]
        known = self._rotation
        if known is None or known[0] is not rope or known[1] != computed:
            rotation = mean_rotation(rope, key.shape[1], computed, score.horizon)
            known = self._rotation = rope, computed, rotation
        own = slice(head * self._group_heads, (head + 1) * self._group_heads)
        mean, covariance = self._moments[layer].moments(own)
        scores = expected_scores(score, key, value, mean, covariance, known[2], scale)
        return np.asarray(scores.numpy())
