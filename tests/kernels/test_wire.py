import json

import pytest

from heed_kernels.edits import (
    ALL_KEYS,
    HeadGain,
    HeadSet,
    KeyBias,
    KeyRanges,
    KeyScale,
    Rows,
    TrailingKeys,
    VisibleKeys,
)
from heed_kernels.errors import EditError
from heed_kernels.wire import from_wire, to_wire

ON = HeadSet((5, 0, 1 << 100))
EDITS = [
    KeyBias(ON, Rows(3), KeyRanges(((0, 1), (4, 9))), 0.1, 0),
    KeyBias(ON, Rows(0, 7), TrailingKeys(2, 16), -1.5, 1),
    KeyScale(ON, Rows(), ALL_KEYS, 1.25, -0.5, 2),
    VisibleKeys(4, 256, True, 3),
    HeadGain(ON, Rows(9, 10), 0.0, 4),
]


def test_edits_survive_json():
    assert from_wire(json.loads(json.dumps(to_wire(EDITS)))) == EDITS


@pytest.mark.parametrize(
    "change",
    [
        {"kind": "key_bais"},
        {"bias": "0.5"},
        {"bias": float("nan")},
        {"bias": 1e38},
        {"bias": True},
        {"on": ["0x3f"]},
        {"on": "3f"},
        {"on": [""]},
        {"on": [-1]},
        {"rows": [3]},
        {"rows": [3, 2]},
        {"rows": [-1, 2]},
        {"rows": [0, 2**31]},
        {"keys": [[3, 3]]},
        {"keys": [[3, 5], [4, 6]]},
        {"keys": {"first": 0}},
        {"keys": {"first": -1, "window": 2}},
        {"keys": 3},
        {"source": None},
        {"extra": 1},
    ],
)
def test_a_malformed_edit_is_an_error(change):
    item = to_wire(EDITS)[0] | change
    with pytest.raises(EditError):
        from_wire([item])


@pytest.mark.parametrize("items", [None, "x", {}, [3], [None], [{}]])
def test_what_is_no_list_of_edits_is_an_error(items):
    with pytest.raises(EditError):
        from_wire(items)


def test_visible_keys_need_a_window():
    with pytest.raises(EditError, match="window"):
        from_wire(to_wire([VisibleKeys(4, 0, False, 0)]))
