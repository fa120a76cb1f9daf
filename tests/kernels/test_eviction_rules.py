"""What other edits of a request that evicts may say about keys: `eviction_rules.py`, where a set is compiled."""

import pytest

from heed_kernels.compiled import compile_edits
from heed_kernels.edits import (
    ALL_KEYS,
    OPEN,
    FindKeys,
    FoundKeys,
    Gate,
    GazeShift,
    HeadRanking,
    HeadSet,
    KeyBias,
    KeyRanges,
    KeyScale,
    MassTransfer,
    ObserveMass,
    Rows,
    TrailingKeys,
    VisibleKeys,
    VisibleRanges,
)
from heed_kernels.errors import EditError
from heed_kernels.evict import Evict, NormScore

FIRST_LAYER = HeadSet((0b1011, 0, 0))


def compiled(edits):
    return compile_edits(edits, 3, 4)


def evict(**options):
    values = {
        "score": NormScore(), "share": None, "counts": (20, 20, 30), "most": 30, "sinks": 4,
        "recent": 8, "again": False, "together": 1, "every_row": False, "rows": Rows(64), "source": 0,
    }  # fmt: skip
    return Evict(**values | options)


def transfer(**options):
    values = {
        "on": FIRST_LAYER, "rows": Rows(), "sources": KeyRanges(((0, 1), (64, 65))),
        "destination": KeyRanges(((1, 64),)), "fraction": 0.6,
        "gate": Gate(KeyRanges(((4, OPEN),)), ALL_KEYS, 0.5, 0.2), "source": 4,
    }  # fmt: skip
    return MassTransfer(**values | options)


def gaze(rows):
    keys = KeyRanges(((0, 2),)), KeyRanges(((2, 3),)), KeyRanges(((2, 3),))
    return GazeShift(HeadSet((0, 1, 0)), rows, *keys, 0, 1, 1.0, 1.0, 0)


@pytest.mark.parametrize(
    "beside, refused",
    [
        (VisibleKeys(4, 32, False, 0), True),
        (VisibleRanges(Rows(0, 3), ((0, 2, 0),), 0), True),
        (KeyBias(FIRST_LAYER, Rows(), KeyRanges(((0, 4), (64, 70))), 1, 0), False),
        (KeyBias(FIRST_LAYER, Rows(), KeyRanges(((0, 5),)), 1, 0), True),
        (KeyBias(FIRST_LAYER, Rows(0, 64), KeyRanges(((0, 5),)), 1, 0), False),
        (KeyBias(FIRST_LAYER, Rows(0, 65), KeyRanges(((63, 64),)), 1, 0), True),
        (KeyBias(FIRST_LAYER, Rows(), TrailingKeys(64, 9), 1, 0), False),
        (KeyBias(FIRST_LAYER, Rows(), TrailingKeys(63, 9), 1, 0), True),
        (KeyScale(FIRST_LAYER, Rows(), ALL_KEYS, 2, 0, 0), False),
        (KeyScale(FIRST_LAYER, Rows(), KeyRanges(((2, 30), (30, 64))), 2, 0, 0), False),
        (ObserveMass(FIRST_LAYER, Rows(), KeyRanges(((0, 9),)), 0), True),
        (HeadRanking(FIRST_LAYER, Rows(), KeyRanges(((0, 4),)), 1, 0, 0), False),
        (HeadRanking(FIRST_LAYER, Rows(), KeyRanges(((4, 64),)), 1, 0, 0), True),
        (gaze(Rows(63)), True),
        (gaze(Rows(0, 64)), True),
        (FindKeys(FIRST_LAYER, Rows(), 0.1, 1, 1, KeyRanges(()), False, 0), True),
        (FindKeys(FIRST_LAYER, Rows(0, 64), 0.1, 1, 1, KeyRanges(()), False, 0), False),
    ],
)
def test_edits_of_later_rows_may_not_tell_keys_apart_that_move(beside, refused):
    if refused:
        with pytest.raises(EditError):
            compiled([evict(), beside])
    else:
        compiled([beside, evict()])


def test_transfers_of_later_rows_may_not_tell_keys_apart_that_move():
    compiled([evict(), transfer()])
    compiled([evict(), transfer(sources=KeyRanges(((4, 5),)), rows=Rows(0, 64))])
    for change in (
        {"sources": KeyRanges(((4, 5),))},
        {"sources": FoundKeys()},
        {"destination": KeyRanges(((5, 64),))},
        {"gate": Gate(ALL_KEYS, KeyRanges(((0, 63),)), 0.5, 0.2)},
    ):
        with pytest.raises(EditError, match="apart"):
            compiled([evict(), transfer(**change)])


def test_where_eviction_goes_on_generated_keys_move_too():
    edit = KeyBias(FIRST_LAYER, Rows(), KeyRanges(((64, 70),)), 1, 0)
    compiled([evict(), edit])
    with pytest.raises(EditError, match="from 4 on"):
        compiled([evict(again=True), edit])


def test_sinks_beyond_the_prompt_leave_every_key_in_its_place():
    all_kept = evict(sinks=70, counts=(80,) * 3, most=80)
    compiled([all_kept, KeyBias(FIRST_LAYER, Rows(), KeyRanges(((0, 66),)), 1, 0)])
    compiled([all_kept, KeyScale(FIRST_LAYER, Rows(), ALL_KEYS, 2, 0, 0)])
