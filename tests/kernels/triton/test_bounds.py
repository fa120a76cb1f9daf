"""Bad input is an error before a launch; damaged device data stays within the tensors."""

import numpy as np
import pytest
import torch
from tests.kernels.triton.paged_model import Model

from heed_kernels.edits import HeadGain, HeadSet, KeyBias, KeyRanges, Rows
from heed_kernels.errors import EditError
from heed_kernels.triton import StepWork, attend

ON = HeadSet((0b1, 0))
EDITS = [HeadGain(ON, Rows(), 0.5, 0), KeyBias(ON, Rows(), KeyRanges(((3, 9),)), 1.0, 0)]


def test_work_beyond_the_tensors_is_an_error():
    model = Model([40], 3, 1)
    table = model.table()
    slot = model.slot(table, EDITS, 40)
    plan, _ = model.plan(table, [(0, slot, 0, 40)])
    work = StepWork(table, 64, 4)
    work.fill(plan)
    query = model.query[0]
    caches = model.key_cache, model.value_cache
    rest = (table, work, 0, model.scale, model.rope)
    with pytest.raises(EditError, match="query"):
        attend(query[:39], query[:39].clone(), *caches, model.block_table, *rest)
    with pytest.raises(EditError, match="key 39"):
        attend(query, query.clone(), *caches, model.block_table[:, :2], *rest)
    with pytest.raises(EditError, match="3, 32"):
        attend(query[:, :2], query[:, :2].clone(), *caches, model.block_table, *rest)
    with pytest.raises(EditError, match="dtypes"):
        attend(query.half(), query.half(), *caches, model.block_table, *rest)
    with pytest.raises(EditError, match="layer 2"):
        attend(query, query.clone(), *caches, model.block_table, table, work, 2, 1.0, None)
    small = StepWork(table, 8, 4)
    with pytest.raises(EditError, match="8 tokens"):
        small.fill(plan)


@pytest.mark.parametrize(
    "name, value, message",
    [
        ("range_start", [0, 9, 3], "do not ascend"),
        ("range_start", [1, 3, 9], "do not ascend"),
        ("range_count", 2049, "do not ascend"),
        ("source_count", 65, "source keys"),
    ],
)
def test_a_damaged_table_is_an_error_that_names_the_slot(name, value, message):
    model = Model([40], 3, 1)
    table = model.table()
    slot = table.table.insert(EDITS, prompt_length=40)
    line = getattr(table.table, name)[slot]
    if line.ndim:
        line[:3] = value
    else:
        getattr(table.table, name)[slot] = value
    with pytest.raises(EditError, match=message) as error:
        table.sync()
    assert f"slot {slot}" in str(error.value)


def test_block_ids_outside_of_the_cache_read_inside_of_it():
    """What comes out means nothing, but it is made of the cache alone, not of the NaN around it."""
    model = Model([40], 3, 1)
    around = [torch.full((len(c) + 16, *c.shape[1:]), torch.nan) for c in (model.key_cache,) * 2]
    for memory, cache in zip(around, (model.key_cache, model.value_cache), strict=True):
        memory[8:-8] = cache.nan_to_num(0.0)
    model.key_cache, model.value_cache = (memory[8:-8] for memory in around)
    table = model.table()
    slot = model.slot(table, EDITS, 38)
    model.block_table[0, 1] = len(model.key_cache) + 3
    model.block_table[0, 0] = -7
    (output,) = model.run(table, [(0, slot, 0, 40)])
    assert not output.isnan().any()


def test_a_step_without_work_writes_nothing():
    model = Model([40], 3, 1)
    table = model.table()
    work = StepWork(table, 64, 4)
    output = torch.full_like(model.query[0], torch.nan)
    tensors = (model.query[0], output, model.key_cache, model.value_cache, model.block_table)
    for plan in (None, table.table.plan(*np.zeros((5, 0), np.int64))):
        work.fill(plan)
        attend(*tensors, table, work, 0, model.scale, model.rope)
    assert output.isnan().all()
