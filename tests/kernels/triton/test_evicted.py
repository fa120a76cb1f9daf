"""Rows that come after an eviction: they read what was kept in their layer and head, and what came later."""

import numpy as np
import pytest
import torch
from tests.kernels.triton.paged_model import Model, assert_close
from tests.kernels.triton.test_observe import observed

from heed_kernels.edits import ALL_KEYS, HeadGain, HeadSet, KeyBias, KeyRanges, KeyScale, Rows
from heed_kernels.evict import Evict, NormScore
from heed_kernels.reference import attention as reference

LENGTH, PROMPT, END = 330, 300, 310
ON = HeadSet((0b1011, 0b1111))
KEPT = np.array([[40, 7], [310, 100]], np.int32)
"""By layer and KV head: between tiles, in a tile, everything, and none of the second split's keys."""
EVICT = Evict(NormScore(), None, (60, 310), 310, 4, 0, False, 0, False, Rows(PROMPT), 0)
EDITS = [
    EVICT,
    KeyBias(ON, Rows(), KeyRanges(((0, 2),)), 0.7, 0),
    KeyScale(ON, Rows(PROMPT), ALL_KEYS, 1.25, -0.1, 0),
    HeadGain(ON, Rows(), 0.5, 0),
]


def evicted(edits, length=LENGTH):
    """The model, its table and the slot after the event at END."""
    model = Model([length], 4, 2, head_dim=16)
    table = model.table()
    slot = model.slot(table, edits, PROMPT)
    table.reserve(slot)
    table.found[slot].fill_(1)
    table.table.kept[slot], table.table.evicted_end[slot] = KEPT, END
    table.evicted(slot)
    # What searches have found is not touched by it.
    assert (table.found[slot] == 1).all()
    return model, table, slot


def expected(model, edits, layer, gone):
    parts = (part[0].double() for part in (model.query, model.key, model.value))
    return reference.attend(*parts, edits, layer, model.scale, model.rope, None, gone)


@pytest.mark.parametrize("layer", range(2))
@pytest.mark.parametrize("edits", [EDITS[:1], EDITS], ids=["alone", "beside others"])
def test_generated_rows_match_the_reference(edits, layer):
    model, table, slot = evicted(edits)
    # Freed blocks may be another request's by now, or hold no numbers.
    hidden = slice(int(KEPT[layer].max()) // 16 + 1, END // 16)
    model.key_cache[model.block_table[0, hidden].long()] = torch.nan
    model.value_cache[model.block_table[0, hidden].long()] = torch.nan
    (output,) = model.run(table, [(0, slot, END, END + 4)], layer)
    gone = reference.Evicted(KEPT[layer].tolist(), END)
    wanted = expected(model, edits, layer, gone)[END : END + 4]
    assert_close(output, wanted, 1e-5, f"layer {layer}")


def test_columns_of_later_rows_have_nothing_of_what_was_evicted():
    model, table, slot = evicted(EDITS, END + 4)
    rows = (END, END + 4)
    _, _, columns = observed(model, table, slot, [rows], rows, 0b1111)
    gone = reference.Evicted(KEPT[0].tolist(), END)
    tensors = model.query[0].double(), model.key[0].double()
    made = reference.attention_weights(
        *tensors, EDITS, 0, model.scale, model.rope, None, gone
    )  # fmt: skip
    assert_close(columns.double() / 2**31, made.before[:, END:].sum(1), 1e-6, "columns")


def test_a_request_that_starts_again_sees_all_of_its_keys():
    model, table, slot = evicted(EDITS[:1])
    table.table.release(slot)
    assert model.slot(table, EDITS[:1], PROMPT) == slot
    (output,) = model.run(table, [(0, slot, END, END + 1)])
    wanted = expected(model, EDITS[:1], 0, reference.Evicted([0, 0], 0))[END : END + 1]
    assert_close(output, wanted, 1e-5, "from the start")
