import base64
import json

import numpy as np
import pytest

from heed_kernels.edits import (
    ALL_KEYS,
    SOURCES,
    FindKeys,
    FlagKeys,
    FoundKeys,
    Gate,
    GazeShift,
    HeadChoice,
    HeadGain,
    HeadMix,
    HeadRanking,
    HeadSet,
    KeyBias,
    KeyRanges,
    KeyScale,
    MassTransfer,
    ObserveColumns,
    ObserveMass,
    PatchKeys,
    Rows,
    TrailingKeys,
    VisibleKeys,
    VisibleRanges,
)
from heed_kernels.errors import EditError
from heed_kernels.evict import (
    ColumnScore,
    DifferenceScore,
    Evict,
    ExpectedScore,
    HeadShare,
    KindShare,
    NormScore,
    QueryShare,
    WindowScore,
)
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
    FindKeys(ON, Rows(0, 40), 0.1, 2, 8, KeyRanges(((0, 1),)), True, 11, until=40),
    FlagKeys(ON, Rows(0, 40), (5, 77), 20.0, KeyRanges(((3, 9),)), True, 18),
    GazeShift(
        HeadSet((0, 0, 1)),
        Rows(39),
        KeyRanges(((3, 9),)),
        KeyRanges(((9, 39),)),
        KeyRanges(()),
        1,
        3,
        5.0,
        1.0,
        21,
    ),
    HeadRanking(ON, Rows(39), KeyRanges(((3, 9),)), 3, 0.1, 19),
    HeadChoice(ON, Rows(39), 41, KeyRanges(((3, 9), (12, 13))), 3, 2.0, True, 20, twin=True),
    KeyScale(ON, Rows(39), PatchKeys(KeyRanges(((3, 9), (12, 18))), True, 4), 1.0, 0.3, 21),
    Evict(ColumnScore(), None, (64, 64, 64), 64, 4, 16, True, 1, True, Rows(100), 12),
    Evict(NormScore(), HeadShare(0.2), (64, 9, 64), 100, 4, 5, False, 0, False, Rows(90), 13),
    Evict(
        DifferenceScore(),
        QueryShare(32, None, 1.0, 1.0),
        (64, 64, 64),
        90,
        0,
        0,
        False,
        32,
        False,
        Rows(90),
        14,
    ),
    Evict(
        ExpectedScore(512, 4, 0.02, True),
        None,
        (64, 64, 64),
        64,
        4,
        0,
        False,
        1,
        True,
        Rows(90),
        15,
    ),
    Evict(
        WindowScore(32, 5, "max", 0.5, "layer"),
        QueryShare(32, 2.5, 1.6, 0.4),
        (64, 64, 64),
        90,
        4,
        32,
        False,
        32,
        False,
        Rows(90),
        16,
    ),
    Evict(
        WindowScore(32),
        KindShare((2, 1, 0), 256),
        (64, 64, 64),
        90,
        4,
        32,
        False,
        32,
        False,
        Rows(90),
        17,
    ),
]
BY_KIND = {item["kind"]: item for item in to_wire(EDITS)}
WINDOW = BY_KIND["evict"]["score"]


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
        ("evict", {"score": {"kind": "window"}}),
        ("evict", {"score": {"kind": "columns"}}),
        ("evict", {"score": None}),
        ("evict", {"score": WINDOW | {"kernel": 4}}),
        ("evict", {"score": WINDOW | {"window": 0}}),
        ("evict", {"score": WINDOW | {"pooling": "sum"}}),
        ("evict", {"score": WINDOW | {"heads": []}}),
        ("evict", {"score": WINDOW | {"variance": -1}}),
        ("evict", {"share": {"kind": "head", "floor": 1.5}}),
        ("evict", {"share": {"kind": "kind", "far": [1, 1], "top": 9}}),
        ("evict", {"share": {"kind": "kind", "far": 1, "top": 9}}),
        ("evict", {"share": {"kind": "query", "rows": 1, "alpha": None, "tau1": 1, "tau2": 1}}),
        ("evict", {"share": {"kind": "query", "rows": 8, "alpha": 1, "tau1": 1, "tau2": 1}}),
        ("evict", {"share": {"kind": "query", "rows": 8, "alpha": None, "tau1": 0, "tau2": 1}}),
        ("evict", {"counts": []}),
        ("evict", {"counts": [64, 64, 0]}),
        ("evict", {"counts": [64, 64, 35]}),
        ("evict", {"counts": "64"}),
        ("evict", {"most": 63}),
        ("evict", {"sinks": -1}),
        ("evict", {"recent": 0.5}),
        ("evict", {"again": 1}),
        ("evict", {"again": True}),
        ("evict", {"together": 31}),
        ("evict", {"every_row": None}),
        ("evict", {"rows": [90, 200]}),
        ("evict", {"rows": [0, 2**31 - 1]}),
        ("evict", {"rows": 90}),
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


def test_what_a_scheduler_asks_about_an_eviction_is_read_without_decoding():
    packed = to_wire(EDITS[-6:])[0]
    assert packed["kind"] == "evict"
    assert (packed["most"], packed["together"], packed["every_row"]) == (64, 1, True)
    assert (packed["again"], packed["counts"], packed["rows"][0]) == (True, [64, 64, 64], 100)


def test_scores_that_see_every_row_ask_for_every_row():
    for packed in to_wire([EDITS[-6], EDITS[-3]]):
        with pytest.raises(EditError, match="every_row"):
            from_wire([packed | {"every_row": False}])
    expected = to_wire([EDITS[-3]])[0]
    with pytest.raises(EditError, match="protected"):
        from_wire([expected | {"sinks": 3}])
