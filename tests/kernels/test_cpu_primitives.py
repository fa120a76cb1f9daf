"""Visible ranges, mass transfers and mixed-in vectors on the CPU.

Tolerances are those of test_cpu_attention, relative to the largest output: 1e-5 in float32, the
rounding of the output in 16 bits. Random mixtures get 4e-5: scales make logits of up to some 30,
whose float32 rounding (2e-6) a ratio of masses multiplies again. Rows whose gate lies within 1e-5 of its threshold may
fall on either side of it in float32; `Model.near_gate` finds them by the reference's masses, and
they are left out."""

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.kernels.paged_model import Model, assert_close, layout_of, write_pairs, write_plain
from tests.kernels.test_cpu_attention import TOLERANCE, cut, every_head, key_ranges, mixtures, rows

from heed_kernels.edits import (
    ALL_KEYS,
    OPEN,
    FoundKeys,
    Gate,
    HeadGain,
    HeadMix,
    HeadSet,
    KeyBias,
    KeyRanges,
    KeyScale,
    MassTransfer,
    Rows,
    VisibleKeys,
    VisibleRanges,
)
from heed_kernels.errors import EditError

LENGTHS = [1, 63, 100, 129, 300]


def on_some(query_heads):
    return HeadSet((0b1011011 & ((1 << query_heads) - 1), (1 << query_heads) - 1))


def mix(on, rows, weight, head_dim, seed=0):
    vectors = np.random.default_rng(seed).normal(size=(on.pair_count, head_dim)).astype("<f4")
    return HeadMix(on, rows, weight, vectors.tobytes(), 0)


def primitives(query_heads, head_dim):
    on = on_some(query_heads)
    sources = KeyRanges(((0, 2), (40, 41), (70, 71), (128, 130), (299, 300)))
    picture = KeyRanges(((5, 60), (90, 140)))
    gate = Gate(picture, picture, ratio=0.9, least=0.2)
    return {
        "ranges": [VisibleRanges(Rows(), ((0, 3, 0), (17, 66, 0), (97, OPEN, 0)), 0)],
        "late ranges": [VisibleRanges(Rows(70), ((3, 9, 0), (64, 80, 0), (120, OPEN, 0)), 0)],
        "shifted ranges": [
            VisibleRanges(Rows(50, 110), ((0, 3, 30), (20, 21, 5), (25, 49, 5), (51, OPEN, 0)), 0),
            VisibleRanges(Rows(110), ((0, 3, 30), (30, 49, 5), (51, OPEN, 0)), 0),
            HeadGain(every_head(query_heads), Rows(), 0.9, 0),
        ],
        "nothing to see": [VisibleRanges(Rows(20, 90), ((60, 64, 0),), 0), HeadGain(on, Rows(), 2, 0)],
        "no key at all": [VisibleRanges(Rows(), (), 0)],
        "transfer to all": [MassTransfer(on, Rows(), sources, ALL_KEYS, 0.6, Gate(), 0)],
        "whole transfer": [MassTransfer(on, Rows(33), sources, ALL_KEYS, 1.0, Gate(), 0)],
        "transfer to some": [MassTransfer(on, Rows(10), sources, picture, 0.7, gate, 0)],
        "transfer of hidden keys": [
            MassTransfer(on, Rows(10), sources, picture, 0.7, Gate(), 0),
            VisibleRanges(Rows(30), ((1, 20, 0), (45, 101, 0), (129, OPEN, 0)), 0),
        ],
        "destination of sources alone": [
            MassTransfer(on, Rows(), sources, KeyRanges(((0, 2), (40, 41))), 0.5, Gate(), 0)
        ],
        "two transfers": [
            MassTransfer(on, Rows(0, 80), sources, picture, 0.3, gate, 0),
            MassTransfer(on, Rows(80), sources, picture, 0.9, Gate(picture, picture, 0.5, 0.3), 0),
        ],
        "mix": [mix(on, Rows(31), 0.5, head_dim), HeadGain(on, Rows(), -0.5, 0)],
    }  # fmt: skip


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
@pytest.mark.parametrize("name", primitives(1, 1))
def test_each_primitive_matches_the_reference(
    name, query_heads, kv_heads, head_dim, block_size, dtype, write
):
    layout = layout_of(block_size, head_dim, dtype, write)
    model = Model(layout, query_heads, kv_heads, LENGTHS, write)
    edits = primitives(query_heads, head_dim)[name]
    table = model.table()
    slot = table.insert(edits)
    for layer in range(2):
        work = [(i, slot, 0, n) for i, n in enumerate(LENGTHS)]
        for i, output in enumerate(model.run(table, work, layer)):
            compare(model, i, edits, output, layer, TOLERANCE[dtype], f"{name}, {LENGTHS[i]} rows")


def compare(model, request, edits, output, layer, tolerance, what, first=0, found=None):
    """Rows that the kernel wrote, but for those at their gate's threshold; the rest must be plain."""
    expected = model.expected(request, edits, layer, first, found)
    written = ~output.isnan().flatten(1).any(dim=1)
    if not written.all():
        plain = model.expected(request, [], layer, first)
        torch.testing.assert_close(plain[~written], expected[~written], rtol=0, atol=1e-12)
    near = model.near_gate(request, edits, layer, first, found)
    assert near.sum() <= 0.02 * near.numel() + 2, "the comparison leaves out more than a few rows"
    expected = expected.masked_fill(near[..., None], 0)
    output = output.masked_fill(near[..., None], 0)
    if written.any():
        assert_close(output[written], expected[written], tolerance, what)


def visible_ranges():
    """A cut of the keys, each part with its own shift, and a rule for the rows from some row on."""
    part = st.tuples(st.booleans(), st.sampled_from([0, 0, 3, 40]))
    cuts = st.lists(st.integers(0, 220), min_size=2, max_size=8, unique=True).map(sorted)

    def build(cuts, parts, start, end_open):
        ends = [*cuts[1:], OPEN if end_open else cuts[-1] + 5]
        kept = [
            (a, b, shift) for a, b, (keep, shift) in zip(cuts, ends, parts, strict=False) if keep
        ]
        return VisibleRanges(Rows(start), tuple(kept), 0)

    return st.builds(
        build, cuts, st.lists(part, min_size=8, max_size=8), st.sampled_from([0, 1, 64, 101]),
        st.booleans(),
    )  # fmt: skip


def transfers(query_heads):
    mask = st.integers(0, (1 << query_heads) - 1)
    singles = st.lists(st.integers(0, 220), max_size=9, unique=True).map(
        lambda keys: KeyRanges(tuple((k, k + 1) for k in sorted(keys)))
    )
    share = st.floats(0, 1, width=32)
    # Thresholds near 0 would put rows near their gate by the hundred.
    threshold = st.just(0.0) | st.floats(2**-6, 1, width=32)
    gate = st.builds(Gate, key_ranges(), key_ranges(), threshold, threshold.map(lambda x: x / 4))
    gates = st.one_of(st.just(Gate()), gate)
    to = st.one_of(st.just(ALL_KEYS), key_ranges())
    return st.builds(
        MassTransfer, st.tuples(mask, mask).map(HeadSet), rows(), st.one_of(singles, st.just(FoundKeys())),
        to, share, gates, st.just(0),
    )  # fmt: skip


@settings(max_examples=80, suppress_health_check=list(HealthCheck))
@given(
    edits=mixtures(6),
    kept=st.lists(visible_ranges(), max_size=1),
    moved=st.lists(transfers(6), max_size=1),
    mixed=st.lists(st.tuples(rows(), st.floats(-2, 2)), max_size=1),
    length=st.sampled_from([1, 63, 100, 129, 200, 290]),
    block_size=st.sampled_from([16, 32, 128]),
    part=st.floats(0, 1),
    seed=st.integers(0, 3),
)
def test_random_mixtures_of_everything_match_the_reference(
    edits, kept, moved, mixed, length, block_size, part, seed
):
    model = Model(layout_of(block_size, 32), 6, 2, [length], seed=seed)
    table = model.table()
    if kept and any(shift for _, _, shift in kept[0].ranges):
        # Rolling goes with unshifted ranges only.
        edits = [e for e in edits if not (isinstance(e, VisibleKeys) and e.rolling)]
    edits += kept + moved + [mix(every_head(6), where, weight, 32, seed) for where, weight in mixed]
    slot = table.insert(edits)
    generator = np.random.default_rng(seed)
    first = int(part * (length - 1))
    for layer in range(2):
        found = [
            sorted(generator.choice(length, min(length, size), replace=False).tolist())
            for size in (0, 1, 3, 9, 64, 2)
        ]
        put_found(table, slot, layer, found)
        (output,) = model.run(table, [(0, slot, first, length)], layer)
        compare(model, 0, edits, output, layer, 4e-5, f"{edits}", first, found)


def put_found(table, slot, layer, found):
    starts = table.range_start[slot, : table.range_count[slot]]
    for head, keys in enumerate(found):
        table.found_count[slot, layer, head] = len(keys)
        table.found_keys[slot, layer, head, : len(keys)] = keys
        table.found_range[slot, layer, head, : len(keys)] = (
            np.searchsorted(starts, keys, side="right") - 1
        )


def mixture(query_heads, head_dim):
    parts = primitives(query_heads, head_dim)
    on = on_some(query_heads)
    return [
        *parts["shifted ranges"], *parts["transfer to some"], *parts["mix"],
        KeyBias(on, Rows(5), KeyRanges(((0, 1), (7, 30))), 0.7, 0),
        KeyScale(every_head(query_heads), Rows(), KeyRanges(((20, 150),)), 1.5, -0.3, 0),
        VisibleKeys(4, 90, False, 0),
    ]  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("query_heads, kv_heads", [(6, 2), (7, 1), (2, 2)])
def test_chunks_and_neighbours_change_no_bit(query_heads, kv_heads, dtype):
    model = Model(layout_of(32, 64, dtype), query_heads, kv_heads, [300, 129])
    table = model.table()
    edits = mixture(query_heads, 64)
    slot = table.insert(edits)
    other = table.insert([KeyBias(every_head(query_heads), Rows(), ALL_KEYS, 1.0, 0)])
    (whole,) = model.run(table, [(0, slot, 0, 300)])
    compare(model, 0, edits, whole, 0, 2 * TOLERANCE[dtype], "mixture")
    for sizes in ((1,), (63, 100, 129), (129, 1), (7,)):
        parts = [
            model.run(table, [(1, other, 5, 129), (0, slot, a, b)])[1] for a, b in cut(300, *sizes)
        ]
        assert torch.equal(torch.cat(parts), whole), f"chunks of {sizes}"


def test_heads_and_rows_without_a_transfer_are_the_kernels_plain_result_bit_for_bit():
    model = Model(layout_of(32, 64), 14, 2, [300])
    table = model.table()
    on = HeadSet((0b10010001101, 0))
    keys = KeyRanges(((3, 5), (200, 201)))
    move = MassTransfer(on, Rows(100), keys, KeyRanges(((20, 90), (130, 260))), 0.7, Gate(), 0)
    add = mix(on, Rows(100), 1.0, 64)
    same = HeadGain(every_head(14), Rows(), 0.5, 0)
    edited, plain = table.insert([move, add, same]), table.insert([same])
    (with_edits,) = model.run(table, [(0, edited, 0, 300)])
    (without,) = model.run(table, [(0, plain, 0, 300)])
    others = [h for h in range(14) if h not in on.heads(0)]
    assert torch.equal(with_edits[:, others], without[:, others])
    assert torch.equal(with_edits[:100], without[:100])
    assert not torch.equal(with_edits, without)


def test_rows_whose_gate_is_shut_stay_as_they_are():
    model = Model(layout_of(32, 64), 6, 2, [129])
    table = model.table()
    keys, most = KeyRanges(((0, 4),)), KeyRanges(((2, 100),))
    for gate in (Gate(most, most, 1.5), Gate(most, most, 0, 1.5)):
        edits = [MassTransfer(every_head(6), Rows(), keys, ALL_KEYS, 1.0, gate, 0)]
        (output,) = model.run(table, [(0, table.insert(edits), 0, 129)])
        # A row without any key of the gate has 0 >= 1.5 * 0: it is open.
        first = 2 if gate.ratio else 0
        assert_close(output[first:], model.expected(0, [])[first:], 1e-5, f"{gate}")
        assert_close(output, model.expected(0, edits), 1e-5, f"{gate}")


def test_sinks_that_take_nearly_all_mass_cost_no_digits():
    """With a source mass of 1 - 1e-6 what is left still has its relative accuracy."""
    model = Model(layout_of(32, 64), 6, 2, [300])
    on, sink = every_head(6), KeyRanges(((0, 1),))
    table = model.table()
    for to in (ALL_KEYS, KeyRanges(((10, 50),))):
        edits = [
            KeyBias(on, Rows(), sink, 20.0, 0),
            MassTransfer(on, Rows(), sink, to, 1.0, Gate(), 0),
        ]
        (output,) = model.run(table, [(0, table.insert(edits), 0, 300)])
        assert (model.weights(0, edits).before[:, 50:, 0] > 1 - 1e-4).all()
        assert_close(output, model.expected(0, edits), 1e-5, f"{to}")


@pytest.mark.parametrize("shift", [0, 40])
def test_blocks_that_no_row_sees_are_never_read(shift):
    model = Model(layout_of(16, 32), 6, 2, [400])
    table = model.table()
    ranges = ((0, 5, shift), (64, 70, shift), (130, 140, 0), (350, OPEN, 0))
    edits = [
        VisibleRanges(Rows(200), ranges, 0),
        MassTransfer(every_head(6), Rows(), KeyRanges(((2, 3), (100, 101), (355, 356))), ALL_KEYS, 0.5,
                     Gate(), 0),
        KeyBias(every_head(6), Rows(), KeyRanges(((60, 120),)), 1.0, 0),
    ]  # fmt: skip
    slot = table.insert(edits)
    expected = model.expected(0, edits)[380:]
    read = {k // 16 for a, b, _ in ranges for k in range(a, min(b, 400))}
    freed = [block for block in range(25) if block not in read]
    model.pages[model.block_table[0, freed].long()] = torch.nan
    (output,) = model.run(table, [(0, slot, 380, 400)])
    assert_close(output, expected, 1e-5, "last rows")
    model.block_table[0, freed] = 0  # as vLLM leaves them
    assert torch.equal(model.run(table, [(0, slot, 380, 400)])[0], output)
    kept = [(a, b) for a, b, _ in ranges]
    hidden = torch.tensor([not any(a <= k < b for a, b in kept) for k in range(400)])
    model.value[0][hidden] = torch.nan
    halves = model.pages.view(len(model.pages), 2, 32, 32).chunk(2, dim=2)
    at = torch.arange(400)[torch.isin(torch.arange(400) // 16, torch.tensor(sorted(read)))]
    slots = model.block_table[0].long()[at // 16] * 16 + at % 16
    write_plain(model.key[0][at], model.value[0][at], *halves, slots)
    assert torch.equal(model.run(table, [(0, slot, 380, 400)])[0], output)


def test_a_rank_moves_and_mixes_for_its_own_heads():
    from heed_kernels.table import EditTable

    model = Model(layout_of(32, 32), 6, 2, [100])
    edits = mixture(6, 32)
    whole = model.table()
    (expected,) = model.run(whole, [(0, whole.insert(edits), 64, 100)])
    table = EditTable(2, 2, 6, 2, head_start=3, local_query_heads=3, head_dim=32)
    slot = table.insert(edits)
    model.query[0] = model.query[0][:, 3:].contiguous()
    model.pages = model.pages[:, 1:]
    assert torch.equal(model.run(table, [(0, slot, 64, 100)])[0], expected[:, 3:])


def test_shifts_without_a_rotary_embedding_are_an_error():
    model = Model(layout_of(32, 32), 6, 2, [100])
    model.rope = None
    table = model.table()
    slot = table.insert([VisibleRanges(Rows(), ((0, 5, 3), (9, OPEN, 0)), 0)])
    with pytest.raises(EditError, match="rotary"):
        model.run(table, [(0, slot, 0, 100)])
