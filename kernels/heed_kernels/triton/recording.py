"""What recordings take of a device: column sums that its kernels add to, and the keys that it has found."""

from collections.abc import Sequence

from heed_kernels.device import Found
from heed_kernels.inspection import Inspection
from heed_kernels.triton.columns import ColumnAdder, ColumnWork, DeviceSumming, Room
from heed_kernels.triton.device_table import DeviceTable


class DeviceRecordings(ColumnAdder):
    """What all recordings of a worker share on the device, see `recording.RecordingDevice`."""

    def __init__(self, table: DeviceTable, work: ColumnWork, room: Room) -> None:
        super().__init__(table, work)
        self._room, self.device = room, table.device

    def enter(self, slot: int, inspection: Inspection) -> None:
        """A request has got its slot. Raises `EditError` where there is no room for what it measures."""
        self._room.hold(self._owner(slot), 8 * inspection.values)

    def leave(self, slot: int) -> None:
        """Nothing of the slot's request is held any more."""
        self._room.leave(self._owner(slot))

    def summing(self, slot: int, heads: Sequence[int]) -> DeviceSumming:
        """See `recording.RecordingDevice`."""
        table = self._table.table
        wanted = [head - table.head_start for head in heads]
        return DeviceSumming(table.local_query_heads, self.device, wanted)

    def found(self, slot: int, layer: int) -> Found:
        """See `recording.RecordingDevice`."""
        lines = self._table.found[slot][layer].tolist()
        return [line[1 : 1 + line[0]] for line in lines]

    @staticmethod
    def _owner(slot: int) -> tuple[str, int]:
        return "recording", slot
