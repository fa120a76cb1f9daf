"""Column sums on a device: which rows of a step are added, and where."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.device import Summed
from heed_kernels.errors import EditError
from heed_kernels.evict import ExpectedScore
from heed_kernels.eviction.scores import QueryMoments
from heed_kernels.plan import FIRST_POSITION, ROWS, SLOT, Plan
from heed_kernels.rope import Rope
from heed_kernels.triton.device_table import DeviceTable, sent
from heed_kernels.triton.moving import Mover
from heed_kernels.triton.observing import UNITS, observe
from heed_kernels.triton.pages import DevicePages
from heed_kernels.triton.step_work import StepWork

MOST_BYTES = 1 << 29
"""Of all that searches and evictions hold on a device at once. vLLM does not know of it: it comes out of the
memory that it leaves free."""
ALIGNED = 16
"""Keys. One variant of the kernel that moves them then does for all sums."""


@dataclass(frozen=True)
class LayerInputs:
    """What a layer's attention reads, see `launch.attend`; the step's keys are in the cache."""

    query: torch.Tensor
    key_cache: torch.Tensor
    value_cache: torch.Tensor
    block_table: torch.Tensor
    scale: float
    rope: Rope | None

    def pages(self, row: int) -> DevicePages:
        """The layer's, of the request in that row of the block table."""
        return DevicePages(self.key_cache, self.value_cache, self.block_table[row])


class Room:
    """Bytes that requests hold, by what they hold them for."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._held: dict[object, int] = {}

    def hold(self, owner: object, size: int) -> None:
        """It holds so many from now on. Raises `EditError` where there is no room for them."""
        others = sum(self._held.values()) - self._held.get(owner, 0)
        if others + size > self._most:
            raise EditError(
                f"what requests observe takes at most {self._most:,} bytes of a GPU: others hold"
                f" {others:,}, and this request needs {size:,}"
            )
        self._held[owner] = size

    def leave(self, owner: object) -> None:
        """It holds nothing any more."""
        self._held.pop(owner, None)


class ColumnWork:
    """The rows of a step whose weights are added to columns, and where these lie.

    most_tokens, most_requests: upper bounds of a step.
    """

    def __init__(self, table: DeviceTable, most_tokens: int, most_requests: int) -> None:
        self._table, host = table, table.table
        self._work = StepWork(table, most_tokens, most_requests)
        shape = (most_tokens, host.local_query_heads)
        self._log_sum_exp = torch.zeros(shape, dtype=torch.float32, device=table.device)
        self._places = torch.zeros(
            host.layers, host.slots, host.local_query_heads, dtype=torch.int64, device=table.device
        )

    def reserve(self, head_dim: int, dtype: torch.dtype) -> None:
        """As `StepWork.reserve`."""
        self._work.reserve(head_dim, dtype, observed=True)

    def load(self, plan: Plan, slots: NDArray[np.integer], rows: NDArray[np.integer]) -> None:
        """Of the step's rows those are added that lie in `rows`, [slots, 2], of each of `slots`."""
        bounds = np.zeros((self._table.table.slots, 2), np.int64)
        bounds[slots] = rows
        self._work.fill_observed(plan, bounds)

    def place(
        self, layers: slice, slots: NDArray[np.integer], addresses: NDArray[np.int64]
    ) -> None:
        """addresses: [layers, slots, local_query_heads] of columns, as `observe` wants them."""
        at = self._table.sent(slots.astype(np.int64))
        self._places[layers].index_copy_(1, at, self._table.sent(addresses))

    def add(self, layer: int, inputs: LayerInputs, *, everything: bool = False) -> None:
        """Add the rows' weights in a layer, before its `attend`. everything: as in `observe`."""
        # Rows that only pad the step are nobody's.
        query = inputs.query[: len(self._log_sum_exp)]
        observe(
            query,
            inputs.key_cache,
            inputs.block_table,
            self._table,
            self._work,
            layer,
            inputs.scale,
            inputs.rope,
            self._log_sum_exp[: len(query)],
            places=self._places[layer],
            everything=everything,
        )

    def warm_up(
        self,
        key_cache: torch.Tensor,
        *,
        dtype: torch.dtype,
        scale: float,
        ropes: Sequence[Rope | None],
    ) -> None:
        """Compile and load what `add` may launch on this cache. No step is loaded yet."""
        heads, head_dim = self._places.shape[2], key_cache.shape[3]
        query = torch.zeros(1, heads, head_dim, dtype=dtype, device=key_cache.device)
        blocks = torch.zeros(1, 1, dtype=torch.int32, device=key_cache.device)
        for rope in {id(rope): rope for rope in ropes}.values():
            inputs = LayerInputs(query, key_cache, key_cache, blocks, scale, rope)
            self.add(0, inputs, everything=True)


class DeviceSums:
    """Sums of weights of one request and layer, see `device.Sums`: int64 in units of 1 / UNITS.

    heads: of this rank; wanted: those of them that are summed, by their local numbers, ascending; mover: of
    sums whose keys may be let go. A head's sums begin at multiples of ALIGNED keys.
    """

    def __init__(
        self,
        heads: int,
        capacity: int,
        device: torch.device,
        wanted: Sequence[int] | None = None,
        mover: Mover | None = None,
    ) -> None:
        self._heads, self._mover = heads, mover
        self._wanted = np.arange(heads) if wanted is None else np.array(wanted, np.int64)
        shape = len(self._wanted), _aligned(capacity)
        self._sums = torch.zeros(shape, dtype=torch.int64, device=device)

    def addresses(self) -> NDArray[np.int64]:
        """[heads]: where their sums lie, 0 for those that are not summed."""
        places = np.zeros(self._heads, np.int64)
        lines = np.arange(len(self._wanted))
        places[self._wanted] = self._sums.data_ptr() + 8 * self._sums.shape[1] * lines
        return places

    def grow(self, keys: int) -> None:
        """See `device.Sums`."""
        more = _aligned(keys) - self._sums.shape[1]
        if more > 0:
            self._sums = torch.nn.functional.pad(self._sums, (0, more))

    def weights_at(self, places: NDArray[np.int64]) -> NDArray[np.float64]:
        """See `device.Sums`. Waits for the device."""
        at = sent(places, self._sums.device)
        return np.asarray(self._sums[:, at].cpu().numpy() / UNITS)

    def keep(self, heads: slice, places: NDArray[np.int64]) -> None:
        """See `device.Sums`."""
        assert self._mover is not None
        # As a cache of one block: the heads that share these places, and a vector of one number per key.
        cache = self._sums[heads].T[None, :, :, None]
        self._mover.move([cache], [places], np.arange(len(places)))


def _aligned(keys: int) -> int:
    return -(-keys // ALIGNED) * ALIGNED


@dataclass(frozen=True)
class DeviceSumming:
    """See `device.Summing`. heads, wanted, mover: as of `DeviceSums`."""

    heads: int
    device: torch.device
    wanted: Sequence[int] | None = None
    mover: Mover | None = None

    def __call__(self, layer: int, capacity: int) -> DeviceSums:
        """See `device.Summing`."""
        return DeviceSums(self.heads, capacity, self.device, self.wanted, self.mover)

    def moments(self, score: ExpectedScore, heads: int, head_dim: int) -> QueryMoments:
        """See `device.Summing`."""
        return QueryMoments(score, heads, head_dim, self.device)


class ColumnAdder:
    """Adds rows of a step to the column sums of several requests."""

    def __init__(self, table: DeviceTable, work: ColumnWork) -> None:
        self._table, self._work = table, work

    def load(self, plan: Plan, items: NDArray[np.int32]) -> None:
        """Prepare a step in which these rows, `plan.Pattern.items`, are added to sums, before its forward."""
        first = items[:, FIRST_POSITION].astype(np.int64)
        self._work.load(plan, items[:, SLOT], np.column_stack([first, first + items[:, ROWS]]))

    def observe(
        self,
        layer: int,
        inputs: LayerInputs,
        requests: Sequence[Summed],
        items: NDArray[np.int32],
    ) -> None:
        """Add the rows of the step that was loaded in one layer, before its `attend`.

        items: one for each of `requests`.
        """
        addresses = np.zeros((len(items), self._table.table.local_query_heads), np.int64)
        for at, request, item in zip(addresses, requests, items, strict=True):
            sums = request.columns(layer, int(item[FIRST_POSITION]), int(item[ROWS]))
            if isinstance(sums, DeviceSums):
                at[:] = sums.addresses()
        if addresses.any():
            self._work.place(slice(layer, layer + 1), items[:, SLOT], addresses[None])
            self._work.add(layer, inputs)
