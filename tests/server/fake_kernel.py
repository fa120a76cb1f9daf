"""A stand-in for Heed's Triton kernels: `heed_kernels.triton` as agreed, on the host."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from heed_kernels.beside.key_search import Counted, KeySearch
from heed_kernels.edits import FindKeys
from heed_kernels.evict import Evict
from heed_kernels.inspection import Inspection
from heed_kernels.plan import Plan
from heed_kernels.rope import Rope
from heed_kernels.table import EditTable

LAYERS, HEADS, KV_HEADS, HEAD_DIM, BLOCK = 3, 4, 2, 32, 16
HEED = 1000.0
"""What Heed's kernel writes: this plus the position."""


class Room(NamedTuple):
    """As that of `heed_kernels.triton`, without bounds."""

    most: int


class PlainPages(NamedTuple):
    """One request's keys and values, [blocks, block_size, kv_heads, head_dim] each."""

    key_cache: torch.Tensor
    value_cache: torch.Tensor
    blocks: np.ndarray

    def read(self, places: np.ndarray, half: str) -> torch.Tensor:
        cache = self.key_cache if half == "key" else self.value_cache
        return cache[self.blocks].flatten(0, 1)[places].transpose(0, 1)

    def move(self, kept: Sequence[np.ndarray], targets: np.ndarray) -> None:
        for cache in (self.key_cache, self.value_cache):
            held = cache[self.blocks].flatten(0, 1)
            for head, places in enumerate(kept):
                for to, place in enumerate(places.tolist()):
                    cache[targets[to // BLOCK], to % BLOCK, head] = held[place, head]


class LayerInputs(NamedTuple):
    """As that of `heed_kernels.triton`."""

    query: torch.Tensor
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    block_table: torch.Tensor
    scale: float
    rope: Rope | None

    def pages(self, row: int) -> PlainPages:
        return PlainPages(self.key_cache, self.value_cache, self.block_table[row].numpy())


class NothingFound(KeySearch):
    """A search that counts nothing."""

    def counted(self) -> Counted:
        return Counted(self._next_row, {}, {})

    def resume(self, counted: Counted) -> None:
        self._next_row = counted.rows

    def found(self, layer: int) -> dict[int, list[int]]:
        return {}

    def mass(self, layer: int) -> float:
        return 0.0

    def close(self) -> None:
        pass


class FakeKernel:
    """`heed_kernels.triton` as agreed, on the host.

    An edited row gets `HEED` plus its absolute position. What is active is read from the table as it
    was at the last `sync`, as on a device.
    """

    def __init__(self) -> None:
        self.calls: list[dict[str, Any]] = []
        self.captured: list[dict[str, Any]] | None = None
        self.warmed: list[tuple[Any, ...]] = []
        self.tables: list[Any] = []
        self.reserved: list[tuple[int, torch.dtype]] = []
        kernel = self

        class DeviceTable:
            def __init__(self, table: EditTable, device: torch.device) -> None:
                self.host, self.syncs = table, 0
                kernel.tables.append(self)
                self.sync()

            def multiply(self, slot: int, layer: int, factors: torch.Tensor) -> None:
                kernel.looked.append(("multiply", [slot, layer, factors.tolist()]))

            def sync(self) -> None:
                self.syncs += 1
                self.active = self.host.active.copy()
                self.phase_start = self.host.phase_start.copy()

        class StepWork:
            def __init__(
                self,
                table: DeviceTable,
                most_tokens: int,
                most_requests: int,
                capacity: int | None = None,
            ) -> None:
                self.plan: Plan | None = None
                self.fills = 0
                self.most = most_tokens, most_requests

            def reserve(self, head_dim: int, dtype: torch.dtype, *, observed: bool = False) -> None:
                kernel.reserved.append((head_dim, dtype))

            def fill(self, plan: Plan | None) -> None:
                self.plan = plan
                self.fills += 1

        def attend(
            query: torch.Tensor,
            output: torch.Tensor,
            key_cache: torch.Tensor,
            value_cache: torch.Tensor,
            block_table: torch.Tensor,
            table: DeviceTable,
            work: StepWork,
            layer: int,
            scale: float,
            rope: Rope | None,
            *,
            everything: bool | None = None,
        ) -> None:
            call = dict(locals())
            call.pop("kernel", None)
            kernel.calls.append(call)
            if kernel.captured is not None:
                kernel.captured.append(call)
            kernel.run(**call)

        def warm_up(
            table: DeviceTable,
            work: StepWork,
            key_cache: torch.Tensor,
            value_cache: torch.Tensor,
            *,
            dtype: torch.dtype,
            scale: float,
            ropes: list[Rope | None],
        ) -> None:
            kernel.warmed.append((key_cache, value_cache, dtype, scale, ropes))

        class ColumnWork:
            def __init__(self, table: DeviceTable, most_tokens: int, most_requests: int) -> None:
                self.table = table.host

            def reserve(self, head_dim: int, dtype: torch.dtype) -> None:
                kernel.reserved.append((head_dim, dtype))

            def warm_up(
                self,
                key_cache: torch.Tensor,
                *,
                dtype: torch.dtype,
                scale: float,
                ropes: list[Rope | None],
            ) -> None:
                kernel.looked.append(("warm", [key_cache.shape, dtype, scale, ropes]))

        class DeviceSearches:
            """Searches find nothing; what they are asked to do is written down."""

            def __init__(self, table: DeviceTable, work: ColumnWork, room: Room) -> None:
                self.table = table.host

            def new(self, slot: int, edit: FindKeys) -> "NothingFound":
                return NothingFound(self.table, slot, edit)

            def load(self, plan: Plan, searches: Sequence["NothingFound"]) -> None:
                kernel.looked.append(("load", [search.item.tolist() for search in searches]))

            def observe(
                self, layer: int, inputs: LayerInputs, searches: Sequence["NothingFound"]
            ) -> None:
                assert all(tensor.shape[-1] == HEAD_DIM for tensor in inputs[:3])
                kernel.looked.append((layer, [search.slot for search in searches]))

        class DeviceEvictions:
            """Sums nothing, and moves what the host's pages move; what it is asked to do is written down."""

            def __init__(self, table: DeviceTable, work: ColumnWork, room: Room) -> None:
                pass

            def enter(self, slot: int, evict: Evict, head_dim: int, rows: int) -> None:
                kernel.looked.append(("enter", [slot, head_dim, rows]))

            def leave(self, slot: int) -> None:
                pass

            def pages(self, caches: Any, block_row: Any) -> list[Any]:
                return [PlainPages(*caches[layer], block_row) for layer in range(LAYERS)]

            def warm_up(self, key_cache: torch.Tensor, value_cache: torch.Tensor) -> None:
                assert key_cache.shape == value_cache.shape

            def moved(self, slot: int) -> None:
                kernel.looked.append(("moved", [slot]))

            def load(self, plan: Plan, items: np.ndarray) -> None:
                kernel.looked.append(("load", items.tolist()))

            def observe(
                self, layer: int, inputs: LayerInputs, requests: Sequence[Any], items: np.ndarray
            ) -> None:
                kernel.looked.append((layer, items.tolist()))

        class DeviceRecordings(DeviceEvictions):
            """Sums nothing."""

            def __init__(self, table: DeviceTable, work: ColumnWork, room: Room) -> None:
                self.device = torch.device("cpu")

            def enter(self, slot: int, inspection: Inspection) -> None:  # type: ignore[override]
                kernel.looked.append(("inspect", [slot]))

            def summing(self, slot: int, heads: Sequence[int]) -> Any:
                return None

            def found(self, slot: int, layer: int) -> list[list[int]]:
                return [[]] * HEADS

        class FoundOnDevice:
            """Writes down what was found."""

            def __init__(self, table: DeviceTable) -> None:
                pass

            def reserve(self, slot: int) -> None:
                kernel.looked.append(("reserve", [slot]))

            def write(self, slot: int, layer: int, keys: torch.Tensor, count: torch.Tensor) -> None:
                kernel.looked.append(("found", [slot, layer, keys[: int(count)].tolist()]))

        self.looked: list[tuple[Any, list[Any]]] = []
        self.DeviceTable, self.StepWork = DeviceTable, StepWork
        self.DeviceSearches, self.DeviceEvictions = DeviceSearches, DeviceEvictions
        self.DeviceRecordings, self.FoundOnDevice = DeviceRecordings, FoundOnDevice
        self.ColumnWork, self.Room, self.LayerInputs = ColumnWork, Room, LayerInputs
        self.attend, self.warm_up = attend, warm_up

    @staticmethod
    def run(
        output: torch.Tensor, block_table: torch.Tensor, table: Any, work: Any, layer: int, **_: Any
    ) -> None:
        """What the launch does, with the buffers' present contents."""
        if work.plan is None:
            return
        for slot, token, rows, position, block_row in work.plan.items(layer):
            assert block_row < len(block_table) and token + rows <= len(output)
            for row in range(rows):
                starts = table.phase_start[slot]
                phase = np.searchsorted(starts, position + row, side="right") - 1
                assert table.active[slot, layer, phase], "the device's table is stale"
                output[token + row] = HEED + position + row

    def replay(self) -> None:
        """Run the captured launches again, as a CUDA graph would."""
        assert self.captured is not None
        for call in self.captured:
            self.run(**call)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        import sys

        import heed_kernels

        module: Any = ModuleType("heed_kernels.triton")
        module.DeviceTable, module.StepWork = self.DeviceTable, self.StepWork
        module.DeviceSearches, module.DeviceEvictions = self.DeviceSearches, self.DeviceEvictions
        module.DeviceRecordings, module.FoundOnDevice = self.DeviceRecordings, self.FoundOnDevice
        module.ColumnWork, module.Room, module.LayerInputs = self.ColumnWork, Room, LayerInputs
        module.MOST_BYTES = 1 << 20
        module.attend, module.warm_up = self.attend, self.warm_up
        patch.setitem(sys.modules, "heed_kernels.triton", module)
        patch.setattr(heed_kernels, "triton", module, raising=False)
