"""The attention of one request, measured while its rows come in, layer by layer, on any device.

Column sums come from the kernel that observes. All else is taken from the weights themselves, which are
made again in float32, in tiles of at most TILE_ROWS rows and the query heads of one KV head: as for an
eviction's window where edits are of logits alone, else by their definition (`reference.attention.attention_weights`),
which takes SLOWER times as long (`inspection.py`). Beside what is kept, a tile takes some 40 bytes for
each row, key and query head of the group, of which it has MOST_WEIGHTS where that is one row or more.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.beside.measures import HeadMeasures
from heed_kernels.device import Found, Pages, Summing, Sums
from heed_kernels.edits import (
    Edit,
    FoundKeys,
    HeadSet,
    MassTransfer,
    VisibleKeys,
    VisibleRanges,
)
from heed_kernels.eviction.scores import QuerySimilarity
from heed_kernels.eviction.threads import one_thread
from heed_kernels.eviction.window import MOST_WEIGHTS, ObservedRows
from heed_kernels.inspection import Inspection, OnWeights, of_logits, transfers
from heed_kernels.reference.attention import attention_weights
from heed_kernels.rope import Rope
from heed_kernels.table import EditTable

TILE_ROWS = 64


class RecordingDevice(Protocol):
    """What recordings need of a device."""

    @property
    def device(self) -> torch.device:
        """Where the model is computed."""
        ...

    def summing(self, slot: int, heads: Sequence[int]) -> Summing:
        """Makes the column sums of these query heads of the whole model, as far as this rank has them."""
        ...

    def found(self, slot: int, layer: int) -> Found:
        """The keys that hold in a layer for the step at hand, by local query head. Waits for the device."""
        ...


@dataclass(frozen=True)
class LayerRows:
    """Rows of one request in one layer's forward.

    query: [rows, local_query_heads, head_dim], of the rows from `first` on; scale: on the logits.
    """

    query: torch.Tensor
    pages: Pages
    first: int
    scale: float
    rope: Rope | None


class Recording:
    """What an inspection asks for, in the heads of this rank. All of it stays on the device until `arrays`.

    heads: those of its heads that this rank has, numbered over the whole model.
    without: for `apart` by layer the [local_query_heads, head_dim] that the last row is compared with.
    """

    def __init__(
        self,
        inspection: Inspection,
        edits: Sequence[Edit],
        table: EditTable,
        slot: int,
        device: RecordingDevice,
        without: Mapping[int, torch.Tensor] | None = None,
    ) -> None:
        self.inspection, self.without = inspection, without
        self._table, self._slot, self._device = table, slot, device
        self._edits = [edit for edit in edits if isinstance(edit, OnWeights)]
        self._transfers, self._of_logits = transfers(edits), of_logits(edits)
        end = table.head_start + table.local_query_heads
        self.heads = [head for head in inspection.heads if table.head_start <= head < end]
        self._layers = {layer: at for at, layer in enumerate(inspection.layers)}
        self._measures = HeadMeasures(inspection, len(self.heads), device.device)
        self._summing = device.summing(slot, self.heads)
        self._columns: dict[int, Sums] = {}
        self._similarity: dict[int, QuerySimilarity] = {}
        self._apart: dict[int, torch.Tensor] = {}
        self._seen = dict.fromkeys(inspection.layers, inspection.first_row)
        self._dense = inspection.dense_rows(edits)
        self._ended: str | None = None

    @property
    def failure(self) -> str | None:
        """Why there is nothing to be read; None once every row has been seen in every layer."""
        if self._ended is not None:
            return self._ended
        length = self.inspection.length
        if self.heads and any(seen < length for seen in self._seen.values()):
            return "not every row of the prompt was computed"
        if self.without is not None and set(self._apart) != set(self._layers):
            return "the outputs of the prompt's last row were not compared"
        return None

    @property
    def sums_columns(self) -> bool:
        """Whether its rows are to be added to `columns`."""
        return "columns" in self.inspection.quantities and not self._transfers

    def columns(self, layer: int, first: int, rows: int) -> Sums | None:
        """See `device.Summed`."""
        if layer not in self._layers or not self.heads:
            return None
        if layer not in self._columns:
            self._columns[layer] = self._summing(layer, self.inspection.length)
        return self._columns[layer]

    def observe(self, layer: int, rows: LayerRows) -> None:
        """See the next rows of a layer, whose keys are in the cache and whose found keys are found.

        Rows that are not the next ones end the recording, see `failure`. Rows before the inspection's
        first one, and behind its length, are not looked at.
        """
        first, length = rows.first, self.inspection.length
        if layer not in self._layers or not self.heads or first >= length:
            return
        end, begin = min(first + len(rows.query), length), self.inspection.first_row
        if end <= begin:
            return
        if max(first, begin) != self._seen[layer]:
            self._ended = f"row {first} came where row {self._seen[layer]} was to be inspected"
        if self._ended is not None:
            return
        self._seen[layer] = end
        try:
            if "queries" in self.inspection.quantities:
                self._compare_queries(layer, rows, end)
            for start, stop in self._tiles(first, end):
                self._measure(layer, rows, start, stop)
        except torch.OutOfMemoryError:
            self._ended = "the device has no memory left for what is measured"

    def compare(self, layer: int, output: torch.Tensor) -> None:
        """See the last row's head outputs of a layer, [local_query_heads, head_dim], before the projection."""
        if self.without is None or layer not in self._layers:
            return
        apart = output.float() - self.without[layer].float()
        local = [head - self._table.head_start for head in self.heads]
        self._apart[layer] = apart[local].norm(dim=-1)

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """float32 [layers, heads, …] by quantity, see `Inspection.shape`, when there is no `failure`. Waits for
        the device."""
        arrays = self._measures.arrays()
        for layer, at in self._layers.items():
            if layer in self._columns:
                places = np.arange(self.inspection.length)
                arrays["columns"][at] = self._columns[layer].weights_at(places)
            if layer in self._similarity:
                arrays["queries"][at] = self._similarity[layer].mean().cpu().numpy()
            if layer in self._apart:
                arrays["apart"][at] = self._apart[layer].cpu().numpy()
        return arrays

    def _tiles(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Runs of such rows in [first, end), each at most so long that its weights can be made at once."""
        group_heads = self._table.query_heads // self._table.kv_heads
        most, start = min(TILE_ROWS, max(1, MOST_WEIGHTS // (group_heads * end))), None
        for row in range(first, end + 1):
            inside = row < end and self._dense[row]
            if start is not None and (not inside or row - start == most):
                yield start, row
                start = None
            if inside and start is None:
                start = row

    @one_thread
    def _measure(self, layer: int, rows: LayerRows, start: int, stop: int) -> None:
        group_heads = self._table.query_heads // self._table.kv_heads
        query = rows.query[start - rows.first : stop - rows.first].float()
        local = np.array(self.heads) - self._table.head_start
        keys = rows.pages.read(np.arange(stop), "key")  # [local_kv_heads, keys, head_dim]
        for kv_head in np.unique(local // group_heads):
            mine = slice(*np.searchsorted(local // group_heads, [kv_head, kv_head + 1]).tolist())
            key = keys[int(kv_head)].float()
            if self._of_logits:
                weights = self._by_table(layer, rows, start, query, key, local[mine].tolist())
            else:
                own = slice(int(kv_head) * group_heads, (int(kv_head) + 1) * group_heads)
                every = self._by_definition(layer, rows, query[:, own], key, own)
                chosen = torch.from_numpy(local[mine] - own.start)
                weights = every[chosen.to(every.device, non_blocking=True)]
            self._measures.add(self._layers[layer], mine, start, weights)

    def _by_table(
        self,
        layer: int,
        rows: LayerRows,
        start: int,
        query: torch.Tensor,
        key: torch.Tensor,
        heads: Sequence[int],
    ) -> torch.Tensor:
        """float32 [heads, rows, keys] of some local heads of one KV head."""
        seen = ObservedRows.on_every_key(
            self._table, self._slot, layer, start, len(key), rows.scale
        )
        each = [seen.weights(query[:, head : head + 1], key[None], head) for head in heads]
        return torch.cat(each)

    def _by_definition(
        self, layer: int, rows: LayerRows, query: torch.Tensor, key: torch.Tensor, own: slice
    ) -> torch.Tensor:
        """float32 [heads, rows, keys] of the local heads `own`, all those of one KV head."""
        edits, found = self._edits_of(own), self._found(layer, own)
        with query.device:  # the definition makes tensors of its own
            return attention_weights(
                query, key[:, None], edits, layer, rows.scale, rows.rope, found
            ).after

    def _edits_of(self, own: slice) -> list[Edit]:
        """The edits as they are for some local heads alone, which they number from 0 on."""
        first = self._table.head_start + own.start
        keep = (1 << (own.stop - own.start)) - 1
        return [
            edit
            if isinstance(edit, VisibleKeys | VisibleRanges)
            else replace(edit, on=HeadSet(tuple(mask >> first & keep for mask in edit.on.masks)))
            for edit in self._edits
        ]

    def _found(self, layer: int, own: slice) -> Found | None:
        """The keys that hold for these rows, by head; None where none is sought."""
        if not any(
            isinstance(edit, MassTransfer) and isinstance(edit.sources, FoundKeys)
            for edit in self._edits
        ):
            return None
        return self._device.found(self._slot, layer)[own]

    @one_thread
    def _compare_queries(self, layer: int, rows: LayerRows, end: int) -> None:
        chosen = [row - rows.first for row in self.inspection.rows if rows.first <= row < end]
        if not chosen:
            return
        query = rows.query[chosen][:, [head - self._table.head_start for head in self.heads]]
        if layer not in self._similarity:
            heads, head_dim = query.shape[1:]
            self._similarity[layer] = QuerySimilarity(heads, head_dim, query.device)
        self._similarity[layer].add(query)
