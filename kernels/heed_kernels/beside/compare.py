"""Heads that are multiplied by comparison with each other (`HeadRanking`, `HeadChoice`), on finished outputs."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.device import LayerInputs, Pages
from heed_kernels.edits import HeadChoice, HeadRanking, KeyRanges
from heed_kernels.eviction.window import ObservedRows
from heed_kernels.plan import BLOCK_TABLE_ROW, FIRST_POSITION, FIRST_TOKEN, ROWS
from heed_kernels.table import EditTable

Gather = Callable[[torch.Tensor], torch.Tensor]
"""From [local_query_heads, ...] of this rank to [query_heads, ...] of all ranks, in their order and where
the tensor is."""


def keys_of(keys: KeyRanges) -> NDArray[np.int64]:
    """The single keys, ascending."""
    runs = [np.arange(start, end) for start, end in keys.ranges]
    return np.concatenate([np.zeros(0, np.int64), *runs])


def largest(values: torch.Tensor, count: int) -> torch.Tensor:
    """bool [heads, ...]: the `count` largest of `values` over the heads; of equal ones the lower id."""
    order = values.argsort(dim=0, descending=True, stable=True)
    return torch.zeros_like(values, dtype=torch.bool).scatter_(0, order[:count], True)


def ranked_gains(edit: HeadRanking, scores: torch.Tensor) -> torch.Tensor:
    """float32 [query_heads, rows] from scores of the same shape."""
    gains = torch.full_like(scores, edit.factor, dtype=torch.float32)
    return gains.masked_fill_(largest(scores, edit.kept), 1)


def chosen_heads(edit: HeadChoice, measured: torch.Tensor) -> torch.Tensor:
    """bool [query_heads] from [query_heads, 2]: |o - b| and |b|^2, see `HeadChoice`."""
    candidates = torch.ones_like(measured[:, 0], dtype=torch.bool)
    if edit.outliers_out and len(measured) > 1:
        limits = measured.mean(dim=0) + measured.std(dim=0)
        candidates = ~(measured > limits).all(dim=1)
    order = measured[:, 0].argsort(descending=True, stable=True)
    in_order = candidates[order]
    held = in_order & (in_order.cumsum(0) <= edit.chosen)
    return torch.zeros_like(candidates).scatter_(0, order, held)


def chosen_gains(edit: HeadChoice, chosen: torch.Tensor) -> torch.Tensor:
    """float32 [query_heads] from what was chosen, bool [query_heads]."""
    return torch.ones_like(chosen, dtype=torch.float32).masked_fill_(chosen, edit.gain)


def differences(output: torch.Tensor, without: torch.Tensor) -> torch.Tensor:
    """float32 [local_query_heads, 2]: |o - b| and |b|^2 of one row's head outputs o and b, each
    [local_query_heads, head_dim]."""
    without = without.float()
    distance = torch.linalg.vector_norm(output.float() - without, dim=1)
    return torch.stack([distance, without.square().sum(dim=1)], dim=1)


Multiply = Callable[[int, int, torch.Tensor], None]
"""Has kernels multiply generated rows of a slot, in a layer, by factors [local_query_heads], from the next step
on; see `EditTable.multiplies`."""


class HeadComparer:
    """One request's comparison of heads. All of it stays on the device, for which nothing waits.

    known: what was chosen already, by layer; it is added to.
    twin: for a `HeadChoice` with `twin`, by layer the [local_query_heads, head_dim] that are compared with;
        each is needed once, and let go.
    multiply: takes over from the step in which heads were chosen, where the choice `lasts`.

    Every rank has to come through the same layers and steps, because `gather` waits for all.
    """

    def __init__(
        self,
        table: EditTable,
        slot: int,
        edit: HeadRanking | HeadChoice,
        gather: Gather,
        known: dict[int, torch.Tensor],
        twin: dict[int, torch.Tensor] | None = None,
        device: torch.device | None = None,
        multiply: Multiply | None = None,
    ) -> None:
        self.edit = edit
        self.known = known
        lasts = isinstance(edit, HeadChoice) and edit.lasts(int(table.prompt_length[slot]))
        self._multiply = multiply if lasts else None
        self.layers = frozenset(layer for layer, mask in enumerate(edit.on.masks) if mask)
        self._waiting = set(self.layers)
        """Layers in which no kernel multiplies as yet."""
        self._twin = {} if twin is None else twin
        self._table, self._slot, self._gather = table, slot, gather
        self._factors: torch.Tensor | None = None
        self._keys = keys_of(edit.keys)
        self._key_places = torch.from_numpy(self._keys).to(device, non_blocking=True)
        self._key_sums: dict[int, torch.Tensor] = {}

    def acts(self, first: int, rows: int) -> bool:
        """Whether any of the rows [first, first + rows) is multiplied here."""
        reached = first + rows > self.edit.rows.start and first < self.edit.rows.end
        return reached and bool(self._waiting)

    def tokens(self, item: NDArray[np.int32]) -> slice:
        """Of the batch, those whose outputs are multiplied; `acts` holds. item: as for `carry_out`."""
        first, token = int(item[FIRST_POSITION]), int(item[FIRST_TOKEN])
        skipped = max(self.edit.rows.start - first, 0)
        return slice(token + skipped, token + min(int(item[ROWS]), self.edit.rows.end - first))

    def settled(self) -> torch.Tensor | None:
        """float32 [layers, local_query_heads], by which every row is multiplied from now on; 1 in layers
        without the edit. None while something is left to compare, or where kernels multiply."""
        if self._multiply is not None or not isinstance(self.edit, HeadChoice):
            return None
        if self._factors is None and self.layers <= self.known.keys():
            plain = torch.ones_like(next(iter(self.known.values())), dtype=torch.float32)
            by_layer = [
                chosen_gains(self.edit, self.known[layer]) if layer in self.layers else plain
                for layer in range(len(self.edit.on.masks))
            ]
            self._factors = self._own(torch.stack(by_layer, dim=1)).T
        return self._factors

    def _own(self, gains: torch.Tensor) -> torch.Tensor:
        """This rank's part of [query_heads, ...]."""
        return gains[self._table.head_start :][: self._table.local_query_heads]

    def ready(self, first: int, rows: int) -> bool:
        """Whether the rows [first, first + rows) can be multiplied: heads are chosen, or are with one of them."""
        if isinstance(self.edit, HeadRanking) or self.layers <= self.known.keys():
            return True
        return first <= self.edit.at < first + rows

    def carry_out(
        self, item: NDArray[np.int32], layer: int, inputs: LayerInputs, output: torch.Tensor
    ) -> None:
        """Multiply a step's rows of the request in `output` [tokens, local_query_heads, head_dim].

        item: int32 [5], its rows as in `plan.Pattern.items`, for which it is `ready`.
        """
        first, rows = int(item[FIRST_POSITION]), int(item[ROWS])
        if layer not in self._waiting or not self.acts(first, rows):
            return
        held = self.tokens(item)
        first += held.start - int(item[FIRST_TOKEN])
        queries, outputs = inputs.query[held], output[held]
        if isinstance(self.edit, HeadRanking):
            pages = inputs.pages(int(item[BLOCK_TABLE_ROW]))
            scores = self._gather(self._scores(layer, queries, pages, inputs.scale))
            gains = ranked_gains(self.edit, scores)
        else:
            if layer not in self.known:
                row = self.edit.at - first
                if self.edit.twin:
                    without = self._twin.pop(layer)
                else:
                    pages = inputs.pages(int(item[BLOCK_TABLE_ROW]))
                    without = self._masked(layer, self.edit.at, queries[row], pages, inputs.scale)
                measured = self._gather(differences(outputs[row], without))
                self.known[layer] = chosen_heads(self.edit, measured)
            gains = chosen_gains(self.edit, self.known[layer])[:, None]
        own = self._own(gains)
        outputs.mul_(own.T[:, :, None].to(outputs.dtype))
        if self._multiply is not None:
            self._multiply(self._slot, layer, own[:, 0])
            self._waiting.discard(layer)

    def _scores(
        self, layer: int, queries: torch.Tensor, pages: Pages, scale: float
    ) -> torch.Tensor:
        """float32 [local_query_heads, rows]: a row's logits on the keys, summed."""
        if layer not in self._key_sums:
            self._key_sums[layer] = pages.read(self._keys, "key").float().sum(dim=1)
        sums = self._key_sums[layer]  # [local_kv_heads, head_dim]
        sums = sums.repeat_interleave(queries.shape[1] // len(sums), dim=0)
        return (queries.float() * sums).sum(dim=2).mul_(scale).T.contiguous()

    def _masked(
        self, layer: int, row: int, query: torch.Tensor, pages: Pages, scale: float
    ) -> torch.Tensor:
        """float32 [local_query_heads, head_dim]: what a row gives without the keys. query: the same shape."""
        observed = ObservedRows.on_every_key(self._table, self._slot, layer, row, row + 1, scale)
        places = observed.places
        weights = observed.weights(query[None].float(), pages.read(places, "key").float(), 0)[:, 0]
        seen = int(np.searchsorted(self._keys, row, side="right"))
        weights.index_fill_(1, self._key_places[:seen], 0)
        value = pages.read(places, "value").float()  # [local_kv_heads, keys, head_dim]
        without = torch.bmm(weights.view(len(value), -1, row + 1), value).view(query.shape)
        return without / weights.sum(dim=1, keepdim=True).clamp(min=1e-30)


class SettledRows:
    """A step's rows of all requests whose heads are chosen, multiplied together.

    rows: each request's comparison, which is `settled`, and its item (`HeadComparer.carry_out`).
    """

    def __init__(self, rows: Sequence[tuple[HeadComparer, NDArray[np.int32]]]) -> None:
        held = [comparer.tokens(item) for comparer, item in rows]
        factors = [comparer.settled() for comparer, _ in rows]
        stacked = torch.stack([each for each in factors if each is not None], dim=1)
        request = np.repeat(np.arange(len(held)), [each.stop - each.start for each in held])
        places = np.concatenate([np.arange(each.start, each.stop) for each in held])
        self._layers = frozenset[int]().union(*(comparer.layers for comparer, _ in rows))
        self._places = torch.from_numpy(places).to(stacked.device)
        self._factors = stacked[:, torch.from_numpy(request).to(stacked.device), :, None]
        """[layers, rows, local_query_heads, 1]"""

    def carry_out(self, layer: int, output: torch.Tensor) -> None:
        """output: [tokens, local_query_heads, head_dim] of the whole batch."""
        if layer in self._layers:
            multiplied = output[self._places] * self._factors[layer].to(output.dtype)
            output.index_copy_(0, self._places, multiplied)
