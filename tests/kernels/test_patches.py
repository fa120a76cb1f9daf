"""Patches that a class token attends to: which ones, the ranges of their tokens, and the room they take."""

import numpy as np
import pytest

from heed_kernels.beside.patches import ClassAttention, at_worst, local_of, ranges_of, summary_of
from heed_kernels.edits import OPEN, Edit, HeadSet, KeyRanges, KeyScale, PatchKeys, Rows
from heed_kernels.errors import EditError
from heed_kernels.ranges import RANGES
from heed_kernels.table import EditTable

FIRST = [0.5, 0.9, 0.1, 0.9, 0.2, 0.8, 0.3, 0.9]
LATER = [1.0, 1.1, 0.9, 9.0, 1.0, 1.05, 0.95, 5.0]
SEEN = ClassAttention(np.array(FIRST, np.float32), np.array(LATER, np.float32))
IMAGE = KeyRanges(((10, 18),))


def keys(images: KeyRanges, summary: bool, most: int) -> PatchKeys:
    return PatchKeys(images, summary, most)


def edits(images: KeyRanges, patches: int) -> list[Edit]:
    on, rows = HeadSet((1,)), Rows(images.ranges[-1][1], OPEN)
    return [
        KeyScale(on, rows, PatchKeys(images, False, patches // 4), 1.0, 0.7, 0),
        KeyScale(on, rows, PatchKeys(images, True, patches // 4), 1.0, 0.3, 0),
    ]


def test_the_summary_are_those_far_above_the_third_quartile() -> None:
    assert np.flatnonzero(summary_of(SEEN)).tolist() == [3, 7]
    even = ClassAttention(SEEN.first, np.ones(8, np.float32))
    assert not summary_of(even).any(), "on the bound is not above it"


@pytest.mark.parametrize(
    ("count", "local"),
    [(0, []), (1, [1]), (2, [1]), (3, [1]), (4, [1, 5]), (8, [0, 1, 2, 4, 5, 6])],
)
def test_local_are_the_largest_of_the_first_layer_but_for_the_summary(
    count: int, local: list[int]
) -> None:
    """Of equal ones the first counts, and a place that the summary takes stays empty."""
    assert np.flatnonzero(local_of(SEEN, count)).tolist() == local


def test_patches_become_ranges_of_the_tokens_of_their_images() -> None:
    two = KeyRanges(((3, 11), (11, 19)))
    turned = ClassAttention(SEEN.first[::-1].copy(), SEEN.later[::-1].copy())
    assert ranges_of(keys(two, True, 2), [SEEN, turned]).ranges == ((6, 7), (10, 12), (15, 16))
    everywhere = ranges_of(keys(IMAGE, False, 8), [SEEN]).ranges
    assert everywhere == ((10, 13), (14, 17))


@pytest.mark.parametrize("images", [((10, 17),), ((10, 18), (20, 28))])
def test_images_that_do_not_fit_are_an_error(images: tuple[tuple[int, int], ...]) -> None:
    with pytest.raises(EditError):
        ranges_of(keys(KeyRanges(images), True, 2), [SEEN])


def test_a_table_takes_no_patches_but_what_takes_their_place() -> None:
    table = EditTable(slots=1, layers=1, query_heads=1, kv_heads=1)
    with pytest.raises(EditError, match="not known here"):
        table.insert(edits(IMAGE, 8))
    table.release(table.insert(at_worst(edits(IMAGE, 8))))


def test_a_set_that_fits_at_worst_fits_whatever_the_images_are() -> None:
    patches, draw = 576, np.random.default_rng(0)
    table = EditTable(slots=1, layers=1, query_heads=1, kv_heads=1)
    for count in (3, 4):
        images = KeyRanges(tuple((5 + i * patches, 5 + (i + 1) * patches) for i in range(count)))
        asked = edits(images, patches)
        if count * patches > RANGES:
            with pytest.raises(EditError, match="ranges"):
                table.insert(at_worst(asked))
            continue
        table.release(table.insert(at_worst(asked)))
        # Every second patch stands out in one of the layers.
        first, later = draw.random((2, patches), np.float32)
        first[::4] += 1
        later[2::4] += 100 + later[2::4]
        seen = [ClassAttention(first, later)] * count
        found = [
            KeyScale(e.on, e.rows, ranges_of(e.keys, seen), e.scale, e.absolute, 0)
            for e in asked
            if isinstance(e, KeyScale) and isinstance(e.keys, PatchKeys)
        ]
        table.release(table.insert(found))
