"""Tolerances: float32 rounding of logits (a few units of 6e-8 times logits up to about 10, larger
where edits scale them) becomes a relative error of the weights, so 1e-5 of the largest output is
several times the worst that was seen. bfloat16 queries, keys and values are exact inputs of the
reference; only the output is rounded, to 8 bits: 2^-8."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.kernels.paged_model import Model, assert_close, layout_of, write_pairs, write_plain

from heed_kernels.edits import (
    ALL_KEYS,
    OPEN,
    HeadGain,
    HeadSet,
    KeyBias,
    KeyRanges,
    KeyScale,
    Rows,
    TrailingKeys,
    VisibleKeys,
)
from heed_kernels.errors import EditError
from heed_kernels.rope import Rope
from heed_kernels.table import EditTable

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-8, torch.float16: 2**-11}


def everything(query_heads):
    on = HeadSet((0b10101 & ((1 << query_heads) - 1), (1 << query_heads) - 1))
    return [
        KeyBias(on, Rows(5), KeyRanges(((0, 1), (7, 30))), 0.7, 0),
        KeyScale(on, Rows(), KeyRanges(((20, 150),)), 1.5, -0.3, 1),
        HeadGain(on, Rows(9), 0.5, 2),
        VisibleKeys(4, 60, True, 3),
        KeyBias(on, Rows(0, 120), TrailingKeys(3, 20), -1.0, 4),
    ]


@pytest.mark.parametrize(
    "query_heads, kv_heads, head_dim, block_size, dtype, write",
    [
        (6, 2, 32, 128, torch.float32, write_plain),
        (14, 2, 64, 128, torch.float32, write_plain),
        (14, 2, 64, 32, torch.bfloat16, write_plain),
        (2, 2, 80, 16, torch.float32, write_plain),
        (3, 1, 96, 32, torch.bfloat16, write_plain),
        (4, 4, 128, 32, torch.float32, write_plain),
        (6, 2, 64, 96, torch.float32, write_plain),
        (6, 2, 64, 256, torch.float32, write_plain),
        (6, 2, 64, 32, torch.float16, write_plain),
        (7, 1, 64, 32, torch.bfloat16, write_pairs),
    ],
)
@pytest.mark.parametrize("layer", [0, 1])
def test_every_primitive_matches_the_reference(
    query_heads, kv_heads, head_dim, block_size, dtype, write, layer
):
    layout = layout_of(block_size, head_dim, dtype, write)
    model = Model(layout, query_heads, kv_heads, [1, 63, 100, 129, 300], write)
    table = model.table()
    edits = everything(query_heads)
    slot = table.insert(edits)
    work = [(i, slot, 0, n) for i, n in enumerate(model.lengths)]
    for i, output in enumerate(model.run(table, work, layer)):
        expected = model.expected(i, edits, layer)
        assert_close(output, expected, TOLERANCE[dtype], f"{model.lengths[i]} rows")


def heads(query_heads):
    mask = st.integers(0, (1 << query_heads) - 1)
    return st.tuples(mask, mask).map(HeadSet)


def rows():
    ends = st.sampled_from([0, 1, 40, 64, 100, 130, OPEN])
    return st.tuples(ends, ends).map(lambda pair: Rows(min(pair), max(pair)))


def key_ranges():
    cuts = st.lists(st.integers(0, 220), min_size=2, max_size=12, unique=True).map(sorted)
    return cuts.map(lambda c: KeyRanges(tuple(zip(c[0::2], c[1::2], strict=False))))


def mixtures(query_heads):
    on, number = heads(query_heads), st.floats(-2, 2, width=32)
    some = st.one_of(
        st.builds(KeyBias, on, rows(), key_ranges(), number, st.just(0)),
        st.builds(KeyBias, on, rows(), st.just(TrailingKeys(3, 17)), number, st.just(0)),
        st.builds(KeyScale, on, rows(), key_ranges(), number, number, st.just(0)),
        st.builds(KeyScale, on, rows(), st.just(ALL_KEYS), number, number, st.just(0)),
        st.builds(HeadGain, on, rows(), number, st.just(0)),
    )
    visible = st.builds(
        VisibleKeys, st.integers(0, 140), st.integers(1, 150), st.booleans(), st.just(0)
    )
    return st.tuples(st.lists(some, max_size=4), st.lists(visible, max_size=1)).map(
        lambda pair: pair[0] + pair[1]
    )


@settings(max_examples=60, suppress_health_check=[HealthCheck.too_slow])
@given(
    edits=mixtures(6),
    length=st.sampled_from([1, 63, 100, 129, 200, 290]),
    block_size=st.sampled_from([16, 32, 128]),
    cut=st.floats(0, 1),
    seed=st.integers(0, 3),
)
def test_random_mixtures_match_the_reference_and_leave_plain_rows_alone(
    edits, length, block_size, cut, seed
):
    model = Model(layout_of(block_size, 32), 6, 2, [length], seed=seed)
    table = model.table()
    slot = table.insert(edits)
    first = int(cut * (length - 1))
    for layer in range(2):
        (output,) = model.run(table, [(0, slot, first, length)], layer)
        expected = model.expected(0, edits, layer, first)
        written = ~output.isnan().flatten(1).any(dim=1)
        plain = model.expected(0, [], layer, first)
        assert torch.allclose(plain[~written], expected[~written], atol=1e-12)
        if written.any():
            assert_close(output[written], expected[written], 2e-5, f"{edits}")


def cut(length, *sizes):
    """Chunks of the given sizes, the last one repeated."""
    first, chunks = 0, []
    while first < length:
        size = sizes[min(len(chunks), len(sizes) - 1)]
        chunks.append((first, min(first + size, length)))
        first += size
    return chunks


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("query_heads, kv_heads", [(6, 2), (7, 1), (2, 2)])
def test_chunks_and_decode_change_no_bit(query_heads, kv_heads, dtype):
    model = Model(layout_of(32, 64, dtype), query_heads, kv_heads, [300])
    table = model.table()
    slot = table.insert(
        [*everything(query_heads), HeadGain(every_head(query_heads), Rows(), 0.9, 5)]
    )
    (whole,) = model.run(table, [(0, slot, 0, 300)])
    for sizes in ((1,), (63, 100, 129), (129, 1), (7,)):
        parts = [model.run(table, [(0, slot, a, b)])[0] for a, b in cut(300, *sizes)]
        assert torch.equal(torch.cat(parts), whole), f"chunks of {sizes}"


def every_head(query_heads):
    return HeadSet(((1 << query_heads) - 1,) * 2)


def test_neighbours_and_their_order_change_no_bit():
    model = Model(layout_of(128, 32), 6, 2, [129, 300, 63, 200])
    table = model.table()
    on = every_head(6)
    first = table.insert([*everything(6), HeadGain(on, Rows(), 0.9, 5)])
    second = table.insert([KeyBias(on, Rows(), KeyRanges(((2, 5), (100, 140))), 2.0, 0)])
    work = [(0, first, 0, 129), (1, second, 250, 251), (2, first, 60, 63), (3, second, 0, 200)]
    alone = [model.run(table, [entry])[0] for entry in work]
    for order in ((0, 1, 2, 3), (3, 1, 0, 2), (2, 3, 1, 0)):
        together = model.run(table, [work[i] for i in order])
        for i, output in zip(order, together, strict=True):
            assert torch.equal(output, alone[i])


def test_the_number_of_threads_changes_no_bit():
    model = Model(layout_of(128, 32), 6, 2, [300])
    table = model.table()
    slot = table.insert([HeadGain(every_head(6), Rows(), 0.9, 5), VisibleKeys(4, 60, True, 0)])
    both = model.run(table, [(0, slot, 0, 300)])[0]
    torch.set_num_threads(1)
    try:
        one = model.run(table, [(0, slot, 0, 300)])[0]
    finally:
        torch.set_num_threads(2)
    assert torch.equal(one, both)


def test_heads_that_are_not_selected_are_the_kernels_plain_result_bit_for_bit():
    model = Model(layout_of(128, 64), 14, 2, [300])
    table = model.table()
    on = HeadSet((0b10010001101, 0))
    edited = table.insert([
        KeyBias(on, Rows(), KeyRanges(((0, 1), (7, 30))), 0.7, 0),
        KeyScale(on, Rows(), KeyRanges(((20, 150),)), 1.5, -0.3, 1),
        KeyBias(on, Rows(), TrailingKeys(3, 20), -1.0, 4),
        HeadGain(on, Rows(), 0.5, 2),
    ])  # fmt: skip
    # A gain leaves the logits of its head alone, and the other heads entirely.
    plain = table.insert([HeadGain(HeadSet((1, 0)), Rows(), 0.5, 0)])
    (with_edits,) = model.run(table, [(0, edited, 0, 300)])
    (without,) = model.run(table, [(0, plain, 0, 300)])
    others = [h for h in range(14) if h not in on.heads(0)]
    assert torch.equal(with_edits[:, others], without[:, others])
    assert_close(without[:, 1:], model.expected(0, [])[:, 1:], 1e-5, "plain")


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("rotary_dim", [16, 64])
def test_rolling_positions_equal_keys_rotated_to_their_rank(interleaved, rotary_dim):
    length, sinks, window, head_dim = 150, 4, 40, 64
    rope = Rope(1000.0 ** -(np.arange(rotary_dim // 2) / (rotary_dim // 2)), interleaved)
    model = Model(layout_of(32, head_dim), 2, 2, [length])
    bare = [model.query[0].double(), model.key[0].double()]
    position = torch.arange(length)[:, None]
    rotated = [rope.rotate(x, position).float() for x in bare]
    model.rope, model.query[0], model.key[0] = rope, *rotated
    halves = model.pages.view(len(model.pages), 2, 64, head_dim).chunk(2, dim=2)
    at = torch.arange(length)
    slots = model.block_table[0].long()[at // 32] * 32 + at % 32
    write_plain(model.key[0], model.value[0], *halves, slots)
    table = model.table()
    slot = table.insert([VisibleKeys(sinks, window, True, 0)])
    (output,) = model.run(table, [(0, slot, 100, length)])
    for q in (100, 127, 149):
        kept = torch.tensor([k for k in range(q + 1) if k < sinks or k > q - window])
        rank = torch.arange(len(kept))[:, None]
        query = rope.rotate(bare[0][q : q + 1], torch.tensor([[len(kept) - 1]]))
        key = rope.rotate(bare[1][kept], rank)
        logits = torch.einsum("qhd,khd->hqk", query, key) * model.scale
        value = model.value[0][kept].double()
        expected = torch.einsum("hqk,khd->qhd", logits.softmax(-1), value)
        assert_close(output[q - 100 : q - 99], expected, 1e-5, f"row {q}")


def test_pages_of_hidden_keys_are_never_read():
    model = Model(layout_of(32, 32), 6, 2, [400])
    table = model.table()
    slot = table.insert([VisibleKeys(4, 30, False, 0)])
    expected = model.expected(0, [VisibleKeys(4, 30, False, 0)])[399:]
    model.pages[model.block_table[0, 4:11].long()] = torch.nan  # keys 128 to 351
    (output,) = model.run(table, [(0, slot, 399, 400)])
    assert_close(output, expected, 1e-5, "last row")


def test_a_rank_computes_its_own_heads():
    model = Model(layout_of(32, 32), 6, 2, [100])
    edits = everything(6)
    whole = model.table()
    slot = whole.insert(edits)
    (expected,) = model.run(whole, [(0, slot, 64, 100)])
    table = EditTable(2, 2, 6, 2, head_start=3, local_query_heads=3)
    slot = table.insert(edits)
    model.query[0] = model.query[0][:, 3:].contiguous()
    model.pages = model.pages[:, 1:]  # a view: other strides between pages
    (output,) = model.run(table, [(0, slot, 64, 100)])
    assert torch.equal(output, expected[:, 3:])


def test_a_plan_that_reaches_outside_of_its_tensors_is_an_error():
    model = Model(layout_of(32, 32), 6, 2, [100])
    table = model.table()
    slot = table.insert(everything(6))
    model.block_table[0, 2] = len(model.pages)
    with pytest.raises(EditError, match="blocks"):
        model.run(table, [(0, slot, 0, 100)])
    model.block_table = model.block_table[:, :3]
    with pytest.raises(EditError, match="block table"):
        model.run(table, [(0, slot, 0, 100)])
