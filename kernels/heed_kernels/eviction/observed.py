"""What a request's rows tell about its keys, layer by layer, until the survivors are chosen."""

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.device import Moments, Pages, Summing, Sums
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
from heed_kernels.eviction.scores import (
    difference_scores,
    expected_scores,
    mean_rotation,
    norm_scores,
    query_similarity,
)
from heed_kernels.eviction.threads import one_thread
from heed_kernels.eviction.window import ObservedRows
from heed_kernels.rope import Rope
from heed_kernels.table import EditTable


class KeyScorer:
    """Sees the queries of one request, and scores its keys on one rank. Used by `Eviction`."""

    def __init__(
        self, edit: Evict, table: EditTable, slot: int, prompt_length: int, summing: Summing | None
    ) -> None:
        self._edit, self._table, self._slot = edit, table, slot
        self._prompt, self._summing = prompt_length, summing
        self._group_heads = table.query_heads // table.kv_heads
        score, share = edit.score, edit.share
        self._every_row = isinstance(score, ColumnScore | ExpectedScore)
        self._window = score.window if isinstance(score, WindowScore) else 0
        self._last = max(self._window, share.rows if isinstance(share, QueryShare) else 0)
        self.forget()

    def forget(self) -> None:
        """Drop all that was seen."""
        self._seen: dict[int, int] = {}
        # What is computed in the forward stays on its device until it is asked for.
        self._scores: dict[int, tuple[int, torch.Tensor]] = {}
        self._vectors: dict[int, torch.Tensor] = {}
        self._features: dict[int, torch.Tensor] = {}
        self._columns: dict[int, Sums] = {}
        self._moments: dict[int, Moments] = {}
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
                assert self._summing is not None
                self._moments[layer] = self._summing.moments(score, *query.shape[1:])
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
            self._features[layer] = similarity.new_zeros(len(similarity), 3)
            self._features[layer][:, 0] = similarity
        if self._window:
            last = query[-min(self._window, len(query)) :]
            window = ObservedRows(
                self._table, self._slot, layer, end - len(last), places, self._edit.recent, scale
            )
            self._score_window(window, last, pages, end)

    def columns(self, layer: int, first: int, rows: int) -> Sums:
        """Where a `ColumnScore` has the weights of the next rows added, with room for their keys."""
        self._follow(layer, first, rows)
        columns = self._columns.get(layer)
        if columns is None:
            assert self._summing is not None
            columns = self._columns[layer] = self._summing(layer, self._prompt)
        if first + rows > self._prompt:
            # Rows come one by one: room is made for as many again.
            columns.grow(1 << (first + rows - 1).bit_length())
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
            return _host(known.double())
        if isinstance(score, ColumnScore):
            columns = self._columns[layer].weights_at(places)
            by_group = columns.reshape(-1, self._group_heads, len(places))
            return np.asarray(by_group.mean(axis=1))
        key = pages.read(places, "key")
        # In double precision head by head: that of all heads may be gigabytes.
        if isinstance(score, NormScore):
            return np.concatenate([_host(norm_scores(own[None].double())) for own in key])
        if isinstance(score, DifferenceScore):
            return np.concatenate([_host(difference_scores(own[None].double())) for own in key])
        value = pages.read(places, "value")
        return np.array(
            [
                self._expected(score, layer, head, own.double(), value[head].double(), computed)
                for head, own in enumerate(key)
            ]
        )

    def vectors(self, layer: int) -> NDArray[np.float64] | None:
        """float64 [local_kv_heads, head_dim], the semantic vectors of `KindShare`; None for others."""
        vectors = self._vectors.get(layer)
        return None if vectors is None else _host(vectors)

    def query_features(self, layer: int) -> NDArray[np.float64]:
        """float64 [local_kv_heads, 3], see `survivors.preference`."""
        return _host(self._features[layer])

    def keep(self, layer: int, head: int, places: NDArray[np.int64]) -> None:
        """The keys of a local KV head at `places` move to its first places; the others are gone."""
        if layer not in self._columns:
            return
        own = slice(head * self._group_heads, (head + 1) * self._group_heads)
        self._columns[layer].keep(own, places)

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
        seen = window.statistics(query, pages.read(window.places, "key"), only_mean=only_mean)
        self._scores[layer] = end, seen.mean + score.variance * seen.variance
        if layer in self._features:
            self._features[layer][:, 1] = seen.entropy
            self._features[layer][:, 2] = seen.total_variance
        if isinstance(share, KindShare):
            value = pages.read(window.places, "value").double()
            weight, top = seen.mean.sort(dim=1, descending=True, stable=True)
            weight, top = weight[:, : share.top].double(), top[:, : share.top]
            best = value.gather(1, top[:, :, None].expand(-1, -1, value.shape[2]))
            self._vectors[layer] = torch.einsum("gk,gkd->gd", weight, best)

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
            rotation = mean_rotation(rope, key.shape[1], computed, score.horizon).to(key.device)
            known = self._rotation = rope, computed, rotation
        own = slice(head * self._group_heads, (head + 1) * self._group_heads)
        mean, covariance = self._moments[layer].moments(own)
        scores = expected_scores(score, key, value, mean, covariance, known[2], scale)
        return _host(scores)


def _host(values: torch.Tensor) -> NDArray[np.float64]:
    return np.asarray(values.cpu().numpy())
