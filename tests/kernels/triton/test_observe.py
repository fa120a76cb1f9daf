"""Observations against the float64 reference, and ACT's passes within one layer's forward."""

import numpy as np
import pytest
import torch
from tests.kernels.triton.paged_model import Model, assert_close, errors

from heed_kernels.edits import (
    ALL_KEYS,
    OPEN,
    FindKeys,
    FoundKeys,
    Gate,
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
from heed_kernels.reference import attention as reference
from heed_kernels.triton import StepWork, find_keys, observe

ON = HeadSet((0b101, 0b111))
KEYS = KeyRanges(((0, 4), (30, 50))), KeyRanges(((40, 90),))
EDITS = [
    KeyBias(ON, Rows(50), KeyRanges(((0, 1), (7, 30))), 0.7, 0),
    KeyBias(ON, Rows(), TrailingKeys(3, 9), -0.5, 0),
    VisibleKeys(4, 60, True, 1),
    ObserveMass(ON, Rows(), KEYS[0], 2),
    ObserveMass(ON, Rows(), KEYS[1], 2),
]


@pytest.fixture
def device():
    return "cpu"


def observed(model, table, slot, chunks, rows=(0, OPEN), heads=0b111, capacity=None, **options):
    """log-sum-exp and masses of the chunks' rows, and columns int64 [heads, keys] over all."""
    length, count = model.lengths[0], model.query_heads
    bounds = np.zeros((table.table.slots, 2), np.int64)
    bounds[slot] = rows
    device = model.device
    columns = torch.zeros(count, length + 3, dtype=torch.int64, device=device)
    places = torch.zeros(table.table.slots, count, dtype=torch.int64, device=device)
    for head in range(count):
        places[slot, head] = columns[head].data_ptr() * (heads >> head & 1)
    sums, masses = [], []
    for first, end in chunks:
        plan, _ = model.plan(table, [(0, slot, first, end)])
        work = StepWork(table, length, 1, capacity)
        work.fill_observed(plan, bounds)
        log_sum_exp = torch.full((end - first, count), torch.nan, device=device)
        mass = torch.full((end - first, count, 4), torch.nan, device=device)
        observe(
            model.query[0][first:end], model.key_cache, model.block_table, table, work, 0,
            model.scale, model.rope, log_sum_exp, mass, places, **options,
        )  # fmt: skip
        sums.append(log_sum_exp)
        masses.append(mass)
    assert (columns[..., length:] == 0).all()
    return torch.cat(sums).cpu(), torch.cat(masses).cpu(), columns[:, :length].cpu()


def lines_of(table, layer):
    return torch.from_numpy(layer * table.table.query_heads + table.table.own_heads(ON, layer))


def weights(model, edits, found=None):
    tensors = model.query[0].double().cpu(), model.key[0].double().cpu()
    return reference.attention_weights(*tensors, edits, 0, model.scale, model.rope, found)


def test_observations_match_the_reference(device):
    model = Model([100], 3, 1, device=device)
    table = model.table()
    slot = model.slot(table, EDITS, 60)
    sums, masses, columns = observed(model, table, slot, [(0, 100)], (20, 90), 0b101)
    made = weights(model, EDITS)
    assert sums[:20].isnan().all() and sums[90:].isnan().all()
    assert_close(sums[20:90], made.log_sum_exp.T[20:90], 1e-6, "log-sum-exp")
    for probe, keys in enumerate(KEYS):
        mass = reference.observed_mass(ObserveMass(ON, Rows(), keys, 0), made.before).T
        assert_close(masses[20:90, :, probe], mass[20:90], 1e-6, f"probe {probe}")
    expected = reference.observed_columns(ObserveColumns(ON, Rows(20, 90), 0), made.before)
    assert (columns[1] == 0).all()
    assert_close(columns[[0, 2]].double() / 2**31, expected[[0, 2]], 1e-6, "columns")


SHAPES = [
    (2, 2, 32, 16, torch.float32),
    (6, 2, 80, 32, torch.bfloat16),
    (8, 1, 64, 128, torch.float16),
]


@pytest.mark.parametrize("query_heads, kv_heads, head_dim, block_size, dtype", SHAPES)
@pytest.mark.parametrize(
    "length", [1, 63, *(pytest.param(n, marks=pytest.mark.slow) for n in (100, 129, 513))]
)
def test_observations_match_the_reference_in_every_shape(
    query_heads, kv_heads, head_dim, block_size, dtype, length, device
):
    """The last rows, two of them generated, with holes between the keys; some see no key at all."""
    model = Model([length], query_heads, kv_heads, head_dim, block_size, dtype, device=device)
    on = HeadSet(((1 << query_heads) - 2, 0))
    bias = KeyBias(on, Rows(), KeyRanges(((0, 1), (7, 30))), 0.7, 0)
    trailing = KeyBias(on, Rows(), TrailingKeys(3, 9), -0.5, 1)
    scale = KeyScale(on, Rows(), KeyRanges(((20, 150),)), 1.2, -0.3, 2)
    probes = [ObserveMass(on, Rows(), keys, 3) for keys in KEYS]
    table = model.table()
    for hole in (((0, 9, 0), (20, 40, 0), (45, OPEN, 0)), ((length, OPEN, 0),)):
        edits = [bias, trailing, scale, VisibleRanges(Rows(max(0, length - 4)), hole, 4), *probes]
        slot = model.slot(table, edits, max(0, length - 2))
        seen = slice(max(0, length - 13), length)
        chunk = [(seen.start, seen.stop)]
        sums, masses, columns = observed(model, table, slot, chunk, heads=(1 << query_heads) - 2)
        made = weights(model, edits)
        expected = made.log_sum_exp.T[seen]
        blind = expected.isneginf()
        assert torch.equal(sums.isneginf(), blind) and blind[-1, 0] == (hole[0][0] == length)
        assert_close(sums[~blind], expected[~blind], 1e-5, "log-sum-exp")
        for probe, keys in enumerate(KEYS):
            mass = reference.observed_mass(ObserveMass(on, Rows(), keys, 0), made.before).T
            assert_close(masses[:, :, probe], mass[seen], 1e-5, f"probe {probe}")
        rows = ObserveColumns(on, Rows(seen.start, seen.stop), 0)
        expected = reference.observed_columns(rows, made.before)
        assert (columns[0] == 0).all()
        assert_close(columns[1:].double() / 2**31, expected[1:], 1e-5, "columns")
        table.table.release(slot)


@pytest.mark.parametrize("chunk", [(20, 26), (36, 40)])
def test_launches_without_work_change_no_bit_of_an_observation(chunk):
    """Of prompt rows, beside which no row is generated, and of generated rows."""
    model = Model([40], 3, 1)
    table = model.table()
    slot = model.slot(table, EDITS, 35)
    some = observed(model, table, slot, [chunk])
    every = observed(model, table, slot, [chunk], everything=True)
    for one, other in zip(some, every, strict=True):
        assert torch.equal(one[..., :2], other[..., :2])


def test_rows_that_only_pad_a_tile_add_nothing_however_large_a_bias(device):
    """Their products are 0, so their weights would be 2^bias: beyond float32, times no rows."""
    model = Model([100], 3, 1, device=device)
    table = model.table()
    edits = [KeyBias(HeadSet((0b111, 0)), Rows(), KeyRanges(((3, 4), (30, 31))), 95.0, 0)]
    slot = model.slot(table, edits, 100)
    _, _, columns = observed(model, table, slot, [(50, 60)])
    expected = reference.observed_columns(
        ObserveColumns(ON, Rows(50, 60), 0), weights(model, edits).before
    )
    assert_close(columns.double() / 2**31, expected, 1e-5, "columns")


def test_chunks_change_no_bit_of_an_observation(device):
    model = Model([100], 3, 1, device=device)
    table = model.table()
    slot = model.slot(table, EDITS, 60)
    whole = observed(model, table, slot, [(43, 100)])
    cut = observed(model, table, slot, [(43, 50), (50, 64), (64, 100)])
    for one, other in zip(whole, cut, strict=True):
        assert torch.equal(one[..., :2], other[..., :2])
    assert torch.equal(whole[2], cut[2])


def test_generated_rows_are_observed_in_splits_of_their_keys_and_waves_change_no_bit(device):
    """Two splits of each row, more than fit into one wave; the first row of the step is a prompt row."""
    model = Model([300], 3, 1, device=device)
    table = model.table()
    slot = model.slot(table, EDITS, 278)
    rows = slice(277, 296)
    whole = [(277, 296)]
    sums, masses, columns = observed(model, table, slot, whole, heads=0b101, capacity=32)
    made = weights(model, EDITS)
    assert_close(sums, made.log_sum_exp.T[rows], 1e-6, "log-sum-exp")
    for probe, keys in enumerate(KEYS):
        mass = reference.observed_mass(ObserveMass(ON, Rows(), keys, 0), made.before).T
        assert_close(masses[:, :, probe], mass[rows], 1e-6, f"probe {probe}")
    expected = reference.observed_columns(ObserveColumns(ON, Rows(277, 296), 0), made.before)
    assert (columns[1] == 0).all() and (columns[[0, 2], 256:290] > 0).any()
    assert_close(columns[[0, 2]].double() / 2**31, expected[[0, 2]], 1e-6, "columns")
    alone = observed(model, table, slot, [(294, 296)], heads=0b101)
    for one, other in zip((sums, masses[..., :2]), (alone[0], alone[1][..., :2]), strict=True):
        assert torch.equal(one[-2:], other)


def test_keys_that_are_found_in_a_layer_are_the_sources_of_its_transfer():
    """Log-sum-exp, columns, search, attention: what ACT does within one layer's forward."""
    model = Model([100], 3, 1)
    # Two keys that draw attention, in other places for each head.
    for head, keys in enumerate(((2, 41), (5, 60), (7, 8))):
        for key in keys:
            model.key[0][key, 0, head * 10 : head * 10 + 10] += 3
        model.query[0][:, head, head * 10 : head * 10 + 10] += 1
    at = torch.arange(100)
    model.key_cache[model.block_table[0].long()[at // 16], at % 16] = model.key[0]
    find = FindKeys(ON, Rows(), 0.02, 5, 6, KeyRanges(((0, 1), (7, 8))), False, 0)
    cut = KeyBias(ON, Rows(), KeyRanges(((30, 50),)), 0.3, 1)
    moved = MassTransfer(ON, Rows(10), FoundKeys(), ALL_KEYS, 0.6, Gate(), 0)
    for destination in (ALL_KEYS, KeyRanges(((20, 80),))):
        edits = [find, cut, MassTransfer(**{**vars(moved), "destination": destination})]
        table = model.table()
        slot = model.slot(table, edits, 99)
        _, _, columns = observed(model, table, slot, [(0, 64), (64, 100)])
        find_keys(table, slot, find, lines_of(table, 0), columns[[0, 2]], 100)
        made = weights(model, edits, [[], [], []])
        expected = reference.found_keys(find, reference.observed_columns(find, made.before), 0)
        found = [
            table.found[slot][0, h, 1 : 1 + table.found[slot][0, h, 0]].tolist() for h in range(3)
        ]
        assert found == expected and found[0] and found[2] and not found[1]
        assert found[0] != found[2]
        (output,) = model.run(table, [(0, slot, 50, 100)])
        expected = model.expected(0, edits, 0, found)[50:]
        assert_close(output, expected, 1e-5, "after the search")
        assert errors(output, model.expected(0, edits, 0, [[], [], []])[50:])[0] > 1e-3
        table.table.release(slot)
        slot = table.table.insert(edits, slot=slot)
        table.sync()
        assert (table.found[slot] == 0).all()
        table.table.release(slot)
        model.slot(table, [cut], 99)
        assert not table.found, "room of requests that are gone"


@pytest.mark.parametrize(("protect_first", "keys"), [(True, [6, 9, 11]), (False, [1, 6, 9])])
def test_the_first_key_above_the_threshold_can_be_protected_and_ties_go_to_the_first(
    protect_first, keys
):
    model = Model([20], 3, 1)
    table = model.table()
    find = FindKeys(ON, Rows(0, 16), 0.1, 2, 3, KeyRanges(((4, 5),)), protect_first, 0)
    slot = model.slot(table, [find], 20)
    table.reserve(slot)
    columns = torch.zeros(3, 20, dtype=torch.int64)
    for key in (1, 4, 6, 9, 11, 12):
        columns[:, key] = 2**30 * (
            16 - key
        )  # A half of each row that sees the key: all means are equal.
    columns[0, 14] = 2**31
    find_keys(table, slot, find, lines_of(table, 0), columns[[0, 2]], 20)
    for head in (0, 2):
        expected = reference.found_keys(find, columns.double() / 2**31, 0)[head]
        assert table.found[slot][0, head, 1:4].tolist() == expected
    assert table.found[slot][0, 2, 1:4].tolist() == keys
    assert table.found[slot][0, 1, 0] == 0


CHECKS = (
    test_observations_match_the_reference,
    test_chunks_change_no_bit_of_an_observation,
    test_generated_rows_are_observed_in_splits_of_their_keys_and_waves_change_no_bit,
)
"""Those that a GPU is asked too, by `benchmarks/kernel_gpu.py`."""
