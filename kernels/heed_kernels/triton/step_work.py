"""A step's edited rows on the device: units of work at fixed addresses."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.errors import EditError
from heed_kernels.plan import BLOCK_TABLE_ROW, FIRST_POSITION, FIRST_TOKEN, ROWS, SLOT, Plan
from heed_kernels.triton import layout as at
from heed_kernels.triton import shapes
from heed_kernels.triton.device_table import DeviceTable
from heed_kernels.triton.sources import CHUNK

PHASE = 5
"""Column of `Plan.runs`."""

LEAST_CAPACITY = 1024
"""The capacity by default, at least."""


class StepWork:
    """Units of the rows of a step that are edited in any layer; programs look up in which.

    most_tokens, most_requests: upper bounds of a step. capacity: splits of generated rows that are
    computed at once, at least as many as one row can have. buffer: int32, see `layout`.
    """

    def __init__(
        self, table: DeviceTable, most_tokens: int, most_requests: int, capacity: int | None = None
    ) -> None:
        self.table, self.most_tokens = table, most_tokens
        heads = table.table
        processors, capability = shapes.machine(table.device)
        self._group = heads.query_heads // heads.kv_heads
        self.tile_rows = max(1, shapes.tile_heads(capability) // self._group)
        self.programs = processors * shapes.PROGRAMS
        """Most programs of a launch; each has its part of the scratch."""
        self.capacity = capacity or max(LEAST_CAPACITY, 8 * most_requests)
        self.most_waves = self.waves_of(most_tokens)
        self._units_at = at.WAVES.value + self.most_waves * at.WAVE_WORDS.value
        words = self._units_at + most_tokens * (at.UNIT_WORDS.value + at.SPLITS.value)
        self.buffer = torch.zeros(words, dtype=torch.int32, device=table.device)
        self.tiles = self.waves = self.rows = self.splits = 0
        self.reach = (0, 0, 0)
        """Of the units: query tokens, lines of the block table, and keys that they reach up to."""
        self._partial: tuple[torch.Tensor, torch.Tensor] | None = None
        self._scratch: dict[torch.dtype, torch.Tensor] = {}
        self._scores: tuple[torch.Tensor, torch.Tensor] | None = None
        self._measures: torch.Tensor | None = None
        self.transfers = False
        self.fill(None)

    def waves_of(self, rows: int) -> int:
        """Waves that so many generated rows need at most."""
        return math.ceil(rows / (self.capacity // int(at.SPLITS.value)))

    def partial(self, heads: int, head_dim: int) -> tuple[torch.Tensor, torch.Tensor]:
        """What splits leave for their merge, allocated once: see `split.attend_splits`."""
        if self._partial is None:
            device, shape = self.buffer.device, (self.capacity, 2, heads, head_dim)
            sums = torch.empty(
                (self.capacity, heads, at.SUMS.value), dtype=torch.float32, device=device
            )
            self._partial = torch.empty(shape, dtype=torch.float32, device=device), sums
        if self._partial[0].shape[2:] != (heads, head_dim):
            raise EditError("all layers that are edited must have the same heads")
        return self._partial

    def scratch(self, head_dim: int, dtype: torch.dtype) -> torch.Tensor:
        """Memory of each program for turned queries and keys, allocated once: [programs, rows, dims]."""
        rows = max(16, power(self.tile_rows * self._group)) + CHUNK.value
        shape = self.programs, rows, shapes.padded(head_dim)
        if dtype not in self._scratch:
            self._scratch[dtype] = torch.empty(shape, dtype=dtype, device=self.buffer.device)
        if self._scratch[dtype].shape != shape:
            raise EditError("all layers that are edited must have the same heads")
        return self._scratch[dtype]

    def scores(self, heads: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits of each row's sources and their sums, allocated once: see `score.score_tiles`."""
        if self._scores is None:
            device, shape = self.buffer.device, (self.most_tokens, heads)
            scores = torch.empty((*shape, at.SOURCES.value), dtype=torch.float32, device=device)
            self._scores = scores, torch.empty((*shape, 3), dtype=torch.float32, device=device)
        return self._scores

    def measures(self, heads: int) -> torch.Tensor:
        """What splits of observed rows leave for their merge, allocated once: see `observe.measure_rows`."""
        if self._measures is None:
            shape = self.capacity, heads, at.MEASURES.value
            self._measures = torch.empty(shape, dtype=torch.float32, device=self.buffer.device)
        return self._measures

    def reserve(self, head_dim: int, dtype: torch.dtype, *, observed: bool = False) -> None:
        """Allocate now what `attend` needs, or `observe` of observed rows, and not in the first launch:
        whoever profiles memory between then counts it."""
        heads = self.table.table.local_query_heads
        self.scratch(head_dim, dtype)
        if observed:
            self.measures(heads)
        else:
            self.scores(heads)
            self.partial(heads, head_dim)

    def fill(self, plan: Plan | None) -> None:
        """Put the step's units on the device, in one copy on the current stream; None: there are none."""
        runs = plan.runs() if plan is not None else np.zeros((0, 6), np.int32)
        self._cut_and_load(runs)
        self.transfers = self.table.has_transfers(runs[:, SLOT])

    def _cut_and_load(self, runs: NDArray[np.int32]) -> None:
        """Prompt rows in tiles, generated ones each by itself."""
        end = runs[:, FIRST_POSITION] + runs[:, ROWS]
        prompt = self.table.table.prompt_length[runs[:, SLOT]]
        tiles = _cut(runs, runs[:, FIRST_POSITION], np.minimum(end, prompt))
        rows = _cut(runs, np.maximum(runs[:, FIRST_POSITION], prompt), end)
        self._load(tiles_of(tiles, self.tile_rows), tiles_of(rows, 1))

    def _load(self, tiles: NDArray[np.int32], rows: NDArray[np.int32]) -> None:
        rows, splits, waves = splits_of(rows, self.capacity)
        if int(tiles[:, 2].sum()) + len(rows) > self.most_tokens:
            raise EditError(f"a step has more than the {self.most_tokens} tokens that it may have")
        units = np.concatenate([tiles, rows])
        self.tiles, self.waves, self.rows = len(tiles), len(waves), len(rows)
        self.splits = len(splits)
        self.reach = (0, 0, 0)
        if len(units):
            reach = units[:, 1] + units[:, 2], units[:, 4] + 1, units[:, 3] + units[:, 2]
            self.reach = tuple(int(values.max()) for values in reach)  # type: ignore[assignment]
        self._put(len(tiles), units, splits, waves)

    def fill_observed(self, plan: Plan, rows: NDArray[np.integer]) -> None:
        """Put the rows that are observed on the device, whether or not they are edited, for `observe`.

        rows: integers [slots, 2]: the first row and the end of what is observed of each slot.
        """
        runs = plan.runs(inactive=True)
        first, end = runs[:, FIRST_POSITION], runs[:, FIRST_POSITION] + runs[:, ROWS]
        wanted = rows[runs[:, SLOT]]
        self._cut_and_load(
            _cut(runs, np.maximum(first, wanted[:, 0]), np.minimum(end, wanted[:, 1]))
        )

    def _put(
        self,
        tiles: int,
        units: NDArray[np.int32],
        splits: NDArray[np.int32],
        waves: Sequence[tuple[int, int, int, int]],
    ) -> None:
        rows_at = self._units_at + tiles * at.UNIT_WORDS.value
        splits_at = self._units_at + units.size
        words = splits_at + len(splits)
        staging = torch.zeros(words, dtype=torch.int32, pin_memory=self.table.pinned)
        host = staging.numpy()
        host[: at.WAVES.value] = tiles, self._units_at, rows_at, splits_at, 0, 0, 0, 0
        flat = [number for wave in waves for number in wave]
        host[at.WAVES.value : at.WAVES.value + len(flat)] = flat
        host[self._units_at : splits_at] = units.ravel()
        host[splits_at:] = splits
        # The caching allocator gives pinned memory out again when the copy from it is done.
        self.buffer[:words].copy_(staging, non_blocking=True)


def _cut(
    runs: NDArray[np.int32], first: NDArray[np.int32], end: NDArray[np.int32]
) -> NDArray[np.int32]:
    """The parts of `runs` at positions [first, end); those without any are left out."""
    runs = runs.copy()
    runs[:, FIRST_TOKEN] += first - runs[:, FIRST_POSITION]
    runs[:, FIRST_POSITION] = first
    runs[:, ROWS] = end - first
    return runs[runs[:, ROWS] > 0]


def tiles_of(runs: NDArray[np.int32], tile_rows: int) -> NDArray[np.int32]:
    """int32 [units, UNIT_WORDS]: runs [n, 6] cut at absolute multiples of `tile_rows`, the longest
    work first."""
    first, end = runs[:, FIRST_POSITION], runs[:, FIRST_POSITION] + runs[:, ROWS]
    tile = first // tile_rows
    count = (end - 1) // tile_rows - tile + 1 if len(runs) else first
    run = np.repeat(np.arange(len(runs)), count)
    offset = np.arange(len(run)) - np.repeat(np.cumsum(count) - count, count)
    start = (tile[run] + offset) * tile_rows
    position = np.maximum(start, first[run])
    units = np.zeros((len(run), at.UNIT_WORDS.value), np.int32)
    units[:, 0] = runs[run, SLOT]
    units[:, 1] = runs[run, FIRST_TOKEN] + position - first[run]
    units[:, 2] = np.minimum(start + tile_rows, end[run]) - position
    units[:, 3] = position
    units[:, 4] = runs[run, BLOCK_TABLE_ROW]
    units[:, 5] = runs[run, PHASE]
    return units[np.argsort(-position, kind="stable")]


def splits_of(
    rows: NDArray[np.int32], capacity: int
) -> tuple[NDArray[np.int32], NDArray[np.int32], list[tuple[int, int, int, int]]]:
    """Generated rows with their splits, the splits (row * SPLITS + split), and the waves.

    A split has LEAST_SPLIT keys times a power of two, such that the row has at most SPLITS of them.
    """
    most, least = at.SPLITS.value, at.LEAST_SPLIT.value
    keys = rows[:, 3].astype(np.int64) + 1
    shortest = np.maximum(-(-keys // (most * least)), 1)
    length = least << np.ceil(np.log2(shortest)).astype(np.int64)
    count = -(-keys // length)
    before = np.concatenate([[0], np.cumsum(count)])
    rows[:, 7] = length
    waves, first = [], 0
    while first < len(rows):
        end = int(np.searchsorted(before, before[first] + capacity, side="right")) - 1
        rows[first:end, 6] = before[first:end] - before[first]
        waves.append((int(before[first]), int(before[end] - before[first]), first, end - first))
        first = end
    row = np.repeat(np.arange(len(rows)), count)
    splits = row * most + np.arange(len(row)) - before[row]
    return rows, splits.astype(np.int32), waves


def power(number: int) -> int:
    """number rounded up to a power of two."""
    return 1 << (number - 1).bit_length()
