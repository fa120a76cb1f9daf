"""Offsets beyond 31 bits: a cache, a step or a block table may be larger than 2^31 elements."""

import mmap

import pytest
import torch
from tests.kernels.triton.paged_model import Model
from triton.runtime.interpreter import GridExecutor

from heed_kernels.edits import ALL_KEYS, Gate, HeadSet, KeyBias, KeyRanges, MassTransfer, Rows
from heed_kernels.triton import StepWork, attend

UNRESERVED = 0x4000
"""MAP_NORESERVE, which Python names from 3.12 on."""
MARGIN = 1 << 33
"""Bytes before the first element: an offset that has wrapped to 32 bits leads there."""


def spread(tensor, strides):
    """The same elements at `strides`, in memory of which just the pages that are written exist."""
    elements = 1 + sum((n - 1) * stride for n, stride in zip(tensor.shape, strides, strict=True))
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | UNRESERVED
    memory = mmap.mmap(-1, MARGIN + elements * tensor.element_size(), flags=flags)
    flat = torch.frombuffer(memory, dtype=tensor.dtype)
    far = flat.as_strided(tensor.shape, strides, MARGIN // tensor.element_size())
    return far.copy_(tensor)


@pytest.mark.parametrize("what", ["blocks", "tokens of a block", "KV heads", "rows", "block table"])
def test_offsets_beyond_31_bits_change_no_bit(what, monkeypatch):
    """Of prompt rows and of generated ones."""
    # What the interpreter copies back is the same memory, and all of it.
    monkeypatch.setattr(GridExecutor, "_restore_args_dev", lambda *arguments: None)
    heads = 3 if what == "KV heads" else 1
    model = Model([40] * 5, heads, heads, 16, 16, torch.float16)
    table = model.table()
    on = HeadSet(((1 << heads) - 1, 0))
    edits = [
        KeyBias(on, Rows(), KeyRanges(((3, 9),)), 1.0, 0),
        MassTransfer(on, Rows(), KeyRanges(((0, 1), (31, 32))), ALL_KEYS, 0.5, Gate(), 1),
    ]
    slots = model.slot(table, edits, 37), model.slot(table, edits, 40)
    work = StepWork(table, 7, 2)
    work.fill(model.plan(table, [(4, slots[0], 35, 40), (3, slots[1], 38, 40)])[0])
    query = torch.cat([model.query[4][35:40], model.query[3][38:40]])
    caches = model.key_cache, model.value_cache
    near = [query, torch.full_like(query, torch.nan), *caches, model.block_table]
    far = [query, torch.full_like(query, torch.nan), *caches, model.block_table]
    if what == "rows":
        far[:2] = (spread(tensor, (1 << 29, 16, 1)) for tensor in far[:2])
    elif what == "block table":
        far[4] = spread(model.block_table, (1 << 29, 1))
    else:
        strides = {
            "blocks": (1 << 30, 16, 16, 1),
            "tokens of a block": (16, 1 << 28, 16, 1),
            "KV heads": (256, 16, 1 << 30, 1),
        }[what]
        far[2:4] = (spread(cache, strides) for cache in caches)
    for tensors in (near, far):
        attend(*tensors, table, work, 0, model.scale, model.rope)
    assert not near[1].isnan().any()
    assert torch.equal(near[1], far[1])
