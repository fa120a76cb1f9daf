"""Observations on the CPU.

Tolerances: a float32 weight has an absolute error of a few 1e-6 where logits reach 30 (their rounding),
so masses are within 1e-5 and log-sum-exps, of that size, within 2e-5. A column sum over n rows is
within 1e-5 of the reference's times the square root of n, at most."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.kernels.paged_model import Model, assert_close, layout_of, write_pairs, write_plain
from tests.kernels.test_cpu_attention import cut, every_head, key_ranges, mixtures, rows
from tests.kernels.test_cpu_primitives import mixture, on_some, visible_ranges

from heed_kernels.cpu import ColumnSums, add_columns, find_keys, observe
from heed_kernels.cpu.observation_call import head_runs
from heed_kernels.cpu.observe_kernel import ONE_FIXED
from heed_kernels.edits import (
    ALL_KEYS,
    OPEN,
    FindKeys,
    FoundKeys,
    Gate,
    HeadSet,
    KeyBias,
    KeyRanges,
    MassTransfer,
    ObserveColumns,
    ObserveMass,
    Rows,
    VisibleKeys,
    VisibleRanges,
)
from heed_kernels.errors import EditError
from heed_kernels.ranges import PROBES
from heed_kernels.reference import attention as reference


def check_observed(model, edits, entry, layer=0):
    """Observe rows [first, end) of request 0 and compare with the reference."""
    table = model.table()
    slot = table.insert(edits)
    _, _, first, end = entry
    wanted = [e for e in edits if isinstance(e, ObserveColumns | FindKeys)]
    columns = [ColumnSums(table, slot, e, layer, end) for e in wanted]
    seen = model.observe(table, (0, slot, first, end), layer, columns)
    made = model.weights(0, edits, layer)
    lse = made.log_sum_exp[:, first:end].T
    finite = lse.isfinite()
    actual = torch.from_numpy(seen.log_sum_exp)
    assert torch.equal(actual.isneginf(), ~finite)
    assert_close(actual[finite], lse[finite], 2e-5, "log-sum-exp") if finite.any() else None
    sets = list(dict.fromkeys(e.keys for e in edits if isinstance(e, ObserveMass)))
    for index in range(PROBES):
        actual = torch.from_numpy(seen.mass[:, :, index]).double()
        if index < len(sets):
            probe = ObserveMass(HeadSet((0, 0)), Rows(), sets[index], 0)
            expected = reference.observed_mass(probe, made.before)[:, first:end].T
        else:
            expected = torch.zeros_like(actual)
        torch.testing.assert_close(actual, expected, rtol=0, atol=1e-5)
    outside = torch.ones(made.before.shape[1], dtype=torch.bool)
    outside[first:end] = False
    for target in columns:
        before = made.before.masked_fill(outside[:, None], 0)
        expected = reference.observed_columns(target.edit, before)[:, :end]
        assert target.heads.tolist() == list(target.edit.on.heads(layer))
        actual = torch.from_numpy(target.as_float())
        tolerance = 1e-5 * (end - first) ** 0.5
        torch.testing.assert_close(actual, expected[target.heads], rtol=0, atol=tolerance)


def observations(query_heads):
    on = on_some(query_heads)
    return [
        ObserveColumns(on, Rows(40, 90), 0),
        ObserveMass(on, Rows(), KeyRanges(((0, 4), (30, 31))), 0),
        ObserveMass(on, Rows(), KeyRanges(((3, 64), (90, OPEN))), 0),
        ObserveMass(on, Rows(), ALL_KEYS, 0),
        FindKeys(on, Rows(7, 200), 0.02, 3, 4, KeyRanges(((2, 3),)), False, 0),
        ObserveColumns(every_head(query_heads), Rows(), 0),
    ]


@pytest.mark.parametrize(
    "query_heads, kv_heads, head_dim, block_size, dtype, write",
    [
        (6, 2, 32, 128, torch.float32, write_plain),
        (7, 1, 64, 32, torch.float32, write_plain),
        (2, 2, 80, 16, torch.bfloat16, write_plain),
        (3, 1, 64, 96, torch.float16, write_plain),
        (7, 1, 64, 32, torch.bfloat16, write_pairs),
    ],
)
@pytest.mark.parametrize("length", [1, 63, 100, 129, 513])
def test_observations_match_the_reference(
    length, query_heads, kv_heads, head_dim, block_size, dtype, write
):
    layout = layout_of(block_size, head_dim, dtype, write)
    model = Model(layout, query_heads, kv_heads, [length], write)
    check_observed(model, observations(query_heads), (0, 0, 0, length), layer=1)


@settings(max_examples=40, suppress_health_check=list(HealthCheck))
@given(
    edits=mixtures(6),
    kept=st.lists(visible_ranges(), max_size=1),
    probes=st.lists(key_ranges(), max_size=PROBES),
    wanted=rows(),
    length=st.sampled_from([1, 63, 100, 200]),
    block_size=st.sampled_from([16, 32, 128]),
    part=st.floats(0, 1),
)
def test_observations_of_random_mixtures_match_the_reference(
    edits, kept, probes, wanted, length, block_size, part
):
    model = Model(layout_of(block_size, 32), 6, 2, [length])
    edits = [e for e in edits if not (isinstance(e, VisibleKeys) and e.rolling)] + kept
    edits += [ObserveMass(every_head(6), Rows(), keys, 0) for keys in probes]
    edits.append(ObserveColumns(HeadSet((0b101101, 0b101101)), wanted, 0))
    check_observed(model, edits, (0, 0, int(part * (length - 1)), length))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("query_heads, kv_heads", [(6, 2), (7, 1)])
def test_chunks_and_threads_change_no_bit_of_what_is_observed(query_heads, kv_heads, dtype):
    model = Model(layout_of(32, 64, dtype), query_heads, kv_heads, [300])
    table = model.table()
    edits = [*mixture(query_heads, 64), *observations(query_heads)[:-2]]
    slot = table.insert(edits)

    def observed(chunks):
        columns = ColumnSums(table, slot, edits[-4], 0, 300)
        every = ColumnSums(table, slot, observations(query_heads)[-1], 0, 300)
        parts = [model.observe(table, (0, slot, a, b), 0, [columns, every]) for a, b in chunks]
        return (
            np.concatenate([part.log_sum_exp for part in parts]),
            np.concatenate([part.mass for part in parts]),
            columns.sums,
            every.sums,
        )

    whole = observed([(0, 300)])
    assert all(array.any() for array in whole)
    for sizes in ((1,), (63, 100, 129), (129, 1), (7,)):
        for one, other in zip(whole, observed(cut(300, *sizes)), strict=True):
            assert np.array_equal(one, other), f"chunks of {sizes}"
    torch.set_num_threads(1)
    try:
        alone = observed([(0, 300)])
    finally:
        torch.set_num_threads(2)
    for one, other in zip(whole, alone, strict=True):
        assert np.array_equal(one, other)


def act(query_heads, moved=0, protect_first=True):
    """ACT's edits: keys that draw attention are found over the prompt, and lose most of it from row
    `moved` on."""
    on = on_some(query_heads)
    return [
        KeyBias(every_head(query_heads), Rows(), KeyRanges(((50, 53), (77, 78), (120, 121))), 3.0, 0),
        FindKeys(on, Rows(0, 250), 0.03, 5, 3, KeyRanges(((51, 52),)), protect_first, 0),
        MassTransfer(on, Rows(moved), FoundKeys(), ALL_KEYS, 0.6, Gate(), 0),
    ]  # fmt: skip


@pytest.mark.parametrize("protect_first", [False, True])
@pytest.mark.parametrize("sizes", [(300,), (100, 37)])
def test_keys_are_observed_and_found_and_lose_mass_in_one_forward(sizes, protect_first):
    model = Model(layout_of(32, 64), 6, 2, [300])
    # Rows from 250 on are edited: all rows in which keys are sought lie before them.
    edits = act(6, 250, protect_first)
    find = edits[1]
    table = model.table()
    slot = table.insert(edits)
    for layer in range(2):
        made = model.weights(0, edits, layer)
        found = reference.found_keys(find, reference.observed_columns(find, made.before), layer)
        assert sum(map(len, found)) > 6
        columns, outputs = ColumnSums(table, slot, find, layer, 300), []
        for first, end in cut(300, *sizes):
            model.observe(table, (0, slot, first, end), layer, [columns])
            find_keys(table, slot, layer, find, columns.sums, end)
            outputs += model.run(table, [(0, slot, first, end)], layer)
        for head, keys in enumerate(found):
            count = table.found_count[slot, layer, head]
            assert table.found_keys[slot, layer, head, :count].tolist() == keys
        output = torch.cat(outputs)[250:]
        assert_close(output, model.expected(0, edits, layer, 250, found), 1e-5, "last rows")


def test_a_head_in_which_nothing_is_found_stays_as_it_is_bit_for_bit():
    model = Model(layout_of(32, 64), 6, 2, [129])
    table = model.table()
    edits = act(6)
    slot, plain = table.insert(edits), table.insert(edits[:1])
    assert torch.equal(
        model.run(table, [(0, slot, 0, 129)])[0], model.run(table, [(0, plain, 0, 129)])[0]
    )


def test_of_equal_means_the_first_keys_are_found():
    table = Model(layout_of(32, 32), 6, 2, [16]).table()
    find = FindKeys(every_head(6), Rows(0, 30), 0.01, 3, 3, KeyRanges(((4, 5),)), False, 0)
    slot = table.insert(
        [find, MassTransfer(every_head(6), Rows(), FoundKeys(), ALL_KEYS, 1, Gate(), 0)]
    )
    rows_that_see = 30 - np.arange(30)
    mean = np.zeros(30)
    mean[[2, 4, 9, 12, 20, 26, 28]] = [0.25, 1, 0.25, 0.25, 0.5, 0.25, 1]
    columns = np.tile((mean * rows_that_see * ONE_FIXED).astype(np.int64), (6, 1))
    find_keys(table, slot, 0, find, columns, 30)
    expected = reference.found_keys(find, torch.from_numpy(columns / ONE_FIXED), 0)
    assert expected[0] == [2, 9, 20]
    assert table.found_keys[slot, 0, :, :3].tolist() == expected
    assert table.found_count[slot, 0].tolist() == [3] * 6


def test_a_rank_observes_its_own_heads():
    from heed_kernels.table import EditTable

    model = Model(layout_of(32, 32), 6, 2, [100])
    edits = act(6)
    whole = model.table()
    slot = whole.insert(edits)
    every = ColumnSums(whole, slot, edits[1], 0, 100)
    seen = model.observe(whole, (0, slot, 0, 100), 0, [every])
    find_keys(whole, slot, 0, edits[1], every.sums, 100)
    table = EditTable(8, 2, 6, 2, head_start=3, local_query_heads=3, head_dim=32)
    slot = table.insert(edits)
    model.query[0] = model.query[0][:, 3:].contiguous()
    model.pages = model.pages[:, 1:]
    own = ColumnSums(table, slot, edits[1], 0, 100)
    part = model.observe(table, (0, slot, 0, 100), 0, [own])
    find_keys(table, slot, 0, edits[1], own.sums, 100)
    assert np.array_equal(part.log_sum_exp, seen.log_sum_exp[:, 3:])
    assert (own.heads + 3).tolist() == [head for head in every.heads if head >= 3] != []
    assert np.array_equal(own.sums, every.sums[every.heads >= 3])
    assert np.array_equal(table.found_keys[slot, 0], whole.found_keys[0, 0, 3:])


def test_requests_observed_together_are_observed_as_alone():
    model = Model(layout_of(32, 64), 6, 2, [129, 100, 63])
    table = model.table()
    find = observations(6)[0]
    probe = ObserveMass(every_head(6), Rows(), KeyRanges(((3, 64),)), 0)
    slots = [table.insert([*act(6)[:1], find]), table.insert([find, probe]), table.insert([find])]
    spans = [(60, 129), (0, 100), (10, 50)]
    alone, sums = [], []
    for request, (slot, span) in enumerate(zip(slots, spans, strict=True)):
        sums.append(ColumnSums(table, slot, find, 0, 129))
        alone.append(model.observe(table, (request, slot, *span), 0, sums[-1:]))
    query = [model.query[i][a:b] for i, (a, b) in enumerate(spans)]
    query.insert(2, torch.full((5, 6, 64), torch.nan))  # tokens of somebody else
    items = [(slots[2], 174, 40, 10, 2), (slots[0], 0, 69, 60, 0), (slots[1], 69, 100, 0, 1)]
    again = [ColumnSums(table, slot, find, 0, 129) for slot in slots]
    seen = observe(
        torch.cat(query), model.pages, model.block_table, table, items, 0, model.scale, model.rope,
        model.layout, again[::-1],
    )  # fmt: skip
    for array in ("log_sum_exp", "mass"):
        together = getattr(seen, array)
        assert np.isnan(together[169:174]).all()
        apart = np.concatenate([getattr(each, array) for each in alone])
        assert np.array_equal(np.delete(together, range(169, 174), axis=0), apart)
    for one, other in zip(again, sums, strict=True):
        assert one.sums.any() and np.array_equal(one.sums, other.sums)


@pytest.mark.parametrize(
    ("wanted", "group", "runs"),
    [
        ("111111", 3, [(0, 3), (3, 3)]),
        ("011110", 3, [(1, 2), (3, 2)]),
        ("101", 3, [(0, 1), (2, 1)]),
        ("0011", 1, [(2, 1), (3, 1)]),
        ("0000", 4, []),
    ],
)
def test_runs_of_wanted_heads_end_where_a_kv_head_does(wanted, group, runs):
    found = head_runs(np.array([head == "1" for head in wanted]), group)
    assert found.tolist() == [list(run) for run in runs]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("query_heads, kv_heads", [(6, 2), (7, 1), (3, 3)])
@pytest.mark.parametrize("sizes", [(300,), (1, 100, 7)])
def test_sums_of_chosen_heads_are_the_bits_of_all_heads(query_heads, kv_heads, dtype, sizes):
    model = Model(layout_of(32, 64, dtype), query_heads, kv_heads, [300, 129])
    edits = [*mixture(query_heads, 64), *act(query_heads)[:1]]
    table = model.table()
    slots = [table.insert(edits), table.insert(edits[:1])]
    every = ObserveColumns(every_head(query_heads), Rows(20, 250), 0)
    whole = ColumnSums(table, slots[0], every, 0, 300)
    for first, end in cut(300, *sizes):
        model.observe(table, (0, slots[0], first, end), 0, [whole])
    for chosen in (0b1, 0b101, 0b110, 0b100 << query_heads - 3):
        on = HeadSet((chosen, 0))
        own = ColumnSums(table, slots[0], ObserveColumns(on, Rows(20, 250), 0), 0, 300)
        # A neighbour in the same call wants other heads.
        other = ColumnSums(table, slots[1], every, 0, 129)
        for first, end in cut(300, *sizes):
            query = torch.cat([model.query[0][first:end], model.query[1]])
            items = [(slots[0], 0, end - first, first, 0), (slots[1], end - first, 129, 0, 1)]
            add_columns(
                query, model.pages, model.block_table, table, items, 0, model.scale, model.rope,
                model.layout, [own, other],
            )  # fmt: skip
        assert own.sums.any() and np.array_equal(own.sums, whole.sums[list(on.heads(0))])


def test_heads_that_are_not_wanted_are_not_looked_at():
    """Their queries, and keys that only they share, are not numbers: nothing of it comes up anywhere."""
    model = Model(layout_of(32, 64), 6, 2, [129])
    table = model.table()
    edit = ObserveColumns(HeadSet((0b000101, 0)), Rows(), 0)
    slot = table.insert([edit])
    expected = ColumnSums(table, slot, edit, 0, 129)
    model.observe(table, (0, slot, 0, 129), 0, [expected])
    model.query[0][:, [1, 3, 4, 5]] = torch.nan
    model.pages[:, 1] = torch.nan
    columns = ColumnSums(table, slot, edit, 0, 129)
    add_columns(
        model.query[0], model.pages, model.block_table, table, [(slot, 0, 129, 0, 0)], 0,
        model.scale, model.rope, model.layout, [columns],
    )  # fmt: skip
    assert columns.sums.shape == (2, 129)
    assert expected.sums.any() and np.array_equal(columns.sums, expected.sums)


def test_blocks_that_no_row_sees_are_not_observed():
    model = Model(layout_of(16, 32), 6, 2, [400])
    edits = [
        VisibleRanges(Rows(), ((0, 5, 0), (64, 70, 3), (350, OPEN, 0)), 0),
        ObserveColumns(every_head(6), Rows(), 0),
        ObserveMass(every_head(6), Rows(), ALL_KEYS, 0),
    ]
    freed = [block for block in range(25) if block not in (0, 4, *range(21, 25))]
    model.pages[model.block_table[0, freed].long()] = torch.nan
    check_observed(model, edits, (0, 0, 380, 400))


def test_column_sums_that_are_too_small_are_an_error():
    model = Model(layout_of(32, 32), 6, 2, [100])
    table = model.table()
    edit = ObserveColumns(every_head(6), Rows(), 0)
    slot = table.insert([edit])
    with pytest.raises(EditError, match="too small"):
        model.observe(table, (0, slot, 0, 100), 0, [ColumnSums(table, slot, edit, 0, 99)])
