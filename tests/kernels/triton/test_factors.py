"""Generated rows are multiplied by what a choice of heads has left on the device."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.kernels.triton.paged_model import Model, assert_close

from heed_kernels.edits import (
    OPEN,
    Edit,
    HeadChoice,
    HeadGain,
    HeadMix,
    HeadSet,
    KeyRanges,
    Rows,
)

PROMPT, LENGTH, HEADS = 50, 54, 6
EVERY = HeadSet((0b111111, 0b111111))
CHOICE = HeadChoice(
    HeadSet((0b111111, 0)),
    Rows(PROMPT - 1, OPEN),
    PROMPT - 1,
    KeyRanges(((3, 9),)),
    2,
    2.0,
    True,
    0,
)
EVERY_ROW = replace(CHOICE, rows=Rows())
VECTORS = np.random.default_rng(5).standard_normal((12, 32)).astype("<f4").tobytes()
OTHERS: list[Edit] = [
    HeadGain(EVERY, Rows(20), 0.5, 1),
    HeadMix(EVERY, Rows(20), 0.3, VECTORS, 2),
]
FACTORS = torch.tensor([1.0, 2.0, 1.0, 3.0, 0.5, 1.0])


def test_factors_hold_for_generated_rows_of_their_layer_and_slot():
    model = Model([LENGTH, LENGTH], HEADS, 2)
    table = model.table(multiplies=True)
    chosen = model.slot(table, [CHOICE, *OTHERS], PROMPT)
    beside = model.slot(table, OTHERS, PROMPT)
    table.multiply(chosen, 0, FACTORS)
    rows = torch.arange(LENGTH)[:, None] >= PROMPT
    for layer in range(2):
        first, second = model.run(
            table, [(0, chosen, 0, LENGTH), (1, beside, 0, LENGTH)], layer=layer
        )
        expected = model.expected(0, OTHERS, layer)
        if layer == 0:
            expected = expected * torch.where(rows, FACTORS, 1.0)[:, :, None]
        assert_close(first[20:], expected[20:], 1e-5, f"layer {layer}")
        assert_close(second[20:], model.expected(1, OTHERS, layer)[20:], 1e-5, "beside")


@pytest.mark.parametrize("choice", [CHOICE, EVERY_ROW])
def test_rows_of_a_choice_are_computed_where_a_kernel_multiplies_and_nowhere_else(choice):
    for multiplies in (True, False):
        model = Model([LENGTH], HEADS, 2)
        table = model.table(multiplies=multiplies)
        slot = model.slot(table, [choice], PROMPT)
        (output,) = model.run(table, [(0, slot, 0, LENGTH)])
        (later,) = model.run(table, [(0, slot, 0, LENGTH)], layer=1)
        written = ~output.isnan().all(dim=2).all(dim=1)
        assert written.tolist() == [multiplies and row >= PROMPT - 1 for row in range(LENGTH)]
        assert later.isnan().all()
        if multiplies:
            assert_close(output[PROMPT - 1 :], model.expected(0, [])[PROMPT - 1 :], 1e-5, "plain")


def test_a_choice_of_several_prompt_rows_is_no_kernel_s_matter():
    several = HeadChoice(
        CHOICE.on, Rows(PROMPT - 2, OPEN), PROMPT - 2, CHOICE.keys, 2, 2.0, True, 0
    )
    ends = HeadChoice(
        CHOICE.on, Rows(PROMPT - 1, PROMPT + 2), PROMPT - 1, CHOICE.keys, 2, 2.0, True, 0
    )
    model = Model([LENGTH], HEADS, 2)
    for edit in several, ends:
        table = model.table(multiplies=True)
        slot = model.slot(table, [edit], PROMPT)
        assert not table.table.active[slot].any()


def test_the_next_request_of_a_slot_is_not_multiplied():
    model = Model([LENGTH], HEADS, 2)
    table = model.table(slots=1, multiplies=True)
    slot = model.slot(table, [CHOICE], PROMPT)
    table.multiply(slot, 0, FACTORS)
    table.table.release(slot)
    slot = model.slot(table, OTHERS, PROMPT)
    (output,) = model.run(table, [(0, slot, 0, LENGTH)])
    assert_close(output[20:], model.expected(0, OTHERS)[20:], 1e-5, "the next")
