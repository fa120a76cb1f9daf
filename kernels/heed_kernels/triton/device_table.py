"""The edit table on a device: tensors at fixed addresses that follow the host's table.

A CUDA graph that was captured once therefore meets whatever edits the step at hand has.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from heed_kernels.compiled import FOUND, PHASES
from heed_kernels.edits import SOURCES
from heed_kernels.errors import EditError
from heed_kernels.pool import Pool
from heed_kernels.ranges import DESTINATION, RANGES
from heed_kernels.rope import Rope
from heed_kernels.table import EditTable
from heed_kernels.triton import layout as at


class DeviceTable:
    """Mirrors `table`, of which it is the only mirror.

    records: int32 [slots, words], see `layout`; lines, vectors, mix_heads, mixes: as in the table;
    found: by slot int32 [layers, local_query_heads, FOUND_WORDS], written during forward passes: memory of
    the requests that have found keys, from `reserve` on; found_at: int64 [slots], where it lies, 0 for none.
    factors: float32 [slots, layers, local_query_heads], by which outputs of generated rows are multiplied;
    written by `multiply`, and 1 when a slot is taken.
    """

    def __init__(self, table: EditTable, device: torch.device | str) -> None:
        self.table, self.device = table, torch.device(device)
        self.words = at.LINE.value + table.layers * (PHASES + table.local_kv_heads)
        self.pinned = self.device.type == "cuda"
        self.records = self._zeros((table.slots, self.words))
        self.found: dict[int, torch.Tensor] = {}
        self._reserved: set[int] = set()
        """Slots whose room was made since they were taken."""
        self.found_at = torch.zeros(table.slots, dtype=torch.int64, device=self.device)
        by_head = table.slots, table.layers, table.local_query_heads
        self.factors = torch.ones(by_head, dtype=torch.float32, device=self.device)
        self.lines, self.vectors = self._whole(table.lines), self._whole(table.vectors)
        self.mix_heads, self.mixes = self._whole(table.mix_heads), self._whole(table.mixes)
        self._transfers = np.zeros(table.slots, bool)
        self._rotations: dict[int, tuple[Rope, torch.Tensor]] = {}
        table.follow()
        table.changed = {int(slot) for slot in np.flatnonzero(table.occupied)}

    def sync(self) -> None:
        """Bring the device up to date, on the current stream. Costs nothing where nothing changed.

        Raises `EditError`, with the device as it was, where a table's content cannot be had.
        """
        table = self.table
        if table.changed:
            slots = np.fromiter(sorted(table.changed), np.int64)
            records = records_of(table, slots)
            self._put(self.records, slots, records)
            self._transfers[slots] = records[:, at.TRANSFER.value] != 0
            taken = self.sent(slots)
            self.factors.index_fill_(0, taken, 1)
            self.found_at.index_copy_(0, taken, self.sent(self._found_at(slots)))
            table.changed.clear()
        pairs = (
            (table.lines, self.lines), (table.vectors, self.vectors),
            (table.mix_heads, self.mix_heads), (table.mixes, self.mixes),
        )  # fmt: skip
        for pool, tensor in pairs:
            if pool.changed:
                rows = np.fromiter(sorted(pool.changed), np.int64)
                self._put(tensor, rows, pool.rows[rows])
                pool.changed.clear()

    def evicted(self, slot: int) -> None:
        """An eviction has moved keys of a slot, and the table says which places rows read from now on.

        Asks for no memory on the device: there may be none, and the keys have moved."""
        record = torch.from_numpy(records_of(self.table, np.array([slot]))[0])
        if self.pinned:
            record = record.pin_memory()
        self.records[slot].copy_(record, non_blocking=True)

    def reserve(self, slot: int) -> None:
        """Room for the found keys of the request that has got a slot. Raises `EditError` where there is none."""
        shape = self.table.layers, self.table.local_query_heads, at.FOUND_WORDS.value
        try:
            self.found[slot] = self._zeros(shape)
            self._reserved.add(slot)
        except torch.OutOfMemoryError:
            raise EditError("the device has no memory left for the keys that are found") from None

    def _found_at(self, slots: NDArray[np.int64]) -> NDArray[np.int64]:
        """int64, of slots that were taken. Room of slots that are free now is given back."""
        for slot in {*slots[self.table.source_count[slots] == FOUND].tolist()} - self._reserved:
            self.reserve(slot)
        for slot in {*self.found} - self._reserved:
            if not self.table.occupied[slot] or slot in slots:
                del self.found[slot]
        self._reserved.clear()
        known = [
            self.found[slot].data_ptr() if slot in self.found else 0 for slot in slots.tolist()
        ]
        return np.array(known, np.int64)

    def multiply(self, slot: int, layer: int, factors: torch.Tensor) -> None:
        """Multiply generated rows of a slot by these, [local_query_heads], from the next step on."""
        self.factors[slot, layer].copy_(factors)

    def has_transfers(self, slots: NDArray[np.int32]) -> bool:
        """Whether any of these slots has a transfer, as of the last `sync`."""
        return bool(self._transfers[slots].any())

    def rotation(self, rope: Rope, head_dim: int) -> torch.Tensor:
        """int64 [4, head_dim] per dimension: 2^64 turns per position, its partner, its side; then head_dim.

        Copied to the device when first asked for. See `primitives.turned`.
        """
        known = self._rotations.get(id(rope))
        if known is None:
            rotation = torch.from_numpy(rotation_of(rope, head_dim)).to(self.device)
            known = self._rotations[id(rope)] = rope, rotation
        return known[1]

    def _zeros(self, shape: tuple[int, ...]) -> torch.Tensor:
        return torch.zeros(shape, dtype=torch.int32, device=self.device)

    def _whole(self, pool: Pool) -> torch.Tensor:
        return torch.from_numpy(pool.rows).to(self.device, copy=True)

    def _put(self, tensor: torch.Tensor, rows: NDArray[np.int64], values: NDArray[Any]) -> None:
        tensor.index_copy_(0, self.sent(rows), self.sent(values))

    def sent(self, values: NDArray[Any]) -> torch.Tensor:
        """See `sent`."""
        return sent(values, self.device)


def sent(values: NDArray[Any], device: torch.device) -> torch.Tensor:
    """`values` on a device, without waiting for what that is at."""
    host = torch.from_numpy(np.ascontiguousarray(values))
    if device.type == "cuda":
        # The caching allocator gives pinned memory out again when the copy from it is done.
        host = host.pin_memory()
    return host.to(device, non_blocking=True)


def records_of(table: EditTable, slots: NDArray[np.int64]) -> NDArray[np.int32]:
    """int32 [slots, words]. Raises `EditError` where ranges do not ascend or reach outside."""
    count = table.range_count[slots]
    unused = np.arange(RANGES) >= count[:, None]
    start = table.range_start[slots]
    ascending = (np.diff(start, axis=1) > 0) | unused[:, 1:]
    wrong = ~ascending.all(axis=1) | (start[:, 0] != 0) | (count < 1) | (count > RANGES)
    if wrong.any():
        raise EditError(f"the key ranges of slot {slots[wrong.argmax()]} do not ascend from 0")
    sources = table.source_count[slots]
    keys = table.source_keys[slots]
    idle = np.arange(SOURCES) >= sources[:, None]
    wrong = (sources < FOUND) | (sources > SOURCES) | ((keys < 0) & ~idle).any(axis=1)
    wrong |= ((np.diff(keys, axis=1) <= 0) & ~idle[:, 1:]).any(axis=1)
    if wrong.any():
        raise EditError(f"the source keys of slot {slots[wrong.argmax()]} do not ascend")
    kind = table.range_class[slots].astype(np.int32)
    destination = (kind & DESTINATION) != 0
    kept = table.kept[slots].reshape(len(slots), -1)
    lines = table.line[slots] + np.where(table.active[slots], at.ACTIVE.value, 0)
    of_layers = np.column_stack([lines.reshape(len(slots), -1), kept])
    records = np.zeros((len(slots), at.LINE.value + of_layers.shape[1]), np.int32)
    records[:, at.RANGE_COUNT.value] = count
    records[:, at.SINKS.value : at.ROLLING.value + 1] = table.visible[slots]
    records[:, at.TRAILING_FIRST.value : at.TRAILING_WINDOW.value + 1] = table.trailing[slots]
    records[:, at.SOURCE_COUNT.value] = sources
    whole = (destination | unused).all(axis=1)
    has = (destination & ~unused).any(axis=1)
    records[:, at.TRANSFER.value] = np.where(has, np.where(whole, at.WHOLE.value, at.PART.value), 0)
    records[:, at.SHIFTED.value] = ((table.range_shift[slots] != 0) & ~unused).any(axis=1)
    records[:, at.EVICTED_END.value] = table.evicted_end[slots]
    bits = table.range_group[slots] | table.range_visible[slots].astype(np.int32) << 8
    for offset, values in (
        (at.SOURCE_KEYS, keys),
        (at.SOURCE_RANGE, table.source_range[slots]),
        (at.RANGE_START, start),
        (at.RANGE_BITS, bits | kind << at.CLASS_AT.value),
        (at.RANGE_SHIFT, table.range_shift[slots]),
    ):
        records[:, offset.value : offset.value + values.shape[1]] = values
    records[:, at.LINE.value :] = of_layers
    return records


def rotation_of(rope: Rope, head_dim: int) -> NDArray[np.int64]:
    """See `DeviceTable.rotation`."""
    half = len(rope.inv_freq)
    if 2 * half > head_dim:
        raise EditError(f"{2 * half} dimensions rotate, a head has {head_dim}")
    first = np.arange(half) * 2 if rope.interleaved else np.arange(half)
    second = first + (1 if rope.interleaved else half)
    turns = np.asarray(rope.inv_freq, np.longdouble) / (2 * np.longdouble(np.pi))
    # Whole turns do not matter, and a half turn or more is a negative one: so it fits 64 signed bits.
    fraction = np.rint((turns - np.rint(turns)) * 2.0**64)
    fraction = np.clip(fraction, -(2.0**63), np.nextafter(np.longdouble(2.0**63), 0))
    rotation = np.zeros((4, head_dim), np.int64)
    rotation[3, 0] = head_dim
    rotation[0, first] = rotation[0, second] = fraction.astype(np.int64)
    rotation[1] = np.arange(head_dim)
    rotation[1, first], rotation[1, second] = second, first
    rotation[2, first], rotation[2, second] = -1, 1
    return rotation
