"""What a GPU holds of edited requests: its copy of the edit table, and the edited rows of the step at hand.

No vLLM here: a runner tells it what a step holds, the attention layers call the kernel through it.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

import torch

from heed_kernels.plan import Plan
from heed_kernels.rope import Rope
from heed_kernels.table import EditTable
from heed_server.engine.running.step import Comparer, Observer, StepEdits

if TYPE_CHECKING:  # Triton is not on every machine that serves
    from heed_kernels.triton import (
        DeviceEvictions,
        DeviceRecordings,
        DeviceSearches,
        FoundOnDevice,
    )


class DeviceObserver(Observer, Protocol):
    """An observer of a step on a GPU; its inputs are `heed_kernels.triton.LayerInputs`."""

    def load(self, plan: Plan) -> None:
        """Prepare the step, before its forward: its edits are on the device."""


class DeviceEdits:
    """Buffers at fixed addresses, so that a CUDA graph which was captured once meets each step's edits.

    most_tokens, most_requests: upper bounds of a step. head_dim, dtype: of queries. searches, evictions,
    recordings: what these share. found: where keys are written that were found elsewhere.

    All that does not depend on the KV cache is allocated here, at once.
    """

    def __init__(
        self,
        table: EditTable,
        device: torch.device,
        *,
        most_tokens: int,
        most_requests: int,
        head_dim: int,
        dtype: torch.dtype,
    ) -> None:
        import heed_kernels.triton as triton

        self._table = triton.DeviceTable(table, device)
        self._work = triton.StepWork(self._table, most_tokens, most_requests)
        bounds = self._table, most_tokens, most_requests
        # Requests of one step may do all of them, so they have buffers of their own, and one room.
        self._columns = [triton.ColumnWork(*bounds) for _ in range(3)]
        self._work.reserve(head_dim, dtype)
        for columns in self._columns:
            columns.reserve(head_dim, dtype)
        room = triton.Room(triton.MOST_BYTES)
        self.searches: DeviceSearches = triton.DeviceSearches(self._table, self._columns[0], room)
        self.evictions: DeviceEvictions = triton.DeviceEvictions(
            self._table, self._columns[1], room
        )
        self.recordings: DeviceRecordings = triton.DeviceRecordings(
            self._table, self._columns[2], room
        )
        self.found: FoundOnDevice = triton.FoundOnDevice(self._table)
        self.multiply = self._table.multiply
        """Has the kernel multiply generated rows, see `compare.Multiply`."""
        self._attend, self._warm_up = triton.attend, triton.warm_up
        self._inputs = triton.LayerInputs
        self._work.fill(None)
        self._empty = True

    def load(self, edits: StepEdits | None) -> None:
        """Put a step's edited rows on the device (None: it has none). Call before its forward.

        Everything is copied on the current stream, on which the forward follows and the one before
        it has been put. After the first step without edits further ones cost nothing, and the
        launches in a replayed graph find no work. The step's observers are `DeviceObserver`s.
        """
        if edits is not None:
            self._table.sync()
            self._work.fill(edits.plan)
            for observer in edits.observers:
                observer.load(edits.plan)  # type: ignore[attr-defined]
        elif not self._empty:
            self._work.fill(None)
        self._empty = edits is None

    def observe(
        self,
        observers: Sequence[Observer],
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        block_table: torch.Tensor,
        *,
        layer: int,
        scale: float,
        rope: Rope | None,
    ) -> None:
        """Let a step's observers look at `layer`, before `attend`, whose arguments these are."""
        inputs = self._inputs(query, key_cache, value_cache, block_table, scale, rope)
        for observer in observers:
            observer.before_edits(layer, inputs)

    def compare(
        self,
        comparers: Sequence[Comparer],
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        block_table: torch.Tensor,
        output: torch.Tensor,
        *,
        layer: int,
        scale: float,
        rope: Rope | None,
    ) -> None:
        """Let a step's comparers look at the outputs of `layer`, after `attend`, whose arguments these are."""
        inputs = self._inputs(query, key_cache, value_cache, block_table, scale, rope)
        for comparer in comparers:
            comparer.after_edits(layer, inputs, output)

    def attend(
        self,
        query: torch.Tensor,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        block_table: torch.Tensor,
        output: torch.Tensor,
        *,
        layer: int,
        scale: float,
        rope: Rope | None,
    ) -> None:
        """Compute the rows that are edited in `layer` into `output`; the others are left alone.

        query, output: [tokens, local_query_heads, head_dim]; key_cache, value_cache: [blocks,
        block_size, local_kv_heads, head_dim] with any strides but the last, which is 1;
        block_table: int32 [requests, blocks].
        """
        self._attend(
            query=query,
            output=output,
            key_cache=key_cache,
            value_cache=value_cache,
            block_table=block_table,
            table=self._table,
            work=self._work,
            layer=layer,
            scale=scale,
            rope=rope,
        )

    def warm_up(
        self,
        key_cache: torch.Tensor,
        value_cache: torch.Tensor,
        *,
        dtype: torch.dtype,
        scale: float,
        ropes: list[Rope | None],
    ) -> None:
        """Compile what `attend` and observers may launch on these caches, for queries and outputs of `dtype`.

        ropes: the rotary embedding of each layer. Neither compiling nor copying one to the device
        may happen while a graph is captured, or while a request waits.
        """
        self._warm_up(
            self._table, self._work, key_cache, value_cache, dtype=dtype, scale=scale, ropes=ropes
        )
        self._columns[0].warm_up(key_cache, dtype=dtype, scale=scale, ropes=ropes)
        self.evictions.warm_up(key_cache, value_cache)
