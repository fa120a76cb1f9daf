"""Each primitive, and mixtures of all, against the float64 reference, in Triton's interpreter.

Tolerances are of the relative root mean square and of the largest difference relative to the largest
value. float32: rounding of logits (some 6e-8 times logits of up to 10) becomes a relative error of the
weights: 1e-5 is thirty times what was seen. bfloat16, float16: weights and turned queries are rounded to
8 and 11 bits before their products, as everywhere, and so are outputs: 2^-7 and 2^-10.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.kernels.triton.paged_model import Model, assert_close

from heed_kernels.edits import (
    ALL_KEYS,
    OPEN,
    Gate,
    HeadGain,
    HeadMix,
    HeadSet,
    KeyBias,
    KeyRanges,
    KeyScale,
    MassTransfer,
    Rows,
    TrailingKeys,
    VisibleKeys,
    VisibleRanges,
)

TOLERANCE = {torch.float32: 1e-5, torch.bfloat16: 2**-7, torch.float16: 2**-10}
ON = HeadSet((0b101, 0b111))
IMAGE = KeyRanges(((8, 30),))
SINKS = KeyRanges(((0, 2), (12, 14), (40, 43)))


def vectors(pairs, head_dim):
    return np.random.default_rng(5).standard_normal((pairs, head_dim)).astype("<f4").tobytes()


PRIMITIVES = {
    "gain": [HeadGain(ON, Rows(), 0.5, 0)],
    "bias on scattered keys": [
        KeyBias(ON, Rows(5), KeyRanges(((0, 1), (7, 30), (64, 65), (299, 300))), 0.7, 0)
    ],
    "scale": [KeyScale(ON, Rows(), KeyRanges(((20, 90),)), 1.5, -0.3, 0)],
    "negative scale": [KeyScale(ON, Rows(3), ALL_KEYS, -0.8, 0.4, 0)],
    "window": [VisibleKeys(4, 30, False, 0)],
    "window without sinks": [VisibleKeys(0, 17, False, 0)],
    "window at the edges of tiles": [VisibleKeys(0, 32, False, 0)],
    "rolling": [VisibleKeys(4, 30, True, 0)],
    "rolling, many sinks": [VisibleKeys(37, 20, True, 0)],
    "trailing": [KeyBias(ON, Rows(0, 80), TrailingKeys(3, 20), -1.0, 0)],
    "holes": [VisibleRanges(Rows(60), ((0, 9, 0), (20, 40, 0), (55, OPEN, 0)), 0)],
    "shifted ranges": [VisibleRanges(Rows(), ((0, 9, 7), (20, 40, 0), (41, OPEN, 1000)), 0)],
    "rows that see nothing": [VisibleRanges(Rows(50), ((90, 95, 0),), 0)],
    "nothing seen, but mixed": [
        VisibleRanges(Rows(50), ((90, 95, 0),), 0),
        HeadMix(ON, Rows(40), 0.5, vectors(5, 32), 1),
    ],
    "mix": [HeadMix(ON, Rows(6), 0.5, vectors(5, 32), 0)],
    "act": [MassTransfer(ON, Rows(), SINKS, ALL_KEYS, 0.6, Gate(), 0)],
    "all of the mass": [MassTransfer(ON, Rows(), SINKS, ALL_KEYS, 1.0, Gate(), 0)],
    "var": [MassTransfer(ON, Rows(20), SINKS, IMAGE, 0.6, Gate(IMAGE, IMAGE, 0.7, 0.2), 0)],
    "gate by share": [
        MassTransfer(ON, Rows(3), SINKS, IMAGE, 0.9, Gate(KeyRanges(((4, 50),)), SINKS, 4.0), 0)
    ],
    "gate by least": [
        MassTransfer(ON, Rows(), SINKS, ALL_KEYS, 0.6, Gate(ALL_KEYS, SINKS, 0, 0.06), 0)
    ],
    "shut gate": [MassTransfer(ON, Rows(), SINKS, IMAGE, 0.6, Gate(IMAGE, ALL_KEYS, 2.0), 0)],
    "destination to the end": [
        MassTransfer(ON, Rows(), SINKS, KeyRanges(((20, OPEN),)), 0.6, Gate(), 0)
    ],
    "no destination": [MassTransfer(ON, Rows(), SINKS, KeyRanges(((110, 120),)), 0.6, Gate(), 0)],
    "rolling transfer": [
        VisibleKeys(4, 30, True, 1),
        MassTransfer(ON, Rows(), KeyRanges(((1, 3), (60, 62))), ALL_KEYS, 0.7, Gate(), 0),
    ],
    "shifted, scaled, trailing transfer": [
        VisibleRanges(Rows(), ((0, 14, 7), (20, 45, 300), (46, OPEN, 0)), 0),
        MassTransfer(ON, Rows(), SINKS, KeyRanges(((0, 60),)), 0.7, Gate(), 1),
        KeyScale(ON, Rows(), KeyRanges(((0, 13), (41, 50))), 1.3, 0.2, 2),
        KeyBias(ON, Rows(), TrailingKeys(0, 60), 0.8, 3),
        KeyBias(HeadSet((0b011, 0)), Rows(9), KeyRanges(((1, 2), (41, 42))), -0.6, 4),
    ],
}


def either_side(model, edits, request=0, layer=0):
    """What is expected, and what is where gates open a little earlier or later: a share of mass that lies
    within the rounding of the dtype beside its threshold may fall on either side of it."""
    tolerance = TOLERANCE[model.dtype]
    sides = [[gate_at(edit, step) for edit in edits] for step in (-tolerance, tolerance)]
    return [
        model.expected(request, side, layer) for side in (edits, *(s for s in sides if s != edits))
    ]


def gate_at(edit, step):
    if not isinstance(edit, MassTransfer):
        return edit
    ratio, least = (part and max(part + step, 0.0) for part in (edit.gate.ratio, edit.gate.least))
    return replace(edit, gate=replace(edit.gate, ratio=ratio, least=least))


def nearest(output, sides):
    """For each row and head the side that is nearest. Away from a threshold all are the same."""
    sides = torch.stack(sides)
    off = (sides - output.double().cpu()).abs().amax(dim=-1, keepdim=True)
    return sides.gather(0, off.argmin(dim=0, keepdim=True).expand_as(sides[:1]))[0]


def compare(model, edits, work, prompt_length, what, layer=0, rope=True, request=0):
    table = model.table()
    slot = model.slot(table, edits, prompt_length)
    entries = [(request, slot, first, end) for first, end in work]
    gated = either_side(model, edits, request, layer)
    expected = gated[0]
    plain = model.expected(request, [], layer)
    active = 0
    for (first, end), output in zip(work, model.run(table, entries, layer, rope), strict=True):
        written = ~output.isnan().flatten(1).any(dim=1)
        plan, _ = model.plan(table, [(request, slot, first, end)])
        runs = plan.items(layer)
        assert int(written.sum()) == int(runs[:, 2].sum()), "not every active row was written"
        left = ~written
        assert torch.allclose(plain[first:end][left], expected[first:end][left], atol=1e-12)
        right = nearest(output[written], [side[first:end][written] for side in gated])
        assert_close(output[written], right, TOLERANCE[model.dtype], what)
        active += int(written.sum())
    return active


@pytest.mark.parametrize("name", PRIMITIVES)
def test_prompt_rows_match_the_reference(name):
    model = Model([100], 3, 1)
    edits = PRIMITIVES[name]
    assert compare(model, edits, [(39, 100)], 100, name, layer=name == "act") > 0


@pytest.mark.parametrize("name", PRIMITIVES)
def test_generated_rows_match_the_reference(name):
    model = Model([300], 3, 1)
    assert compare(model, PRIMITIVES[name], [(78, 79), (299, 300)], 40, name) > 0


def everything(query_heads, head_dim):
    """One of each, all acting on the same rows."""
    every = (1 << query_heads) - 1
    on = HeadSet((0b10101 & every, every))
    return [
        KeyBias(on, Rows(5), KeyRanges(((0, 1), (7, 30))), 0.7, 0),
        KeyScale(on, Rows(), KeyRanges(((20, 150),)), 1.2, -0.3, 1),
        HeadGain(on, Rows(9), 0.5, 2),
        # In this order: the reference lets the later of the two decide how far a query is turned.
        VisibleRanges(Rows(70), ((0, 33, 0), (40, OPEN, 0)), 5),
        VisibleKeys(4, 60, True, 3),
        KeyBias(on, Rows(0, 120), TrailingKeys(3, 20), -1.0, 4),
        MassTransfer(
            on, Rows(2), KeyRanges(((0, 1), (9, 11), (47, 48))), KeyRanges(((0, 100),)), 0.5,
            Gate(KeyRanges(((5, 90),)), ALL_KEYS, 0.5, 0.1), 6,
        ),
        HeadMix(on, Rows(4), 0.3, vectors(on.pair_count, head_dim), 7),
    ]  # fmt: skip


SHAPES = [
    (6, 2, 32, 128, torch.float32),
    (7, 1, 64, 32, torch.float16),
    (3, 1, 96, 48, torch.bfloat16),
    (8, 1, 64, 16, torch.bfloat16),
    (2, 2, 80, 16, torch.float32),
    (2, 1, 256, 64, torch.bfloat16),
    (4, 1, 128, 16, torch.bfloat16),
]


@pytest.mark.parametrize(
    "query_heads, kv_heads, head_dim, block_size, dtype",
    [*SHAPES[:3], *(pytest.param(*shape, marks=pytest.mark.slow) for shape in SHAPES[3:])],
)
def test_every_shape_matches_the_reference(query_heads, kv_heads, head_dim, block_size, dtype):
    model = Model([129], query_heads, kv_heads, head_dim, block_size, dtype)
    edits = everything(query_heads, head_dim)
    assert compare(model, edits, [(108, 129)], 128, "all primitives") == 21


@pytest.mark.parametrize("query_heads, kv_heads, head_dim, block_size, dtype", SHAPES[3:])
def test_every_other_shape_matches_the_reference_at_a_short_length(
    query_heads, kv_heads, head_dim, block_size, dtype
):
    model = Model([40], query_heads, kv_heads, head_dim, block_size, dtype)
    edits = everything(query_heads, head_dim)
    assert compare(model, edits, [(37, 40)], 39, "all primitives") == 3


@pytest.mark.parametrize("length", [1, 63, 513])
def test_awkward_lengths_match_the_reference(length):
    model = Model([length], 3, 1, 32, 16)
    compare(model, everything(3, 32), [(max(0, length - 70), length)], length - 1, f"{length} rows")


@pytest.mark.slow
@pytest.mark.parametrize("query_heads, kv_heads, head_dim, block_size, dtype", SHAPES)
@pytest.mark.parametrize("length", [1, 63, 100, 129, 513])
def test_the_whole_matrix_matches_the_reference(
    query_heads, kv_heads, head_dim, block_size, dtype, length
):
    model = Model([length], query_heads, kv_heads, head_dim, block_size, dtype)
    edits = everything(query_heads, head_dim)
    for layer in range(2):
        compare(model, edits, [(0, length)], max(length - 3, 0), "all primitives", layer)


@pytest.mark.parametrize("interleaved", [False, True])
def test_turned_queries_are_right_at_long_distances(interleaved):
    """Angles of 100,000 positions; half of the dimensions rotate."""
    model = Model([70], 2, 2, 32, 16, rotary_dim=16, interleaved=interleaved)
    edits = [VisibleRanges(Rows(), ((0, 20, 100_003), (20, OPEN, 99_991)), 0)]
    assert compare(model, edits, [(0, 70)], 69, "shift") == 70


def test_sources_with_nearly_all_of_the_mass_cost_no_digits():
    """The destination's weights grow hundredfold. Taking sources back afterwards would leave rounding
    errors of the whole sum, multiplied as often."""
    model = Model([100], 3, 1, dtype=torch.float16)
    bias = KeyBias(ON, Rows(), SINKS, 8.0, 1)
    edits = [MassTransfer(ON, Rows(), SINKS, ALL_KEYS, 1.0, Gate(), 0), bias]
    compare(model, edits, [(44, 100)], 98, "heavy sinks")


@pytest.mark.parametrize("destination", [ALL_KEYS, KeyRanges(((20, 90),))])
@pytest.mark.parametrize("bias, dtype", [(95.0, torch.float32), (110.0, torch.float16)])
def test_mass_moves_from_sources_beyond_the_range_of_float32(bias, dtype, destination):
    """Beside sources of e^95 all other keys are less than the least number above zero."""
    model = Model([100], 3, 1, dtype=dtype)
    source = KeyRanges(((2, 3),))
    gate = Gate(KeyRanges(((4, 50),)), KeyRanges(((60, 95),)), 0.9)
    for fraction, opens in ((1.0, Gate()), (0.6, gate)):
        edits = [
            MassTransfer(ON, Rows(), source, destination, fraction, opens, 0),
            KeyBias(ON, Rows(), source, bias, 1),
        ]
        compare(model, edits, [(84, 100)], 98, f"{bias} nats, {fraction} moved")


@pytest.mark.parametrize("bias", [95.0, 600.0])
def test_mass_moves_to_keys_40_nats_below_the_others_and_to_none_far_below(bias):
    model = Model([100], 3, 1)
    source, destination = KeyRanges(((2, 3),)), KeyRanges(((20, 30),))
    moved = MassTransfer(ON, Rows(), source, destination, 0.6, Gate(), 0)
    heavy = KeyBias(ON, Rows(), source, bias, 1)
    edits = [moved, heavy, KeyBias(ON, Rows(), destination, -40.0, 2)]
    compare(model, edits, [(84, 100)], 98, "at the limit")
    edits = [heavy, KeyBias(ON, Rows(), destination, -70.0, 2)]
    table = model.table()
    expected = model.expected(0, edits)[84:]
    (output,) = model.run(table, [(0, model.slot(table, [moved, *edits], 98), 84, 100)])
    assert_close(output, expected, 1e-5, "below the limit")


def test_a_model_without_rotary_embedding_needs_none():
    model = Model([100], 3, 1)
    edits = [*PRIMITIVES["window"], *PRIMITIVES["act"]]
    assert compare(model, edits, [(57, 100)], 99, "plain", rope=False) == 43


def mixture(seed):
    """A random set of edits over 3 heads and keys up to 300."""
    random = np.random.default_rng(seed)

    def heads():
        return HeadSet(tuple(int(random.integers(1, 8)) for _ in range(2)))

    def rows():
        first, end = sorted(random.choice([0, 1, 40, 64, 100, 130, OPEN], 2, replace=False))
        return Rows(int(first), int(end))

    def keys(most=12):
        cuts = np.sort(random.choice(220, 2 * int(random.integers(1, most // 2)), replace=False))
        return KeyRanges(tuple((int(a), int(b)) for a, b in cuts.reshape(-1, 2)))

    def number():
        return float(np.float32(random.uniform(-2, 2)))

    first = int(random.integers(0, 100))
    sources = sorted({*random.choice(150, int(random.integers(1, 6))).tolist()})
    some = [
        lambda: KeyBias(heads(), rows(), keys(), number(), 0),
        lambda: KeyBias(heads(), rows(), TrailingKeys(first, 17), number(), 0),
        lambda: KeyScale(heads(), rows(), keys(), number(), number(), 0),
        lambda: KeyScale(heads(), rows(), ALL_KEYS, number(), number(), 0),
        lambda: HeadGain(heads(), rows(), number(), 0),
    ]
    edits = [some[i]() for i in random.integers(0, len(some), int(random.integers(1, 4)))]
    on = heads()
    edits.append(HeadMix(on, rows(), number(), vectors(on.pair_count, 32), 0))
    gate = Gate(keys(), ALL_KEYS, float(random.choice([0.0, 0.3])), 0.0)
    edits.append(MassTransfer(
        heads(), rows(), KeyRanges(tuple((k, k + 1) for k in sources)),
        ALL_KEYS if random.random() < 0.3 else keys(), float(random.uniform(0, 1)), gate, 0,
    ))  # fmt: skip
    if random.random() < 0.6:
        sinks, window = (int(n) for n in random.integers(1, 150, 2))
        edits.append(VisibleKeys(sinks, window, bool(random.random() < 0.5), 0))
    return edits


@pytest.mark.parametrize(
    "seed", [*range(2), *(pytest.param(n, marks=pytest.mark.slow) for n in range(2, 60))]
)
def test_random_mixtures_match_the_reference(seed):
    length = [100, 129, 200, 63, 290, 1][seed % 6]
    model = Model([length], 3, 1, 32, (16, 32, 128)[seed % 3], seed=seed)
    first = max(0, length - 64)
    compare(model, mixture(seed), [(first, length)], max(length - 2, 0), f"seed {seed}")
