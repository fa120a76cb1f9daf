"""Free memory of a worker's C heap goes back to the system.

Tensors and Python objects of many sizes and lifetimes leave holes that glibc keeps: memory in use stays the
same, and the process grows by some MiB in 1,000 requests (docs/operations.md has the figures).
"""

import ctypes
import time

LEAST_SECONDS = 30.0
"""Between two times. Giving back takes some tens of milliseconds, and the next steps fetch pages anew."""


class Heap:
    """The heap of this process, if the C library can give back what lies free inside it: glibc can."""

    def __init__(self) -> None:
        self._trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        self._next = time.monotonic() + LEAST_SECONDS

    def give_back(self) -> bool:
        """Give back what is free, unless that was done a moment ago. To be called when nothing runs."""
        now = time.monotonic()
        if self._trim is None or now < self._next:
            return False
        self._next = now + LEAST_SECONDS
        self._trim(0)
        return True
