"""The edit table: every edited request's edits as arrays, one line per request slot.

A request is compiled once when it enters and costs nothing per step after that. All arrays are
allocated once and keep their addresses. Units: rows and keys are absolute positions.

    phase_start     int32 [slots, PHASES]           first row of each phase; a row's phase is the last
                                                    whose start is <= it; unused ones are OPEN
    range_count     int32 [slots]                   elementary key ranges in use, at least 1
    range_start     int32 [slots, RANGES]           first key; a range ends where the next one starts
    range_group     int32 [slots, RANGES]           group of its keys; group 0 is without edit
    range_shift     int32 [slots, RANGES]           positions by which a query is turned back for them
    range_visible   uint8 [slots, RANGES]           bit p: rows of phase p see the range's keys
    range_class     uint8 [slots, RANGES]           bits DESTINATION, NUMERATOR, DENOMINATOR of the
                                                    transfer; PROBE << i of the observed key set i
    visible         int32 [slots, 3]                sinks, window (0: nothing is hidden), rolling
    trailing        int32 [slots, 2]                first, window (0: none)
    source_count    int32 [slots]                   source keys of the transfer; FOUND: the found ones
    source_keys     int32 [slots, SOURCES]          ascending
    source_range    int32 [slots, SOURCES]          the range that each lies in
    prompt_length   int32 [slots]                   P; later rows are generated ones
    line            int32 [slots, layers, PHASES]   into `lines`; 0 is the identity
    lines.rows      int32 [line_capacity, FIELDS]   into `vectors`: gain, trailing bias, fraction,
                                                    ratio and least of the transfer, then for each
                                                    group g >= 1 at GROUP_FIELDS + 3 (g - 1): scale,
                                                    absolute, bias; the field MIX into `mix_heads`
    vectors.rows    float32 [vector_capacity, local_query_heads]; 0 is all zeros, 1 all ones
    mix_heads.rows  int32 [line_capacity, local_query_heads], into `mixes`; 0 is all zeros
    mixes.rows      float32 [mix_capacity, head_dim]; 0 is all zeros
    evicting        bool [slots]                    whether keys are evicted once the prompt is computed
    active          bool [slots, layers, PHASES]    whether rows differ from plain attention, judged by
                                                    the whole model's heads so that all ranks agree

`lines`, `vectors`, `mix_heads` and `mixes` are shared by all slots: equal content is stored once and
counted. These are the host's; the next ones are written while a forward pass runs, and reset when a
slot is taken:

    found_count     int32 [slots, layers, local_query_heads]            keys found
    found_keys      int32 [slots, layers, local_query_heads, SOURCES]   ascending
    found_range     int32 [slots, layers, local_query_heads, SOURCES]   the range that each lies in
    kept            int32 [slots, layers, local_kv_heads]   keys that an eviction left, from place 0 on
    evicted_end     int32 [slots]                           tokens computed when it took place, else 0:
                                                            rows read keys k < kept and k >= evicted_end
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from heed_kernels.compiled import (
    FIELDS,
    FOUND,
    GROUP_FIELDS,
    MIX,
    PHASES,
    SCALE,
    Compiled,
    compile_edits,
)
from heed_kernels.edits import OPEN, SOURCES, Edit, HeadChoice, HeadSet, Observation
from heed_kernels.errors import EditError
from heed_kernels.plan import Plan, make_plan
from heed_kernels.pool import Pool
from heed_kernels.ranges import RANGES

VECTORS = 1024
"""Different per-head vectors that one request may need, at most."""

MIXES = 1024
"""Different mixed-in vectors that one request may need, at most."""

_PER_SLOT = (
    "phase_start", "range_count", "range_start", "range_group", "range_shift", "range_visible",
    "range_class", "visible", "trailing", "source_count", "source_keys", "source_range",
    "prompt_length", "evicting", "line", "active",
)  # fmt: skip
"""Arrays with a line per slot that the host writes."""


@dataclass
class Taken:
    """What a slot holds: its rows of the shared pools, and what is observed for it."""

    vectors: list[int] = field(default_factory=list)
    lines: list[int] = field(default_factory=list)
    mix_heads: list[int] = field(default_factory=list)
    mixes: list[int] = field(default_factory=list)
    observations: tuple[Observation, ...] = ()


CONSTANT_VECTORS = 2
"""Rows of the vector pool that hold zeros and ones."""


class EditTable:
    """Edits of up to `slots` requests for one model, or for one tensor-parallel rank of it.

    layers, query_heads, kv_heads: of the whole model. This rank has the query heads
    [head_start, head_start + local_query_heads), by default all of them.
    head_dim: needed by `HeadMix` alone.
    vector_capacity, line_capacity, mix_capacity: rows of the shared pools. By default they hold what `slots`
    requests can need at most, so that a set which fits a table of one slot fits every later table of
    the same model that has a free slot, whoever else is in it, and on every tensor-parallel rank (a
    rank's shares of different vectors may coincide, never the other way round).
    multiplies: whether kernels multiply generated rows by what a `HeadChoice` that `lasts` has chosen.
    """

    def __init__(
        self,
        slots: int,
        layers: int,
        query_heads: int,
        kv_heads: int,
        *,
        head_start: int = 0,
        local_query_heads: int | None = None,
        head_dim: int | None = None,
        vector_capacity: int | None = None,
        line_capacity: int | None = None,
        mix_capacity: int | None = None,
        multiplies: bool = False,
    ) -> None:
        local = query_heads - head_start if local_query_heads is None else local_query_heads
        if query_heads % kv_heads or not 0 <= head_start < head_start + local <= query_heads:
            raise EditError(
                f"heads [{head_start}, {head_start + local}) of {query_heads} query heads and"
                f" {kv_heads} KV heads do not make a rank"
            )
        self.slots, self.layers, self._multiplies = slots, layers, multiplies
        self.query_heads, self.kv_heads = query_heads, kv_heads
        self.head_start, self.local_query_heads = head_start, local
        group_heads = query_heads // kv_heads
        self.kv_head_start = head_start // group_heads
        self.local_kv_heads = -(-(head_start + local) // group_heads) - self.kv_head_start
        self.head_dim = head_dim
        self.phase_start = np.full((slots, PHASES), OPEN, np.int32)
        self.range_count = np.ones(slots, np.int32)
        self.range_start = np.zeros((slots, RANGES), np.int32)
        self.range_group = np.zeros((slots, RANGES), np.int32)
        self.range_shift = np.zeros((slots, RANGES), np.int32)
        self.range_visible = np.zeros((slots, RANGES), np.uint8)
        self.range_class = np.zeros((slots, RANGES), np.uint8)
        self.visible = np.zeros((slots, 3), np.int32)
        self.trailing = np.zeros((slots, 2), np.int32)
        self.source_count = np.zeros(slots, np.int32)
        self.source_keys = np.zeros((slots, SOURCES), np.int32)
        self.source_range = np.zeros((slots, SOURCES), np.int32)
        self.prompt_length = np.zeros(slots, np.int32)
        self.evicting = np.zeros(slots, bool)
        self.line = np.zeros((slots, layers, PHASES), np.int32)
        self.active = np.zeros((slots, layers, PHASES), bool)
        self.found_count = np.zeros((slots, layers, local), np.int32)
        self.found_keys = np.zeros((slots, layers, local, SOURCES), np.int32)
        self.found_range = np.zeros((slots, layers, local, SOURCES), np.int32)
        self.kept = np.zeros((slots, layers, self.local_kv_heads), np.int32)
        self.evicted_end = np.zeros(slots, np.int32)
        if vector_capacity is None:
            vector_capacity = CONSTANT_VECTORS + slots * VECTORS
        if line_capacity is None:
            line_capacity = 1 + slots * layers * PHASES
        if mix_capacity is None:
            mix_capacity = 1 + slots * MIXES if head_dim else 1
        constants = np.zeros((CONSTANT_VECTORS, local), np.float32)
        constants[1] = 1
        self.vectors = Pool("per-head vectors", vector_capacity, constants)
        identity = np.zeros((1, FIELDS), np.int32)
        identity[0, 0] = 1
        identity[0, GROUP_FIELDS + SCALE :: 3] = 1
        self.lines = Pool("lines", line_capacity, identity)
        self.mix_heads = Pool("lines of vectors", line_capacity, np.zeros((1, local), np.int32))
        self.mixes = Pool("vectors", mix_capacity, np.zeros((1, head_dim or 1), np.float32))
        self.occupied = np.zeros(slots, bool)
        self.changed: set[int] | None = None
        self._free = list(range(slots - 1, -1, -1))
        self._taken: dict[int, Taken] = {}

    def follow(self) -> None:
        """From now on note in `changed`, here and in the pools, what a mirror has to copy: the slots that
        were taken, and the rows that were written. The mirror empties them."""
        self.changed = set()
        for pool in (self.lines, self.vectors, self.mix_heads, self.mixes):
            pool.changed = set()

    @property
    def rows_in_use(self) -> int:
        """Number of occupied slots."""
        return len(self._taken)

    def insert(self, edits: Sequence[Edit], slot: int | None = None, prompt_length: int = 0) -> int:
        """Compile `edits` into `slot`, or into any free one. Returns the slot.

        Raises `EditError` for edits that are malformed, do not fit the model or exceed a cap, for an
        occupied slot and for a full table; the table is then as it was.
        """
        multiplied = [
            edit
            for edit in (edits if self._multiplies else ())
            if isinstance(edit, HeadChoice) and edit.lasts(prompt_length)
        ]
        compiled = compile_edits(edits, self.layers, self.query_heads, self.head_dim, multiplied)
        if slot is None:
            if not self._free:
                raise EditError(f"all {self.slots} slots of the edit table are occupied")
            slot = self._free[-1]
        elif not 0 <= slot < self.slots or self.occupied[slot]:
            raise EditError(f"slot {slot} of the edit table is occupied or does not exist")

        taken = Taken(observations=compiled.observations)
        phases, ranges = len(compiled.phase_start), compiled.ranges
        count = len(ranges.start)
        try:
            self.line[slot, :, :phases] = self._take(taken, compiled)
        except EditError:
            self._give_back(taken)
            raise
        self._taken[slot] = taken
        self._free.remove(slot)
        self.occupied[slot] = True
        if self.changed is not None:
            self.changed.add(slot)
        self.phase_start[slot, :phases] = compiled.phase_start
        self.range_count[slot] = count
        self.range_start[slot, :count] = ranges.start
        self.range_group[slot, :count] = ranges.group
        self.range_shift[slot, :count] = ranges.shift
        self.range_visible[slot, :count] = ranges.visible
        self.range_class[slot, :count] = ranges.kind
        self.visible[slot] = compiled.visible
        self.trailing[slot] = compiled.trailing
        self.prompt_length[slot] = prompt_length
        self.active[slot, :, :phases] = compiled.active
        self.evicting[slot] = compiled.evicts
        self.kept[slot] = 0
        self.evicted_end[slot] = 0
        if compiled.sources is None:
            self.source_count[slot] = FOUND
            self.found_count[slot] = 0
        else:
            sources = len(compiled.sources)
            self.source_count[slot] = sources
            self.source_keys[slot, :sources] = compiled.sources
            self.source_range[slot, :sources] = (
                np.searchsorted(ranges.start, compiled.sources, side="right") - 1
            )
        return slot

    def release(self, slot: int) -> None:
        """Forget the edits of `slot`. Raises `EditError` when it is not occupied."""
        if slot not in self._taken:
            raise EditError(f"slot {slot} of the edit table is not occupied")
        self._give_back(self._taken.pop(slot))
        self._free.append(slot)
        self.occupied[slot] = False
        count = self.range_count[slot]
        for name in ("range_start", "range_group", "range_shift", "range_visible", "range_class"):
            getattr(self, name)[slot, :count] = 0
        self.phase_start[slot] = OPEN
        self.range_count[slot] = 1
        for name in (
            "visible", "trailing", "source_count", "source_keys", "source_range", "prompt_length",
            "line", "active", "evicting", "kept", "evicted_end",
        ):  # fmt: skip
            getattr(self, name)[slot] = 0

    def observations(self, slot: int) -> tuple[Observation, ...]:
        """What is observed for the request in `slot`, in the order in which it was asked for."""
        return self._taken[slot].observations

    def own_heads(self, on: HeadSet, layer: int) -> NDArray[np.intp]:
        """This rank's query heads that `on` has in `layer`, by their local numbers, ascending."""
        own = on.masks[layer] >> self.head_start
        return np.flatnonzero([own >> head & 1 for head in range(self.local_query_heads)])

    def bytes_of(self, slot: int) -> int:
        """Bytes that `slot` uses, shared pool rows counted in full for each slot that uses them."""
        if slot not in self._taken:
            return 0
        taken, count = self._taken[slot], int(self.range_count[slot])
        total = 0
        for name in _PER_SLOT:
            line = getattr(self, name)[slot]
            in_use = count if name.startswith("range_") and name != "range_count" else None
            total += line[:in_use].nbytes if in_use else line.nbytes
        if self.source_count[slot] == FOUND:
            found = (self.found_count, self.found_keys, self.found_range)
            total += sum(int(array[slot].nbytes) for array in found)
        for pool, indices in self._pools(taken):
            total += len(set(indices)) * pool.rows[0].nbytes
        return int(total)

    def plan(
        self,
        slots: NDArray[np.integer],
        starts: NDArray[np.integer],
        lengths: NDArray[np.integer],
        positions: NDArray[np.integer],
        rows: NDArray[np.integer],
    ) -> Plan:
        """The work of one step over the edited requests of the batch.

        All arguments are integers [requests]: slots; starts: index of the request's first query
        token in the flat batch; lengths: its number of query tokens, at least 1; positions: absolute
        position of the first one; rows: its row of the block table. Raises `EditError` for a slot
        that is not occupied and for negative numbers.
        """
        group_heads = self.query_heads // self.kv_heads
        requests = (slots, starts, lengths, positions, rows)
        return make_plan(self.phase_start, self.occupied, self.active, group_heads, requests)

    def _pools(self, taken: Taken) -> tuple[tuple[Pool, list[int]], ...]:
        return (
            (self.lines, taken.lines),
            (self.vectors, taken.vectors),
            (self.mix_heads, taken.mix_heads),
            (self.mixes, taken.mixes),
        )

    def _take(self, taken: Taken, compiled: Compiled) -> NDArray[np.int32]:
        """Lines int32 [layers, phases]; what was taken of the pools is noted in `taken`."""
        own = slice(self.head_start, self.head_start + self.local_query_heads)
        vectors = np.ascontiguousarray(compiled.vectors[..., own])
        mix = np.ascontiguousarray(compiled.mix[..., own])
        layers, phases, fields, heads = vectors.shape
        # Whole lines repeat far more often than not: most layers of a request are alike.
        known: dict[bytes, int] = {}
        result = np.zeros(layers * phases, np.int32)
        row = np.empty(FIELDS, np.int32)
        lines = zip(
            vectors.reshape(layers * phases, fields, heads), mix.reshape(-1, heads), strict=True
        )
        for index, (line, mixed) in enumerate(lines):
            key = line.tobytes() + mixed.tobytes()
            if key not in known:
                row[:] = self.lines.rows[0]
                for at in range(fields):
                    if at != MIX:
                        row[at] = _noted(self.vectors, line[at], taken.vectors)
                row[MIX] = self._take_mix(taken, mixed, compiled.mixes) if mixed.any() else 0
                known[key] = _noted(self.lines, row, taken.lines)
            result[index] = known[key]
        return result.reshape(layers, phases)

    def _take_mix(self, taken: Taken, mixed: NDArray[np.int32], mixes: NDArray[np.float32]) -> int:
        heads = [_noted(self.mixes, mixes[index], taken.mixes) for index in mixed]
        return _noted(self.mix_heads, np.array(heads, np.int32), taken.mix_heads)

    def _give_back(self, taken: Taken) -> None:
        for pool, indices in self._pools(taken):
            for index in indices:
                pool.give_back(index)


def _noted(pool: Pool, row: NDArray[Any], taken: list[int]) -> int:
    index = pool.take(row)
    taken.append(index)
    return index
