"""What the kernels hold is allocated when it is asked for, and not in a launch."""

from typing import Any

import pytest
import torch
from tests.kernels.triton.paged_model import Model

from heed_kernels.triton import ColumnWork, StepWork, warm_up


@pytest.mark.parametrize("reserved", [True, False])
def test_nothing_is_allocated_by_a_launch_that_was_reserved_for(monkeypatch, reserved):
    model = Model([40], 3, 1)
    table = model.table()
    work, columns = StepWork(table, 64, 4), ColumnWork(table, 64, 4)
    dtype, head_dim = model.query[0].dtype, model.key_cache.shape[3]
    if reserved:
        work.reserve(head_dim, dtype)
        columns.reserve(head_dim, dtype)
    made: list[Any] = []
    stock = torch.empty
    # All buffers are made by this function.
    monkeypatch.setattr(
        torch, "empty", lambda *shape, **rest: made.append(shape) or stock(*shape, **rest)
    )
    rest = {"dtype": dtype, "scale": model.scale, "ropes": [None]}
    warm_up(table, work, model.key_cache, model.value_cache, **rest)
    columns.warm_up(model.key_cache, **rest)
    assert bool(made) is not reserved, made
