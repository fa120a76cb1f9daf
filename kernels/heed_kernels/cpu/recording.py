"""The attention of one request, measured while its rows come in, layer by layer.

Column sums come from the kernel that observes. All else is taken from the weights themselves, which are
made again in float32, in tiles of TILE_ROWS rows and the query heads of one KV head: as for an
eviction's window where edits are of logits alone, else by their definition (`reference.attention_weights`),
which takes SLOWER times as long (`inspection.py`). Beside what is kept, a tile takes some 40 bytes for
each row, key and query head of the group.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.cpu.measures import HeadMeasures
from heed_kernels.cpu.observation import ColumnSums, add_columns
from heed_kernels.cpu.pages import Pages
from heed_kernels.edits import (
    Edit,
    FoundKeys,
    HeadSet,
    MassTransfer,
    ObserveColumns,
    Rows,
    VisibleKeys,
    VisibleRanges,
)
from heed_kernels.eviction.scores import QuerySimilarity
from heed_kernels.eviction.threads import one_thread
from heed_kernels.eviction.window import ObservedRows
from heed_kernels.inspection import Inspection, OnWeights, of_logits, transfers
from heed_kernels.reference import Found, attention_weights
from heed_kernels.rope import Rope
from heed_kernels.table import EditTable

TILE_ROWS = 64


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
    """What an inspection asks for, in the heads of this rank.

    heads: those of its heads that this rank has, numbered over the whole model.
    without: for `apart` by layer the [local_query_heads, head_dim] that the last row is compared with.
    """

    def __init__(
        self,
        inspection: Inspection,
        edits: Sequence[Edit],
        table: EditTable,
        slot: int,
        without: Mapping[int, torch.Tensor] | None = None,
    ) -> None:
        self.inspection, self.without = inspection, without
        self._table, self._slot = table, slot
        self._edits = [edit for edit in edits if isinstance(edit, OnWeights)]
        self._transfers, self._of_logits = transfers(edits), of_logits(edits)
        end = table.head_start + table.local_query_heads
        self.heads = [head for head in inspection.heads if table.head_start <= head < end]
        self._layers = {layer: at for at, layer in enumerate(inspection.layers)}
        self._measures = HeadMeasures(inspection, len(self.heads))
        self._columns: dict[int, ColumnSums] = {}
        self._similarity: dict[int, QuerySimilarity] = {}
        self._apart: dict[int, torch.Tensor] = {}
        self._seen = dict.fromkeys(inspection.layers, inspection.first_row)
        self._dense = inspection.dense_rows(edits)
        self._out_of_order: str | None = None

    @property
    def failure(self) -> str | None:
        """Why there is nothing to be read; None once every row has been seen in every layer."""
        if self._out_of_order is not None:
            return self._out_of_order
        length = self.inspection.length
        if self.heads and any(seen < length for seen in self._seen.values()):
            return "not every row of the prompt was computed"
        if self.without is not None and set(self._apart) != set(self._layers):
            return "the outputs of the prompt's last row were not compared"
        return None

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
            self._out_of_order = (
                f"row {first} came where row {self._seen[layer]} was to be inspected"
            )
        if self._out_of_order is not None:
            return
        self._seen[layer] = end
        if "columns" in self.inspection.quantities and not self._transfers:
            self._add_columns(layer, rows, end)
        if "queries" in self.inspection.quantities:
            self._compare_queries(layer, rows, end)
        for start, stop in self._tiles(first, end):
            self._measure(layer, rows, start, stop)

    def compare(self, layer: int, output: torch.Tensor) -> None:
        """See the last row's head outputs of a layer, [local_query_heads, head_dim], before the projection."""
        if self.without is None or layer not in self._layers:
            return
        apart = output.float() - self.without[layer].float()
        local = [head - self._table.head_start for head in self.heads]
        self._apart[layer] = apart[local].norm(dim=-1)

    def arrays(self) -> dict[str, NDArray[np.float32]]:
        """float32 [layers, heads, …] by quantity, see `Inspection.shape`, when there is no `failure`."""
        arrays = self._measures.arrays()
        for layer, at in self._layers.items():
            if layer in self._columns:
                arrays["columns"][at] = self._columns[layer].as_float()
            if layer in self._similarity:
                arrays["queries"][at] = self._similarity[layer].mean().numpy()
            if layer in self._apart:
                arrays["apart"][at] = self._apart[layer].numpy()
        return arrays

    def _tiles(self, first: int, end: int) -> Iterator[tuple[int, int]]:
        """Runs of such rows in [first, end), each at most TILE_ROWS long."""
        start = None
        for row in range(first, end + 1):
            inside = row < end and self._dense[row]
            if start is not None and (not inside or row - start == TILE_ROWS):
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
            mine = np.flatnonzero(local // group_heads == kv_head)
            key = keys[kv_head].float()
            if self._of_logits:
                weights = self._by_table(layer, rows, start, query, key, local[mine].tolist())
            else:
                own = slice(int(kv_head) * group_heads, (int(kv_head) + 1) * group_heads)
                every = self._by_definition(layer, rows, query[:, own], key, own)
                weights = every[torch.from_numpy(local[mine] - own.start)]
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
        places = np.arange(len(key))
        seen = ObservedRows(self._table, self._slot, layer, start, places, 0, rows.scale)
        each = [seen.weights(query[:, head : head + 1], key[None], head) for head in heads]
        return torch.cat(each)

    def _by_definition(
        self, layer: int, rows: LayerRows, query: torch.Tensor, key: torch.Tensor, own: slice
    ) -> torch.Tensor:
        """float32 [heads, rows, keys] of the local heads `own`, all those of one KV head."""
        edits, found = self._edits_of(own), self._found(layer, own)
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
        counts = self._table.found_count[self._slot, layer, own]
        keys = self._table.found_keys[self._slot, layer, own]
        return [line[:count].tolist() for line, count in zip(keys, counts, strict=True)]

    def _add_columns(self, layer: int, rows: LayerRows, end: int) -> None:
        asked, table = self.inspection, self._table
        if layer not in self._columns:
            mask = sum(1 << head for head in asked.heads)
            masks = tuple(mask if at == layer else 0 for at in range(table.layers))
            edit = ObserveColumns(HeadSet(masks), Rows(0, asked.length), 0)
            self._columns[layer] = ColumnSums(table, self._slot, edit, layer, asked.length)
        pages, count = rows.pages, end - rows.first
        add_columns(
            rows.query[:count], pages.kv_cache, torch.from_numpy(pages.blocks)[None], table,
            (self._slot, 0, count, rows.first, 0), layer, rows.scale, rows.rope, pages.layout,
            [self._columns[layer]],
        )  # fmt: skip

    @one_thread
    def _compare_queries(self, layer: int, rows: LayerRows, end: int) -> None:
        chosen = [row - rows.first for row in self.inspection.rows if rows.first <= row < end]
        if not chosen:
            return
        query = rows.query[chosen][:, [head - self._table.head_start for head in self.heads]]
        if layer not in self._similarity:
            self._similarity[layer] = QuerySimilarity(*query.shape[1:])
        self._similarity[layer].add(query)
