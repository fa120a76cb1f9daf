"""The reference against the formulas of the papers, written down a second time in another form."""

import numpy as np
import pytest
import torch

from heed_kernels.edits import (
    ALL_KEYS,
    OPEN,
    FindKeys,
    FoundKeys,
    Gate,
    HeadMix,
    HeadSet,
    KeyRanges,
    MassTransfer,
    ObserveColumns,
    ObserveMass,
    Rows,
    VisibleKeys,
    VisibleRanges,
)
from heed_kernels.reference import attention as reference
from heed_kernels.rope import Rope

HEADS, KEYS, DIM = 4, 20, 8
SCALE = DIM**-0.5
ROPE = Rope(10000.0 ** -(np.arange(DIM // 2) / (DIM // 2)))
ON = HeadSet((0b0101,))


@pytest.fixture
def tensors():
    generator = torch.Generator().manual_seed(3)
    heads = (HEADS, 2, 2)
    return [torch.randn(KEYS, n, DIM, generator=generator, dtype=torch.float64) for n in heads]


def weights(tensors, *edits, found=None):
    return reference.attention_weights(*tensors[:2], edits, 0, SCALE, ROPE, found)


def close(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-12, atol=1e-14)


def test_act_keeps_the_fraction_beta_of_its_sinks(tensors):
    """ACT: A'_s = beta A_s; the others share the rest in proportion (arXiv 2406.15765)."""
    beta, sinks = 0.4, [2, 5]
    found = [sinks if head in (0, 2) else [] for head in range(HEADS)]
    edit = MassTransfer(ON, Rows(), FoundKeys(), ALL_KEYS, 1 - beta, Gate(), 0)
    plain = weights(tensors).before
    edited = weights(tensors, edit, found=found).after
    mass = plain[..., sinks].sum(-1, keepdim=True)
    expected = plain * (1 - beta * mass) / (1 - mass)
    expected[..., sinks] = beta * plain[..., sinks]
    close(edited[[0, 2]], expected[[0, 2]])
    close(edited[[1, 3]], plain[[1, 3]])
    close(edited.sum(-1), torch.ones(HEADS, KEYS, dtype=torch.float64))


def test_var_moves_sink_mass_to_the_other_visual_keys_of_the_rows_that_look_at_them(tensors):
    """VAR: o' = o + p [(m_S) o_N - m_S o_S], where m_V >= least and m_N / m_V >= rho (arXiv 2503.03321)."""
    visual, sinks, share = range(4, 12), [0, 6], 0.6
    others = [k for k in visual if k not in sinks]
    keys = KeyRanges(((4, 12),))
    gate = Gate(keys, keys, ratio=0.8, least=0.35)
    edit = MassTransfer(ON, Rows(12), KeyRanges(((0, 1), (6, 7))), keys, share, gate, 0)
    plain, value = weights(tensors).before, tensors[2].repeat_interleave(2, dim=1)
    output = reference.attend(*tensors, [edit], 0, SCALE)
    gated = 0
    for head in range(HEADS):
        for row in range(KEYS):
            w, v = plain[head, row], value[:, head]
            m_v, m_n, m_s = w[visual].sum(), w[others].sum(), w[sinks].sum()
            expected = w @ v
            if head in (0, 2) and row >= 12 and m_n >= 0.8 * m_v and m_v >= 0.35:
                gated += 1
                expected += share * (m_s / m_n * (w[others] @ v[others]) - w[sinks] @ v[sinks])
            close(output[row, head], expected)
    assert 0 < gated < 16


def test_a_transfer_leaves_rows_without_a_destination_alone(tensors):
    edit = MassTransfer(ON, Rows(), KeyRanges(((0, 1),)), KeyRanges(((9, 12),)), 1.0, Gate(), 0)
    made = weights(tensors, edit)
    close(made.after[:, :9], made.before[:, :9])
    assert (made.after[0, 9:, 0] == 0).all()


def test_visible_ranges_turn_the_query_as_if_the_keys_had_moved(tensors):
    query, key, value = tensors
    edit = VisibleRanges(Rows(15), ((0, 3, 5), (8, OPEN, 0)), 0)
    output = reference.attend(query, key, value, [edit], 0, SCALE, ROPE)
    kept = [0, 1, 2, *range(8, KEYS)]
    moved = key.clone()
    moved[:3] = ROPE.rotate(key[:3], torch.full((3, 1), 5))
    short = reference.attend(query[15:], moved[kept], value[kept], [], 0, SCALE)
    close(output[15:], short)
    seen = reference.attend(query, key, value, [], 0, SCALE)
    close(output[8:15], reference.attend(query, moved, value, [], 0, SCALE)[8:15])
    assert not torch.allclose(output[8:15], seen[8:15])


def test_a_row_that_sees_no_key_is_zero(tensors):
    edit = VisibleRanges(Rows(4), ((10, 12, 0),), 0)
    made = weights(tensors, edit)
    assert (reference.attend(*tensors, [edit], 0, SCALE)[4:10] == 0).all()
    assert (made.before[:, 4:10] == 0).all()
    assert (made.log_sum_exp[:, 4:10] == -torch.inf).all()


def test_mixed_vectors_are_added_after_the_gain(tensors):
    vectors = np.arange(2 * DIM, dtype="<f4").reshape(2, DIM)
    edit = HeadMix(ON, Rows(6), 0.5, vectors.tobytes(), 0)
    difference = reference.attend(*tensors, [edit], 0, SCALE) - reference.attend(
        *tensors, [], 0, SCALE
    )
    assert (difference[:6] == 0).all() and (difference[:, [1, 3]] == 0).all()
    expected = torch.from_numpy(vectors).double() / 2
    close(difference[6:, [0, 2]], expected.expand(KEYS - 6, 2, DIM))


def test_observations_read_the_weights_that_stand_before_a_transfer(tensors):
    moved = MassTransfer(ON, Rows(), KeyRanges(((0, 1),)), ALL_KEYS, 1.0, Gate(), 0)
    before = weights(tensors, moved, VisibleKeys(2, 6, False, 1)).before
    columns = reference.observed_columns(ObserveColumns(ON, Rows(3, 9), 0), before)
    close(columns[1, 4], before[1, 4:9, 4].sum())
    mass = reference.observed_mass(ObserveMass(ON, Rows(), KeyRanges(((0, 2),)), 0), before)
    close(mass, before[..., :2].sum(-1))


def test_found_keys_are_the_columns_with_the_largest_means(tensors):
    before = weights(tensors).before
    edit = FindKeys(ON, Rows(), 0.08, 3, 2, KeyRanges(((0, 1),)), True, 0)
    columns = reference.observed_columns(edit, before)
    found = reference.found_keys(edit, columns, 0)
    assert found[1] == found[3] == []
    for head in (0, 2):
        means = {k: before[head, k:, k].mean().item() for k in range(KEYS - 2)}
        flagged = [k for k, mean in means.items() if mean > 0.08][1:]
        best = sorted((k for k in flagged if k), key=lambda k: -means[k])[:2]
        assert found[head] == sorted(best) and best
