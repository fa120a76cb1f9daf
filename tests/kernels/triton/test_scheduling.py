"""The same request gives the same bits however it is scheduled."""

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.kernels.triton.paged_model import Model, assert_close
from tests.kernels.triton.test_primitives import everything

from heed_kernels.edits import (
    ALL_KEYS,
    FindKeys,
    FoundKeys,
    Gate,
    HeadGain,
    HeadSet,
    KeyBias,
    KeyRanges,
    MassTransfer,
    Rows,
    TrailingKeys,
    VisibleKeys,
)
from heed_kernels.plan import BLOCK_TABLE_ROW, FIRST_POSITION, FIRST_TOKEN, ROWS, SLOT
from heed_kernels.triton import StepWork, find_keys, shapes
from heed_kernels.triton.step_work import PHASE, tiles_of

ALL = HeadSet((0b111, 0b111))


def test_the_smaller_tiles_of_older_devices_match_the_reference_in_any_chunks(monkeypatch):
    monkeypatch.setattr(shapes, "machine", lambda device: (4, 80))
    model = Model([100], 3, 1, 32, 16)
    table = model.table()
    assert StepWork(table, 100, 1).tile_rows == 10
    edits = everything(3, 32)
    slot = model.slot(table, edits, 100)
    (whole,) = model.run(table, [(0, slot, 0, 100)])
    assert_close(whole, model.expected(0, edits), 1e-5, "tiles of 10 rows")
    parts = [model.run(table, [(0, slot, a, b)])[0] for a, b in ((0, 33), (33, 100))]
    assert torch.equal(torch.cat(parts), whole)


@pytest.mark.parametrize("tile_rows", [1, 10, 64])
def test_tiles_are_cut_at_absolute_multiples_and_none_is_empty(tile_rows):
    runs = np.zeros((3, 6), np.int32)
    runs[:, SLOT], runs[:, BLOCK_TABLE_ROW], runs[:, PHASE] = [5, 3, 8], [0, 1, 2], [0, 1, 0]
    runs[:, FIRST_TOKEN], runs[:, FIRST_POSITION] = [0, 40, 41], [95, 63, 0]
    runs[:, ROWS] = [40, 1, 129]
    rows_of: list[tuple[int, ...]] = []
    for slot, token, rows, position, line, phase, *_ in tiles_of(runs, tile_rows).tolist():
        assert rows > 0
        assert position // tile_rows == (position + rows - 1) // tile_rows
        rows_of += [(slot, line, phase, token + i, position + i) for i in range(rows)]
    expected = [
        (run[SLOT], run[BLOCK_TABLE_ROW], run[PHASE], run[FIRST_TOKEN] + i, run[FIRST_POSITION] + i)
        for run in runs.tolist()
        for i in range(run[ROWS])
    ]
    assert sorted(rows_of) == sorted(expected)


@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)]
)
def test_chunks_change_no_bit(dtype):
    model = Model([129], 3, 1, 32, 16, dtype)
    table = model.table()
    edits = [*everything(3, 32), HeadGain(ALL, Rows(), 0.9, 8)]
    slot = model.slot(table, edits, 200)
    (whole,) = model.run(table, [(0, slot, 40, 129)])
    chunks = pairwise((40, 63, 64, 129))
    parts = [model.run(table, [(0, slot, a, b)])[0] for a, b in chunks]
    assert torch.equal(torch.cat(parts), whole)


@pytest.fixture(scope="module")
def two_requests():
    """Model, table, the request's rows, (request, slot, first row, end row), and their outputs alone."""
    model = Model([280, 40], 3, 1)
    table = model.table()
    one = (0, model.slot(table, everything(3, 32), 276), 271, 280)
    other = (1, model.slot(table, [KeyBias(ALL, Rows(), KeyRanges(((2, 5),)), 2.0, 0)], 38), 36, 40)
    return model, table, [one, other], [model.run(table, [entry])[0] for entry in (one, other)]


@settings(max_examples=3, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_cuts_orders_and_capacities_change_no_bit(two_requests, data):
    """Prompt rows and generated ones, each step in a random order and with a random room for splits."""
    model, table, work, whole = two_requests
    steps = data.draw(st.integers(1, 4), "steps")
    cuts = [
        sorted(data.draw(st.lists(st.integers(first, end), min_size=steps - 1, max_size=steps - 1)))
        for _, _, first, end in work
    ]
    parts: list[list[torch.Tensor]] = [[], []]
    for step in range(steps):
        batch = []
        for i, (request, slot, first, end) in enumerate(work):
            bounds = [first, *cuts[i], end]
            if bounds[step] < bounds[step + 1]:
                batch.append((request, slot, bounds[step], bounds[step + 1]))
        batch = data.draw(st.permutations(batch), "order")
        capacity = data.draw(st.sampled_from([32, 33, 64, 1024]), "capacity")
        outputs = model.run(table, batch, capacity=capacity) if batch else []
        for (request, *_), output in zip(batch, outputs, strict=True):
            parts[request].append(output)
    for request, outputs in enumerate(parts):
        assert torch.equal(torch.cat(outputs), whole[request]), f"request {request}, cuts {cuts}"


def test_a_replay_of_generated_rows_and_waves_change_no_bit():
    """Rows that were generated one at a time come again in one pass after preemption, with prompt rows
    before them, and in several waves where their splits do not fit into one."""
    model = Model([300], 3, 1)
    table = model.table()
    slot = model.slot(table, [*everything(3, 32), HeadGain(ALL, Rows(), 0.9, 8)], 276)
    (replayed,) = model.run(table, [(0, slot, 270, 300)])
    single = [model.run(table, [(0, slot, row, row + 1)])[0] for row in (276, 299)]
    assert torch.equal(torch.cat(single), replayed[[6, 29]])
    # Two splits of each row, and room for those of 16 rows.
    (waves,) = model.run(table, [(0, slot, 276, 300)], capacity=32)
    assert torch.equal(waves, replayed[6:])


def test_neighbours_and_their_order_change_no_bit():
    model = Model([100, 129, 63], 3, 1)
    table = model.table()
    first = model.slot(table, [*everything(3, 32), HeadGain(ALL, Rows(), 0.9, 8)], 128)
    second = model.slot(table, [KeyBias(ALL, Rows(), KeyRanges(((2, 5),)), 2.0, 0)], 50)
    work = [(0, first, 60, 100), (1, first, 127, 129), (2, second, 48, 52)]
    alone = [model.run(table, [entry])[0] for entry in work]
    for order in ((0, 1, 2), (2, 0, 1)):
        together = model.run(table, [work[i] for i in order])
        for i, output in zip(order, together, strict=True):
            assert torch.equal(output, alone[i])


def test_heads_that_are_not_selected_are_the_kernels_result_without_the_edit_bit_for_bit():
    """Given the same ranges: where they are cut decides how keys are put together in tiles."""
    model = Model([300], 3, 1)
    some = HeadSet((0b101, 0))
    edits = [
        KeyBias(some, Rows(), KeyRanges(((0, 1), (7, 30))), 0.7, 0),
        KeyBias(some, Rows(), TrailingKeys(3, 20), -1.0, 1),
        MassTransfer(some, Rows(), KeyRanges(((2, 4), (40, 41))), ALL_KEYS, 0.6, Gate(), 2),
    ]
    same_ranges = [KeyBias(some, Rows(), KeyRanges(((0, 1), (7, 30))), 0.1, 0)]
    table = model.table()
    for work, prompt in (((60, 100), 100), ((299, 300), 10)):
        one = model.slot(table, edits, prompt)
        other = model.slot(table, same_ranges, prompt)
        (with_edits,) = model.run(table, [(0, one, *work)])
        (without,) = model.run(table, [(0, other, *work)])
        assert torch.equal(with_edits[:, 1], without[:, 1])
        assert not torch.equal(with_edits[:, 0], without[:, 0])


def test_heads_in_which_no_key_is_sought_keep_their_bits_when_others_have_found_some():
    model = Model([300], 3, 1)
    some = HeadSet((0b101, 0))
    bias = KeyBias(some, Rows(), KeyRanges(((0, 1), (7, 30))), 0.1, 0)
    find = FindKeys(some, Rows(0, 300), 0.1, 1, 8, KeyRanges(()), False, 1)
    moved = MassTransfer(some, Rows(), FoundKeys(), ALL_KEYS, 0.6, Gate(), 1)
    columns = torch.zeros(2, 300, dtype=torch.int64)
    columns[:, [3, 20, 55]] = 2**31 * 200
    table = model.table()
    lines = torch.from_numpy(table.table.own_heads(some, 0))
    for work, prompt in (((60, 100), 100), ((299, 300), 10)):
        one = model.slot(table, [bias, find, moved], prompt)
        other = model.slot(table, [bias], prompt)
        find_keys(table, one, find, lines, columns, 300)
        assert table.found[one][0, :, 0].tolist() == [3, 0, 3]
        (with_found,) = model.run(table, [(0, one, *work)])
        (without,) = model.run(table, [(0, other, *work)])
        assert torch.equal(with_found[:, 1], without[:, 1])
        assert not torch.equal(with_found[:, 0], without[:, 0])
        table.table.release(one)


HIDDEN_SOURCES = MassTransfer(
    ALL, Rows(), KeyRanges(((1, 2), (40, 43), (380, 381))), ALL_KEYS, 0.6, Gate(), 1
)


@pytest.mark.parametrize("transfers", [[], [HIDDEN_SOURCES]])
@pytest.mark.parametrize("prompt_length", [400, 0])
def test_blocks_of_hidden_keys_are_never_read(prompt_length, transfers):
    """Whether or not some of them are sources."""
    model = Model([400], 3, 1, 32, 16)
    edits = [VisibleKeys(4, 30, False, 0), *transfers]
    expected = model.expected(0, edits)[399:]
    model.key_cache[model.block_table[0, 1:23].long()] = torch.nan
    model.value_cache[model.block_table[0, 1:23].long()] = torch.nan
    table = model.table()
    (output,) = model.run(table, [(0, model.slot(table, edits, prompt_length), 399, 400)])
    assert_close(output, expected, 1e-5, "last row")


def test_slots_can_be_taken_again_and_tables_mirror_what_changed():
    model = Model([64], 3, 1)
    table = model.table(slots=2)
    for round_ in range(3):
        edits = [HeadGain(ALL, Rows(), 0.5 + round_, 0), *everything(3, 32)[: 2 * round_]]
        slot = model.slot(table, edits, 64)
        (output,) = model.run(table, [(0, slot, 43, 64)])
        assert_close(output, model.expected(0, edits)[43:], 1e-5, f"round {round_}")
        for name in ("lines", "vectors", "mixes", "mix_heads"):
            mirror = getattr(table, name).numpy()
            assert np.array_equal(mirror, getattr(table.table, name).rows), name
        table.table.release(slot)
