"""Heads that are multiplied by comparison with each other (`HeadRanking`, `HeadChoice`), on finished outputs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.cpu.pages import Pages
from heed_kernels.cpu.search import LayerInputs
from heed_kernels.edits import HeadChoice, HeadRanking, KeyRanges
from heed_kernels.eviction.window import ObservedRows
from heed_kernels.plan import BLOCK_TABLE_ROW, FIRST_POSITION, FIRST_TOKEN, ROWS
from heed_kernels.table import EditTable

Gather = Callable[[NDArray[Any]], NDArray[Any]]
"""From [local_query_heads, ...] of this rank to [query_heads, ...] of all ranks, in their order."""


def keys_of(keys: KeyRanges) -> NDArray[np.int64]:
    """The single keys, ascending."""
    runs = [np.arange(start, end) for start, end in keys.ranges]
    return np.concatenate([np.zeros(0, np.int64), *runs])


def ranked_gains(edit: HeadRanking, scores: NDArray[np.float32]) -> NDArray[np.float32]:
    """float32 [query_heads, rows] from scores of the same shape."""
    order = np.argsort(-scores, axis=0, kind="stable")
    gains = np.full(scores.shape, edit.factor, np.float32)
    np.put_along_axis(gains, order[: edit.kept], np.float32(1), axis=0)
    return gains


def chosen_heads(edit: HeadChoice, measured: NDArray[np.float32]) -> NDArray[np.bool_]:
    """bool [query_heads] from [query_heads, 2]: |o - b| and |b|^2, see `HeadChoice`."""
    heads = len(measured)
    candidates = np.ones(heads, bool)
    if edit.outliers_out and heads > 1:
        limits = measured.mean(axis=0) + measured.std(axis=0, ddof=1)
        candidates = ~(measured > limits).all(axis=1)
    order = np.argsort(-measured[:, 0], kind="stable")
    chosen = np.zeros(heads, bool)
    chosen[order[candidates[order]][: edit.chosen]] = True
    return chosen


def differences(output: torch.Tensor, without: torch.Tensor) -> NDArray[np.float32]:
    """float32 [local_query_heads, 2]: |o - b| and |b|^2 of one row's head outputs o and b, each
    [local_query_heads, head_dim]."""
    without = without.float()
    distance = torch.linalg.vector_norm(output.float() - without, dim=1)
    return torch.stack([distance, without.square().sum(dim=1)], dim=1).numpy()


class HeadComparer:
    """One request's comparison of heads.

    known: what was chosen already, by layer; it is added to.
    twin: for a `HeadChoice` with `twin`, by layer the [local_query_heads, head_dim] that are compared with;
        each is needed once, and let go.

    Every rank has to come through the same layers and steps, because `gather` waits for all.
    """

    def __init__(
        self,
        table: EditTable,
        slot: int,
        edit: HeadRanking | HeadChoice,
        gather: Gather,
        known: dict[int, NDArray[Any]],
        twin: dict[int, torch.Tensor] | None = None,
    ) -> None:
        self.edit = edit
        self.known = known
        self._twin = {} if twin is None else twin
        self._table, self._slot, self._gather = table, slot, gather
        self._keys = keys_of(edit.keys)
        self._key_sums: dict[int, torch.Tensor] = {}
        group = table.query_heads // table.kv_heads
        local = np.arange(table.head_start, table.head_start + table.local_query_heads)
        self._kv_head = local // group - table.kv_head_start

    def carry_out(
        self, item: NDArray[np.int32], layer: int, inputs: LayerInputs, output: torch.Tensor
    ) -> None:
        """Multiply a step's rows of the request in `output` [tokens, local_query_heads, head_dim].

        item: int32 [5], its rows as in `plan.Pattern.items`.
        """
        first, rows = int(item[FIRST_POSITION]), int(item[ROWS])
        skipped = max(self.edit.rows.start - first, 0)
        count = min(rows, self.edit.rows.end - first) - skipped
        if not self.edit.on.masks[layer] or count <= 0:
            return
        start = int(item[FIRST_TOKEN]) + skipped
        pages = Pages.of(
            inputs.kv_cache, inputs.block_table[int(item[BLOCK_TABLE_ROW])], inputs.layout
        )
        queries, outputs = inputs.query[start : start + count], output[start : start + count]
        if isinstance(self.edit, HeadRanking):
            gains = ranked_gains(
                self.edit, self._gather(self._scores(layer, queries, pages, inputs.scale))
            )
        else:
            if layer not in self.known:
                if self.edit.twin:
                    without = self._twin.pop(layer)
                else:
                    without = self._masked(layer, first + skipped, queries[0], pages, inputs.scale)
                measured = self._gather(differences(outputs[0], without))
                self.known[layer] = chosen_heads(self.edit, measured)
            gain = np.where(self.known[layer], self.edit.gain, 1.0).astype(np.float32)
            gains = np.repeat(gain[:, None], count, axis=1)
        own = gains[self._table.head_start :][: self._table.local_query_heads]
        outputs.mul_(torch.from_numpy(own.T[:, :, None].copy()).to(outputs.dtype))

    def _scores(
        self, layer: int, queries: torch.Tensor, pages: Pages, scale: float
    ) -> NDArray[np.float32]:
        """float32 [local_query_heads, rows]: a row's logits on the keys, summed."""
        if layer not in self._key_sums:
            self._key_sums[layer] = pages.read(self._keys, "key").float().sum(dim=1)
        sums = self._key_sums[layer][self._kv_head]  # [local_query_heads, head_dim]
        scores = (queries.float() * sums).sum(dim=2).mul_(scale)
        return np.ascontiguousarray(scores.numpy().T)

    def _masked(
        self, layer: int, row: int, query: torch.Tensor, pages: Pages, scale: float
    ) -> torch.Tensor:
        """float32 [local_query_heads, head_dim]: what a row gives without the keys. query: the same shape."""
        places = np.arange(row + 1)
        observed = ObservedRows(self._table, self._slot, layer, row, places, 0, scale)
        weights = observed.weights(query[None].float(), pages.read(places, "key").float(), 0)[:, 0]
        weights[:, self._keys[self._keys <= row]] = 0
        value = pages.read(places, "value").float()[self._kv_head]  # [heads, keys, head_dim]
        without = torch.einsum("hk,hkd->hd", weights, value)
        return without / weights.sum(dim=1, keepdim=True).clamp(min=1e-30)
