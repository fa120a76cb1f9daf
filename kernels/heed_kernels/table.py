"""The edit table: every edited request's edits as arrays, one line per request slot.

A request is compiled once when it enters and costs nothing per step after that. All arrays are
allocated once and keep their addresses. Units: rows and keys are absolute positions.

    phase_start   int32 [slots, PHASES]           first row of each phase; a row's phase is the last
                                                  whose start is <= it; unused ones are OPEN
    range_count   int32 [slots]                   elementary key ranges in use, at least 1
    range_start   int32 [slots, RANGES]           first key; a range ends where the next one starts
    range_group   int32 [slots, RANGES]           group of its keys; group 0 is without edit
    visible       int32 [slots, 3]                sinks, window (0: nothing is hidden), rolling
    trailing      int32 [slots, 2]                first, window (0: none)
    line          int32 [slots, layers, PHASES]   into `lines`; 0 is the identity
    lines.rows    int32 [line_capacity, FIELDS]   into `vectors`: gain, trailing bias, then for each
                                                  group g >= 1 at 2 + 3 (g - 1): scale, absolute, bias
    vectors.rows  float32 [vector_capacity, local_query_heads]; 0 is all zeros, 1 all ones
    active        bool [slots, layers, PHASES]    whether rows differ from plain attention, judged by
                                                  the whole model's heads so that all ranks agree

`lines` and `vectors` are shared by all slots: equal content is stored once and counted.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from heed_kernels.compiled import FIELDS, PHASES, RANGES, SCALE, compile_edits
from heed_kernels.edits import OPEN, Edit
from heed_kernels.errors import EditError
from heed_kernels.plan import Plan, make_plan
from heed_kernels.pool import Pool

VECTORS = 1024
"""Different per-head vectors that one request may need, at most."""

CONSTANT_VECTORS = 2
"""Rows of the vector pool that hold zeros and ones."""


class EditTable:
    """Edits of up to `slots` requests for one model, or for one tensor-parallel rank of it.

    layers, query_heads, kv_heads: of the whole model. This rank has the query heads
    [head_start, head_start + local_query_heads), by default all of them.
    vector_capacity, line_capacity: rows of the two shared pools. By default they hold what `slots`
    requests can need at most, so that a set which fits a table of one slot fits every later table of
    the same model that has a free slot, whoever else is in it, and on every tensor-parallel rank (a
    rank's shares of different vectors may coincide, never the other way round).
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
        vector_capacity: int | None = None,
        line_capacity: int | None = None,
    ) -> None:
        local = query_heads - head_start if local_query_heads is None else local_query_heads
        if query_heads % kv_heads or not 0 <= head_start < head_start + local <= query_heads:
            raise EditError(
                f"heads [{head_start}, {head_start + local}) of {query_heads} query heads and"
                f" {kv_heads} KV heads do not make a rank"
            )
        self.slots, self.layers = slots, layers
        self.query_heads, self.kv_heads = query_heads, kv_heads
        self.head_start, self.local_query_heads = head_start, local
        self.phase_start = np.full((slots, PHASES), OPEN, np.int32)
        self.range_count = np.ones(slots, np.int32)
        self.range_start = np.zeros((slots, RANGES), np.int32)
        self.range_group = np.zeros((slots, RANGES), np.int32)
        self.visible = np.zeros((slots, 3), np.int32)
        self.trailing = np.zeros((slots, 2), np.int32)
        self.line = np.zeros((slots, layers, PHASES), np.int32)
        self.active = np.zeros((slots, layers, PHASES), bool)
        if vector_capacity is None:
            vector_capacity = CONSTANT_VECTORS + slots * VECTORS
        if line_capacity is None:
            line_capacity = 1 + slots * layers * PHASES
        constants = np.zeros((CONSTANT_VECTORS, local), np.float32)
        constants[1] = 1
        self.vectors = Pool("per-head vectors", vector_capacity, constants)
        identity = np.zeros((1, FIELDS), np.int32)
        identity[0, 0] = 1
        identity[0, 2 + SCALE :: 3] = 1
        self.lines = Pool("lines", line_capacity, identity)
        self.occupied = np.zeros(slots, bool)
        self._free = list(range(slots - 1, -1, -1))
        self._taken: dict[int, tuple[list[int], list[int]]] = {}

    @property
    def rows_in_use(self) -> int:
        """Number of occupied slots."""
        return len(self._taken)

    def insert(self, edits: Sequence[Edit], slot: int | None = None) -> int:
        """Compile `edits` into `slot`, or into any free one. Returns the slot.

        Raises `EditError` for edits that are malformed, do not fit the model or exceed a cap, for an
        occupied slot and for a full table; the table is then as it was.
        """
        compiled = compile_edits(edits, self.layers, self.query_heads)
        if slot is None:
            if not self._free:
                raise EditError(f"all {self.slots} slots of the edit table are occupied")
            slot = self._free[-1]
        elif not 0 <= slot < self.slots or self.occupied[slot]:
            raise EditError(f"slot {slot} of the edit table is occupied or does not exist")

        phases, ranges = len(compiled.phase_start), len(compiled.range_start)
        self.line[slot, :, :phases] = self._take(slot, compiled.vectors)
        self._free.remove(slot)
        self.occupied[slot] = True
        self.phase_start[slot, :phases] = compiled.phase_start
        self.range_count[slot] = ranges
        self.range_start[slot, :ranges] = compiled.range_start
        self.range_group[slot, :ranges] = compiled.range_group
        self.visible[slot] = compiled.visible
        self.trailing[slot] = compiled.trailing
        self.active[slot, :, :phases] = compiled.active
        return slot

    def release(self, slot: int) -> None:
        """Forget the edits of `slot`. Raises `EditError` when it is not occupied."""
        if slot not in self._taken:
            raise EditError(f"slot {slot} of the edit table is not occupied")
        self._give_back(slot)
        self._free.append(slot)
        self.occupied[slot] = False
        self.phase_start[slot] = OPEN
        self.range_start[slot, : self.range_count[slot]] = 0
        self.range_group[slot, : self.range_count[slot]] = 0
        self.range_count[slot] = 1
        self.visible[slot] = 0
        self.trailing[slot] = 0
        self.line[slot] = 0
        self.active[slot] = False

    def bytes_of(self, slot: int) -> int:
        """Bytes that `slot` uses, shared pool rows counted in full for each slot that uses them."""
        if slot not in self._taken:
            return 0
        vectors, lines = self._taken[slot]
        fixed = (self.phase_start, self.range_count, self.visible, self.trailing)
        total: int = (
            sum(array[slot].nbytes for array in (*fixed, self.line, self.active))
            + 2 * 4 * int(self.range_count[slot])
            + len(set(vectors)) * self.vectors.rows[0].nbytes
            + len(set(lines)) * self.lines.rows[0].nbytes
        )
        return total

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
        return make_plan(self, slots, starts, lengths, positions, rows)

    def _take(self, slot: int, vectors: NDArray[np.float32]) -> NDArray[np.int32]:
        """Lines int32 [layers, phases] for vectors [layers, phases, fields, query_heads]."""
        local = np.ascontiguousarray(
            vectors[..., self.head_start : self.head_start + self.local_query_heads]
        )
        layers, phases, fields, heads = local.shape
        taken: tuple[list[int], list[int]] = ([], [])
        self._taken[slot] = taken
        # Whole lines repeat far more often than not: most layers of a request are alike.
        known: dict[bytes, int] = {}
        result = np.zeros(layers * phases, np.int32)
        row = np.empty(FIELDS, np.int32)
        try:
            for index, line in enumerate(local.reshape(layers * phases, fields, heads)):
                key = line.tobytes()
                if key not in known:
                    row[:] = self.lines.rows[0]
                    for field in range(fields):
                        row[field] = self.vectors.take(line[field])
                        taken[0].append(int(row[field]))
                    known[key] = self.lines.take(row)
                    taken[1].append(known[key])
                result[index] = known[key]
        except EditError:
            self._give_back(slot)
            raise
        return result.reshape(layers, phases)

    def _give_back(self, slot: int) -> None:
        vectors, lines = self._taken.pop(slot)
        for index in lines:
            self.lines.give_back(index)
        for index in vectors:
            self.vectors.give_back(index)
