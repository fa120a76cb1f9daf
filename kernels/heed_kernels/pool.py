"""Rows of a fixed array, shared by everyone who wants the same content, and counted."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from heed_kernels.errors import EditError


class Pool:
    """A fixed number of rows that are taken by content and given back.

    rows: [capacity, width]; its address never changes. The first rows are `fixed`: given at
    construction and never released.
    changed: rows written since a mirror last looked; None where nobody mirrors them.
    """

    def __init__(self, name: str, capacity: int, fixed: NDArray[Any]) -> None:
        self.name = name
        self.rows = np.zeros((capacity, fixed.shape[1]), fixed.dtype)
        self.rows[: len(fixed)] = fixed
        self._fixed = len(fixed)
        self._free = list(range(capacity - 1, self._fixed - 1, -1))
        self._index = {row.tobytes(): index for index, row in enumerate(fixed)}
        self._users: dict[int, int] = {}
        self.changed: set[int] | None = None

    @property
    def in_use(self) -> int:
        """Rows with at least one user; the fixed ones do not count."""
        return len(self._users)

    def take(self, row: NDArray[Any]) -> int:
        """Index of a row with this content, with one more user. Raises `EditError` when full."""
        key = row.tobytes()
        index = self._index.get(key)
        if index is None:
            if not self._free:
                raise EditError(
                    f"the edit table has no room for another of its {len(self.rows)} {self.name}"
                )
            index = self._free.pop()
            self.rows[index] = row
            self._index[key] = index
            if self.changed is not None:
                self.changed.add(index)
        if index >= self._fixed:
            self._users[index] = self._users.get(index, 0) + 1
        return index

    def give_back(self, index: int) -> None:
        """One user fewer; the row is free when nobody is left."""
        if index < self._fixed:
            return
        self._users[index] -= 1
        if not self._users[index]:
            del self._users[index]
            del self._index[self.rows[index].tobytes()]
            self._free.append(index)
