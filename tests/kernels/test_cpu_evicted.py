"""The CPU kernel over a cache that an eviction has left: places below `kept` of each layer and KV head, and
keys from `evicted_end` on. Tolerances as in test_cpu_attention and test_cpu_observe."""

import numpy as np
import pytest
import torch
from tests.kernels.paged_model import Model, assert_close, layout_of, write_pairs, write_plain
from tests.kernels.test_cpu_attention import TOLERANCE, cut, every_head

from heed_kernels.cpu import ColumnSums
from heed_kernels.edits import (
    ALL_KEYS,
    OPEN,
    Gate,
    HeadGain,
    HeadSet,
    KeyBias,
    KeyRanges,
    KeyScale,
    MassTransfer,
    ObserveColumns,
    ObserveMass,
    Rows,
    TrailingKeys,
)
from heed_kernels.errors import EditError
from heed_kernels.evict import Evict, NormScore
from heed_kernels.reference import attention as reference
from heed_kernels.table import EditTable


def evict(prompt, layers=2, sinks=4):
    counts = (max(sinks, 1),) * layers
    return Evict(NormScore(), None, counts, prompt, sinks, 0, False, 0, False, Rows(prompt), 0)


def beside(query_heads, end):
    on = HeadSet(((1 << query_heads) - 1, 0b101 & ((1 << query_heads) - 1)))
    return [
        KeyBias(on, Rows(), KeyRanges(((0, 2), (end + 1, end + 9))), 1.5, 0),
        KeyBias(on, Rows(), TrailingKeys(end, 5), -1.0, 0),
        KeyScale(on, Rows(end + 3), ALL_KEYS, 1.25, -0.1, 0),
        MassTransfer(
            on, Rows(), KeyRanges(((0, 1), (end, end + 1))), KeyRanges(((1, end + 3),)), 0.5,
            Gate(), 0,
        ),
        HeadGain(on, Rows(), 0.5, 0),
    ]  # fmt: skip


def freed(model, request, kept, end):
    """Fill the blocks that nobody reads any more with NaN."""
    size = model.layout.block_size
    gone = model.block_table[request, -(-max(kept) // size) : end // size].long()
    model.pages[gone] = torch.nan


@pytest.mark.parametrize(
    "query_heads, kv_heads, head_dim, block_size, dtype, write",
    [
        (6, 2, 32, 128, torch.float32, write_plain),
        (14, 2, 64, 32, torch.bfloat16, write_plain),
        (4, 4, 128, 32, torch.float32, write_plain),
        (2, 2, 80, 16, torch.float16, write_plain),
        (7, 1, 64, 32, torch.bfloat16, write_pairs),
    ],
)
@pytest.mark.parametrize("end, rows", [(100, 1), (129, 63), (256, 40), (300, 100), (40, 250)])
@pytest.mark.parametrize("edited", [False, True])
def test_rows_read_what_each_kv_head_has_kept(
    query_heads, kv_heads, head_dim, block_size, dtype, write, end, rows, edited
):
    layout = layout_of(block_size, head_dim, dtype, write)
    model = Model(layout, query_heads, kv_heads, [end + rows], write, seed=end)
    table = model.table()
    edits = [evict(end), *(beside(query_heads, end) if edited else [])]
    slot = table.insert(edits)
    random = np.random.default_rng(end)
    table.evicted_end[slot] = end
    table.kept[slot] = random.integers(4, min(end, 90), table.kept[slot].shape)
    for layer in range(2):
        kept = table.kept[slot, layer].tolist()
        expected = reference.attend(
            model.query[0][end:].double(), model.key[0].double(), model.value[0].double(), edits,
            layer, model.scale, model.rope, None, reference.Evicted(kept, end),
        )  # fmt: skip
        freed(model, 0, table.kept[slot].max(axis=0).tolist(), end)
        whole = model.run(table, [(0, slot, end, end + rows)], layer)[0]
        assert_close(whole, expected, TOLERANCE[dtype], f"{kept} kept of {end}")
        for sizes in ((1,), (7, 64)):
            parts = [
                model.run(table, [(0, slot, end + a, end + b)], layer)[0]
                for a, b in cut(rows, *sizes)
            ]
            assert torch.equal(torch.cat(parts), whole), f"chunks of {sizes}"


def test_observations_are_of_what_is_left():
    end, total = 150, 200
    model = Model(layout_of(32, 64), 6, 2, [total])
    table = model.table()
    probe = ObserveMass(every_head(6), Rows(), KeyRanges(((0, 3), (end, OPEN))), 0)
    slot = table.insert([evict(end), probe])
    columns = ColumnSums(table, slot, ObserveColumns(every_head(6), Rows(), 0), 1, total)
    table.evicted_end[slot] = end
    table.kept[slot] = [[3, 4], [70, 5]]
    before = reference.attention_weights(
        model.query[0][end:].double(), model.key[0].double(), [], 1, model.scale,
        evicted=reference.Evicted([70, 5], end),
    )  # fmt: skip
    freed(model, 0, [70], end)
    seen = model.observe(table, (0, slot, end, total), 1, [columns])
    torch.testing.assert_close(
        torch.from_numpy(columns.as_float()), before.before.sum(1), rtol=0, atol=1e-4
    )
    lse = torch.from_numpy(seen.log_sum_exp).double()
    torch.testing.assert_close(lse, before.log_sum_exp.T, rtol=0, atol=2e-5)
    mass = reference.observed_mass(probe, before.before).T
    torch.testing.assert_close(
        torch.from_numpy(seen.mass[:, :, 0]).double(), mass, rtol=0, atol=1e-5
    )


def test_neighbours_of_an_evicted_request_keep_their_bits():
    model = Model(layout_of(32, 64), 6, 2, [200, 150])
    table = model.table()
    plain = table.insert([HeadGain(every_head(6), Rows(), 0.5, 0)])
    alone = model.run(table, [(1, plain, 60, 150)])[0]
    slot = table.insert([evict(120)])
    table.evicted_end[slot], table.kept[slot] = 120, 40
    together = model.run(table, [(0, slot, 120, 200), (1, plain, 60, 150)])[1]
    assert torch.equal(alone, together)


def test_rows_before_the_eviction_and_a_cache_of_other_heads_are_errors():
    model = Model(layout_of(32, 32), 6, 2, [100])
    table = model.table()
    slot = table.insert([evict(50), HeadGain(every_head(6), Rows(), 0.5, 0)])
    table.evicted_end[slot], table.kept[slot] = 50, 40
    with pytest.raises(EditError, match="before an eviction"):
        model.run(table, [(0, slot, 49, 60)])
    table = EditTable(8, 2, 6, 3, head_dim=32)
    slot = table.insert([evict(50)])
    with pytest.raises(EditError, match="KV heads"):
        model.run(table, [(0, slot, 50, 60)])
