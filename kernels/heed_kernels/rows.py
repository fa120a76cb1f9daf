"""Query rows by absolute position, the one thing that all kinds of edits share."""

from dataclasses import dataclass

OPEN = 2**31 - 1
"""End of a range that has no end (positions are int32 in the kernels)."""


@dataclass(frozen=True)
class Rows:
    """Query rows [start, end) by absolute position; `OPEN` as end means every later row."""

    start: int = 0
    end: int = OPEN
