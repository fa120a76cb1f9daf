import numpy as np
import pytest

from heed_kernels.compiled import FOUND, FRACTION, MIX, PHASES
from heed_kernels.edits import (
    ALL_KEYS,
    OPEN,
    FindKeys,
    FoundKeys,
    Gate,
    HeadGain,
    HeadMix,
    HeadSet,
    KeyBias,
    KeyRanges,
    MassTransfer,
    ObserveMass,
    Rows,
    TrailingKeys,
    VisibleKeys,
    VisibleRanges,
)
from heed_kernels.errors import EditError
from heed_kernels.evict import Evict, NormScore
from heed_kernels.ranges import DENOMINATOR, DESTINATION, GROUPS, NUMERATOR, PROBE, PROBES, RANGES
from heed_kernels.table import EditTable

FIRST_LAYER = HeadSet((0b1011, 0, 0))
ALL_ROWS = Rows()


def table(slots=4, **options):
    return EditTable(slots, 3, 4, 2, head_dim=2, **options)


def ones(*values):
    return np.array(values)


def snapshot(edits):
    arrays = [value.copy() for value in vars(edits).values() if isinstance(value, np.ndarray)]
    pools = (edits.vectors, edits.lines, edits.mix_heads, edits.mixes)
    return arrays + [pool.in_use for pool in pools] + [edits.rows_in_use]


def mixture():
    return [
        KeyBias(FIRST_LAYER, Rows(5), KeyRanges(((0, 1), (7, 30))), 0.7, 0),
        KeyBias(FIRST_LAYER, Rows(5), TrailingKeys(3, 8), 0.7, 0),
        HeadGain(HeadSet((0, 0, 1)), Rows(0, 9), 0.5, 1),
        VisibleKeys(4, 60, True, 2),
        VisibleRanges(Rows(90), ((0, 32, 0), (64, OPEN, 0)), 3),
        transfer(),
        mix(HeadSet((0b0001, 0b0100, 0)), [[1, 2], [3, 4]]),
        ObserveMass(FIRST_LAYER, Rows(), KeyRanges(((0, 4),)), 6),
    ]


def transfer(**options):
    values = {
        "on": FIRST_LAYER, "rows": Rows(), "sources": KeyRanges(((0, 1), (40, 42))),
        "destination": KeyRanges(((8, 40),)), "fraction": 0.6,
        "gate": Gate(KeyRanges(((8, 40),)), ALL_KEYS, 0.5, 0.2), "source": 4,
    }  # fmt: skip
    return MassTransfer(**values | options)


def mix(on, vectors, weight=1.0, rows=ALL_ROWS):
    return HeadMix(on, rows, weight, np.array(vectors, "<f4").tobytes(), 5)


def test_a_released_slot_leaves_nothing_behind():
    edits = table()
    before = snapshot(edits)
    slots = [edits.insert(mixture()) for _ in range(3)]
    assert edits.rows_in_use == 3 and edits.bytes_of(slots[0]) > 0
    for slot in slots:
        edits.release(slot)
    for old, new in zip(before, snapshot(edits), strict=True):
        assert np.array_equal(old, new)
    assert edits.bytes_of(slots[0]) == 0


def test_equal_requests_share_their_vectors():
    edits = table()
    edits.insert(mixture())
    used = edits.vectors.in_use, edits.lines.in_use
    edits.insert(mixture())
    assert (edits.vectors.in_use, edits.lines.in_use) == used


def test_a_full_table_and_full_pools_are_errors_that_change_nothing():
    edits = table(slots=1)
    edits.insert(mixture())
    with pytest.raises(EditError, match="all 1 slots"):
        edits.insert(mixture())
    for options in ({"vector_capacity": 3}, {"line_capacity": 2}, {"mix_capacity": 2}):
        edits = table(**options)
        before = snapshot(edits)
        with pytest.raises(EditError, match="no room"):
            edits.insert(mixture())
        for old, new in zip(before, snapshot(edits), strict=True):
            assert np.array_equal(old, new)


def test_a_slot_can_be_chosen_once():
    edits = table()
    assert edits.insert(mixture(), slot=2) == 2
    with pytest.raises(EditError):
        edits.insert(mixture(), slot=2)
    with pytest.raises(EditError):
        edits.release(1)


@pytest.mark.parametrize(
    "edits, message",
    [
        ([HeadGain(HeadSet((1,)), Rows(), 0.5, 0)], "layers"),
        ([HeadGain(HeadSet((1, 16, 0)), Rows(), 0.5, 0)], "head 4"),
        ([VisibleKeys(4, 8, False, 0), VisibleKeys(4, 8, False, 1)], "one VisibleKeys"),
        (
            [KeyBias(FIRST_LAYER, Rows(), TrailingKeys(0, w), 1.0, 0) for w in (3, 4)],
            "one TrailingKeys",
        ),
        ([HeadGain(FIRST_LAYER, Rows(i), 0.5, 0) for i in range(1, PHASES + 1)], "different rows"),
        (
            [KeyBias(FIRST_LAYER, Rows(), KeyRanges(((i, i + 1),)), i, 0) for i in range(GROUPS)],
            "kinds",
        ),
        (
            [KeyBias(FIRST_LAYER, Rows(), KeyRanges(tuple((2 * i, 2 * i + 1) for i in range(RANGES))),
                     1.0, 0)],
            "ranges",
        ),
        ([HeadGain(FIRST_LAYER, Rows(), 1e30, 0)] * 2, "float32"),
        ([transfer(), transfer(rows=Rows(30, 31))], "two transfers"),
        ([transfer(), transfer(sources=FoundKeys())], "one set of sources"),
        (
            [FindKeys(FIRST_LAYER, Rows(), 0.1, 1, n, ALL_KEYS, False, 0) for n in (1, 2)],
            "find keys in one way",
        ),
        (
            [VisibleRanges(Rows(end - 5, end), ((0, 4, 0),), 0) for end in (10, 14)],
            "two VisibleRanges",
        ),
        (
            [VisibleRanges(Rows(r, r + 1), ((0, 4, r),), 0) for r in (10, 14)],
            "two different shifts",
        ),
        (
            [VisibleKeys(4, 8, True, 0), VisibleRanges(Rows(), ((0, 4, 1),), 0)],
            "rolling positions and shifted",
        ),
        (
            [ObserveMass(FIRST_LAYER, Rows(), KeyRanges(((i, i + 1),)), 0) for i in range(PROBES + 1)],
            "key sets are observed",
        ),
        ([mix(HeadSet((1, 0, 0)), [[1, 2, 3]])], "3 numbers"),
        ([mix(HeadSet((1, 0, 0)), [[1e30, 1]], 1e30)], "float32"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_an_error(edits, message):
    with pytest.raises(EditError, match=message):
        table().insert(edits)


def test_only_rows_and_layers_with_an_edit_are_active():
    edits = table()
    slot = edits.insert([HeadGain(FIRST_LAYER, Rows(10, 20), 0.5, 0)])
    plan = edits.plan(ones(slot), ones(100), ones(30), ones(5), ones(7))
    assert plan.items(0).tolist() == [[slot, 105, 10, 10, 7]]
    assert plan.stock_needed(0).tolist() == [True]
    assert plan.items(1).shape == (0, 5) and plan.stock_needed(1).tolist() == [True]
    assert plan.pattern(1) == plan.pattern(2) != plan.pattern(0)
    plan = edits.plan(ones(slot), ones(0), ones(3), ones(12), ones(0))
    assert plan.stock_needed(0).tolist() == [False]


def test_neutral_values_are_not_active():
    edits = table()
    slot = edits.insert([
        HeadGain(FIRST_LAYER, Rows(), 1.0, 0),
        KeyBias(FIRST_LAYER, Rows(), KeyRanges(((0, 4),)), 0.0, 1),
    ])  # fmt: skip
    assert not edits.active[slot].any()


def test_rows_are_plain_until_a_key_is_hidden():
    edits = table()
    slot = edits.insert([VisibleKeys(4, 60, False, 0)])
    plan = edits.plan(ones(slot), ones(0), ones(100), ones(0), ones(0))
    for layer in range(3):
        assert plan.items(layer).tolist() == [[slot, 64, 36, 64, 0]]


def test_neighbouring_active_phases_are_one_item():
    edits = table()
    slot = edits.insert([
        HeadGain(FIRST_LAYER, Rows(10, 20), 0.5, 0), HeadGain(FIRST_LAYER, Rows(20), 2.0, 1)
    ])  # fmt: skip
    plan = edits.plan(ones(slot, slot), ones(0, 30), ones(30, 1), ones(0, 40), ones(0, 1))
    assert plan.items(0).tolist() == [[slot, 10, 20, 10, 0], [slot, 30, 1, 40, 1]]
    assert plan.stock_needed(0).tolist() == [True, False]


def test_ranks_agree_on_what_is_active():
    edits = [HeadGain(HeadSet((0b0001, 0b1000, 0)), Rows(), 0.5, 0)]
    first, second = (table(head_start=s, local_query_heads=2) for s in (0, 2))
    for rank in (first, second):
        rank.insert(edits, slot=0)
    assert np.array_equal(first.active, second.active)
    gain = [rank.vectors.rows[rank.lines.rows[rank.line[0, :, 0], 0]] for rank in (first, second)]
    assert np.concatenate(gain, axis=1)[:2].tolist() == [[0.5, 1, 1, 1], [1, 1, 1, 0.5]]


@pytest.mark.parametrize(
    "bad", [(1, 0, 1, 0, 0), (4, 0, 1, 0, 0), (0, 0, 0, 0, 0), (0, -1, 1, 0, 0), (0, 0, 1, OPEN, 0)]
)
def test_a_plan_outside_of_the_table_is_an_error(bad):
    edits = table()
    edits.insert(mixture(), slot=0)
    with pytest.raises(EditError):
        edits.plan(*(ones(value) for value in bad))


def test_an_empty_plan_has_no_work():
    empty = np.zeros(0, int)
    plan = table().plan(empty, empty, empty, empty, empty)
    assert plan.patterns == 1 and len(plan.items(0)) == 0 and len(plan.stock_needed(0)) == 0


def test_ranges_say_what_their_keys_are_for_and_who_sees_them():
    edits = table()
    slot = edits.insert([
        transfer(),
        ObserveMass(FIRST_LAYER, Rows(), KeyRanges(((0, 4),)), 1),
        VisibleRanges(Rows(90, 95), ((0, 8, 3), (64, OPEN, 0)), 2),
    ])  # fmt: skip
    assert edits.phase_start[slot, :3].tolist() == [0, 90, 95]
    count = edits.range_count[slot]
    read = zip(
        *(
            getattr(edits, f"range_{name}")[slot, :count]
            for name in ("start", "class", "visible", "shift")
        ),
        strict=True,
    )
    in_all, not_second = 0b111, 0b101
    assert [tuple(int(part) for part in line) for line in read] == [
        (0, DENOMINATOR | PROBE, in_all, 3),
        (4, DENOMINATOR, in_all, 3),
        (8, DESTINATION | NUMERATOR | DENOMINATOR, not_second, 0),
        (40, DENOMINATOR, not_second, 0),
        (64, DENOMINATOR, in_all, 0),
    ]
    assert edits.source_keys[slot, :3].tolist() == [0, 40, 41]
    assert edits.source_range[slot, :3].tolist() == [0, 3, 3]
    # A shift holds for every row.
    assert edits.active[slot, :, :3].all()
    slot = edits.insert([transfer(), VisibleRanges(Rows(90, 95), ((0, 8, 0),), 2)])
    assert edits.active[slot, :, :3].tolist() == [[True] * 3] + [[False, True, False]] * 2


def test_observations_alone_leave_every_row_plain():
    edits = table()
    asked = (ObserveMass(FIRST_LAYER, Rows(), KeyRanges(((0, 4),)), 1),)
    slot = edits.insert(asked)
    assert not edits.active[slot].any() and edits.observations(slot) == asked


def test_a_slot_forgets_what_was_found_for_the_request_before():
    edits = table()
    slot = edits.insert([transfer(sources=FoundKeys())])
    assert edits.source_count[slot] == FOUND
    edits.found_count[slot] = 3
    edits.release(slot)
    edits.insert([transfer(sources=FoundKeys())], slot=slot)
    assert not edits.found_count[slot].any()


def test_mixed_vectors_add_up_per_head():
    edits = table()
    slot = edits.insert([
        mix(HeadSet((0b1001, 0, 0)), [[1, 2], [3, 4]]),
        mix(HeadSet((0b1000, 0, 0)), [[1, 1]], weight=-0.5, rows=Rows(7)),
    ])  # fmt: skip
    for phase, last in ((0, [3, 4]), (1, [2.5, 3.5])):
        line = edits.lines.rows[edits.line[slot, 0, phase]]
        vectors = edits.mixes.rows[edits.mix_heads.rows[line[MIX]]]
        assert vectors.tolist() == [[1, 2], [0, 0], [0, 0], last]
    assert edits.active[slot, :, :2].tolist() == [[True] * 2, [False] * 2, [False] * 2]


def test_a_transfer_of_nothing_is_not_active():
    edits = table()
    slot = edits.insert([transfer(fraction=0)])
    assert not edits.active[slot].any()
    slot = edits.insert([transfer(fraction=0.25)])
    line = edits.lines.rows[edits.line[slot, 0, 0]]
    assert edits.vectors.rows[line[FRACTION]].tolist() == [0.25, 0.25, 0, 0.25]


def evict(**options):
    values = {
        "score": NormScore(), "share": None, "counts": (20, 20, 30), "most": 30, "sinks": 4,
        "recent": 8, "again": False, "together": 1, "every_row": False, "rows": Rows(64), "source": 0,
    }  # fmt: skip
    return Evict(**values | options)


def test_rows_after_the_prompt_are_active_in_every_layer_where_keys_are_evicted():
    edits = table()
    slot = edits.insert([evict(), HeadGain(FIRST_LAYER, Rows(0, 30), 0.5, 0)])
    assert edits.phase_start[slot, :3].tolist() == [0, 30, 64]
    assert edits.active[slot, :, :3].T.tolist() == [[True, False, False], [False] * 3, [True] * 3]
    assert edits.evicting[slot]
    assert edits.kept.shape == (4, 3, 2)
    plan = edits.plan(ones(slot), ones(0), ones(2), ones(63), ones(0))
    assert [plan.items(layer)[:, 3].tolist() for layer in range(3)] == [[64]] * 3
    assert plan.stock_needed(1).tolist() == [True]


def test_a_rank_keeps_counts_for_its_own_kv_heads():
    assert table(head_start=2, local_query_heads=2).kept.shape == (4, 3, 1)
    assert EditTable(1, 3, 8, 2, head_start=6, local_query_heads=2).kept.shape == (1, 3, 1)


def test_what_was_kept_is_forgotten_with_the_slot():
    edits = table()
    before = snapshot(edits)
    slot = edits.insert([evict()])
    edits.kept[slot], edits.evicted_end[slot] = 20, 64
    edits.release(slot)
    for old, new in zip(before, snapshot(edits), strict=True):
        assert np.array_equal(old, new)


def test_one_eviction_of_as_many_layers_is_possible():
    with pytest.raises(EditError, match="one Evict"):
        table().insert([evict(), evict(sinks=3)])
    with pytest.raises(EditError, match="layers"):
        table().insert([evict(counts=(20, 20))])
