"""When keys are found: which rows share a set of them, whatever the scheduling."""

from dataclasses import replace

import pytest

from heed_kernels.edits import OPEN, FindKeys, HeadSet, KeyRanges, Rows
from heed_kernels.errors import EditError
from heed_kernels.evict import Evict, WindowScore
from heed_kernels.segments import Segments, threshold_at
from heed_kernels.table import EditTable


def starts(segments: Segments, rows: int) -> list[int]:
    return [row for row in range(rows) if segments.begins(row)]


@pytest.mark.parametrize(
    ("segments", "expected"),
    [
        (Segments(100, ahead=True, running=False), []),
        (Segments(100, ahead=True, running=True), [100, 101, 102, 103]),
        (Segments(100, ahead=False, running=False), [32, 64, 100]),
        (Segments(64, ahead=False, running=False), [32, 64]),
        (Segments(7, ahead=False, running=False), [7]),
        (Segments(31, ahead=False, running=True), list(range(31, 104))),
        (Segments(100, ahead=False, running=False, until=100), [32, 64]),
        (Segments(64, ahead=False, running=False, until=64), [32]),
    ],
)
def test_segments_begin_at_fixed_rows(segments: Segments, expected: list[int]) -> None:
    assert starts(segments, 104) == expected


@pytest.mark.parametrize("decode", ["frozen", "running", "off"])
@pytest.mark.parametrize("prompt", [1, 7, 31, 32, 33, 64, 100, 129])
def test_without_looking_ahead_a_step_ends_where_the_next_segment_begins(
    prompt: int, decode: str
) -> None:
    segments = Segments(prompt, False, decode == "running", prompt if decode == "off" else OPEN)
    begun = starts(segments, 400)
    for row in range(300):
        following = next((start for start in begun if start > row), OPEN)
        assert segments.end(row) == following


@pytest.mark.parametrize("running", [False, True])
def test_looking_ahead_a_step_may_hold_the_prompt_and_what_follows_it(running: bool) -> None:
    segments = Segments(50, True, running)
    assert segments.end(0) == (50 if running else OPEN)
    assert segments.end(50) == (51 if running else OPEN)


def test_a_relative_threshold_is_over_the_rows_counted() -> None:
    find = FindKeys(HeadSet((1,)), Rows(10, 50), 4.0, 1, 8, KeyRanges(()), False, 0, relative=True)
    assert [threshold_at(find, seen) for seen in (5, 20, 50, 90)] == [4.0, 0.4, 0.1, 0.1]


def test_a_search_in_segments_stands_beside_no_rows_that_are_scored_together() -> None:
    """The segment of row 128 would end inside the last 16 of 140 rows."""
    search = FindKeys(HeadSet((1, 1)), Rows(0, 140), 0.1, 1, 8, KeyRanges(()), False, 0, prompt=140)
    for together in (1, 16):
        window = Evict(
            WindowScore(together), None, (60, 60), 60, 0, together, False, together, False,
            Rows(140, OPEN), source=1,
        )  # fmt: skip
        EditTable(1, 2, 2, 2).insert([replace(search, ahead=True), window], None, 140)
        if together == 1:
            EditTable(1, 2, 2, 2).insert([search, window], None, 140)
        else:
            with pytest.raises(EditError, match="segment"):
                EditTable(1, 2, 2, 2).insert([search, window], None, 140)
