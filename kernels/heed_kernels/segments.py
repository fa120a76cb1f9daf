"""When a request's keys are found (`FindKeys`), by absolute position and never by how it is scheduled."""

from dataclasses import dataclass

from heed_kernels.edits import OPEN, FindKeys

FIRST_SEGMENT = 32
"""The row before which keys are found for the first time where the prompt's rows are not looked ahead at."""


@dataclass(frozen=True)
class Segments:
    """A request's rows cut into segments, each with one set of found keys.

    A segment's keys are found before its first row, from all rows of `FindKeys.rows` before it; the
    first segment has none. Segments begin at rows 32, 64, 128, ... of the prompt, each as long as all
    rows before it, at row `prompt`, and, when `running`, at each row after that.

    ahead: the prompt's rows are one segment, and its keys are found from these very rows before one of
        them is edited. They have to be computed in one step.
    until: rows from here on are not edited, and no segment begins there: what was found last stays.
    """

    prompt: int
    ahead: bool
    running: bool
    until: int = OPEN

    @classmethod
    def of(cls, edit: FindKeys) -> "Segments":
        """The segments of what `edit` finds."""
        return cls(edit.prompt, edit.ahead, edit.rows.end == OPEN, edit.until)

    def begins(self, row: int) -> bool:
        """Whether keys are found before `row` from the rows before it."""
        if row >= self.until:
            return False
        if row >= self.prompt:
            settled = self.ahead and not self.running
            return not settled and (row == self.prompt or self.running)
        return not self.ahead and row >= FIRST_SEGMENT and row & (row - 1) == 0

    def end(self, row: int) -> int:
        """The first row after `row` that no step may compute together with it."""
        if row >= self.prompt:
            return row + 1 if self.running else OPEN
        if self.ahead:
            return self.prompt if self.running else OPEN
        following = min(max(FIRST_SEGMENT, 1 << row.bit_length()), self.prompt)
        return following if following < self.until else OPEN


def threshold_at(edit: FindKeys, rows_seen: int) -> float:
    """What a mean has to exceed when the rows [0, rows_seen) have been seen."""
    if not edit.relative:
        return edit.threshold
    return edit.threshold / max(1, min(edit.rows.end, rows_seen) - edit.rows.start)
