"""The call of the kernel that observes: checks, and the units of the query heads that are looked at."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray

from heed_kernels.cpu import parameters as at
from heed_kernels.cpu.call import Call, check, check_reach
from heed_kernels.cpu.layout import Layout
from heed_kernels.cpu.observe_kernel import observe_thread
from heed_kernels.errors import EditError
from heed_kernels.plan import FIRST_POSITION, ROWS, SLOT, TILE_ROWS, row_tiles
from heed_kernels.rope import Rope
from heed_kernels.table import EditTable


class ObservationCall(Call):
    """What the layers of a step have in common that observe the same rows and heads."""

    def __init__(
        self,
        query: torch.Tensor,
        kv_cache: torch.Tensor,
        block_table: torch.Tensor,
        table: EditTable,
        items: ArrayLike,
        wanted: NDArray[np.bool_],
        scale: float,
        rope: Rope | None,
        layout: Layout,
    ) -> None:
        """items: as for `observe`; wanted: bool [items, query_heads], the others cost nothing.

        Raises `EditError` when shapes or dtypes do not fit, or a tensor is too small.
        """
        given = np.array(items, np.int32).reshape(-1, 5)
        slots = given[:, SLOT]
        if not len(given) or given.min() < 0 or given[:, ROWS].min() < 1:
            raise EditError("there are no rows to observe, or negative numbers")
        if slots.max() >= table.slots or not table.occupied[slots].all():
            raise EditError("rows of a slot that is not occupied cannot be observed")
        check(query, kv_cache, block_table, table, layout)
        check_reach(given, query, kv_cache, block_table, layout, table, rope)
        group_heads = query.shape[1] // kv_cache.shape[1]
        units = _units(given, [head_runs(heads, group_heads) for heads in wanted])
        vectors = int((units[:, ROWS] * units[:, -1]).max(initial=0))
        keys = int((units[:, FIRST_POSITION] + units[:, ROWS]).max(initial=0))
        super().__init__(units, vectors, query, kv_cache, block_table, table, scale, rope, layout)
        self.floats += at.kept_floats(vectors, keys)

    def observe(
        self, query: torch.Tensor, kv_cache: torch.Tensor, layer: int, targets: int, count: int
    ) -> None:
        """Run it for a layer. targets: address of int64 [count, TARGET_FIELDS], see `parameters`."""
        self.parameters[at.TARGETS], self.parameters[at.TARGET_COUNT] = targets, count
        self.run(observe_thread(), query, kv_cache, layer)


def head_runs(wanted: NDArray[np.bool_], group_heads: int) -> NDArray[np.int32]:
    """int32 [runs, 2]: first and number of neighbouring wanted query heads that share a KV head.

    wanted: [query_heads].
    """
    edges = np.pad(wanted.reshape(-1, group_heads), ((0, 0), (1, 1))).astype(np.int8)
    steps = np.diff(edges, axis=1)
    group, first = np.nonzero(steps == 1)
    end = np.nonzero(steps == -1)[1]
    return np.column_stack([group * group_heads + first, end - first]).astype(np.int32)


def _units(items: NDArray[np.int32], runs: Sequence[NDArray[np.int32]]) -> NDArray[np.int32]:
    """int32 [units, 7]: each item cut into tiles, once for each of its runs of heads, which is written behind
    it. Tiles have as many vectors whatever the run, so that a key is read for as many of them."""
    item = np.repeat(np.arange(len(items)), [len(each) for each in runs])
    with_heads = np.column_stack([items[item], np.concatenate(runs)])
    return row_tiles(with_heads, np.maximum(1, TILE_ROWS // with_heads[:, -1]))
