import base64
import json

import numpy as np
import pytest

from heed_kernels.edits import (
    ALL_KEYS,
    SOURCES,
    FindKeys,
    FoundKeys,
    Gate,
    HeadGain,
    HeadMix,
    HeadSet,
    KeyBias,
    KeyRanges,
    KeyScale,
    MassTransfer,
    ObserveColumns,
    ObserveMass,
    Rows,
    TrailingKeys,
    VisibleKeys,
    VisibleRanges,
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
    VisibleRanges(Rows(100), ((0, 4, 12), (64, 2**31 - 1, 0)), 5),
    MassTransfer(ON, Rows(), KeyRanges(((0, 2),)), ALL_KEYS, 0.6, Gate(), 6),
    MassTransfer(
        ON, Rows(4), FoundKeys(), ALL_KEYS, 1, Gate(ALL_KEYS, KeyRanges(((1, 9),)), 0.5, 0.2), 7
    ),
    HeadMix(ON, Rows(), -0.25, np.arange(9, dtype="<f4").tobytes(), 8),
    ObserveColumns(ON, Rows(3), 9),
    ObserveMass(ON, Rows(), KeyRanges(((0, 1),)), 10),
    FindKeys(ON, Rows(0, 40), 0.1, 2, 8, KeyRanges(((0, 1),)), True, 11),
]
BY_KIND = {item["kind"]: item for item in to_wire(EDITS)}


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


@pytest.mark.parametrize(
    "kind, change",
    [
        ("visible_ranges", {"ranges": [[0, 4]]}),
        ("visible_ranges", {"ranges": [[0, 4, -1]]}),
        ("visible_ranges", {"ranges": [[4, 8, 0], [0, 2, 0]]}),
        ("visible_ranges", {"ranges": [[0, 4, 0.5]]}),
        ("mass_transfer", {"sources": "lost"}),
        ("mass_transfer", {"sources": [[0, SOURCES + 1]]}),
        ("mass_transfer", {"destination": {"first": 0, "window": 3}}),
        ("mass_transfer", {"fraction": 1.01}),
        ("mass_transfer", {"fraction": -0.1}),
        ("mass_transfer", {"gate": {}}),
        ("mass_transfer", {"gate": None}),
        ("head_mix", {"vectors": "AAA"}),
        ("head_mix", {"vectors": "AAAA"}),
        ("head_mix", {"vectors": ""}),
        ("head_mix", {"vectors": 3}),
        ("head_mix", {"vectors": base64.b64encode(np.full(3, np.nan, "<f4").tobytes()).decode()}),
        ("observe_mass", {"keys": {"first": 0, "window": 3}}),
        ("find_keys", {"most": SOURCES + 1}),
        ("find_keys", {"least_rows": 0}),
        ("find_keys", {"threshold": -1}),
        ("find_keys", {"protect_first": 1}),
    ],
)
def test_every_kind_checks_its_fields(kind, change):
    with pytest.raises(EditError):
        from_wire([BY_KIND[kind] | change])


@pytest.mark.parametrize("items", [None, "x", {}, [3], [None], [{}]])
def test_what_is_no_list_of_edits_is_an_error(items):
    with pytest.raises(EditError):
        from_wire(items)


def test_visible_keys_need_a_window():
    with pytest.raises(EditError, match="window"):
        from_wire(to_wire([VisibleKeys(4, 0, False, 0)]))
