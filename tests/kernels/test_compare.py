"""Edits that compare heads: as the dense reference has them, on pages, in any steps, on two ranks."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from tests.kernels.paged_model import layout_of

from heed_kernels.beside.compare import HeadComparer, SettledRows, chosen_heads
from heed_kernels.cpu.search import LayerInputs
from heed_kernels.edits import (
    OPEN,
    Edit,
    HeadChoice,
    HeadRanking,
    HeadSet,
    KeyBias,
    KeyRanges,
    Rows,
)
from heed_kernels.reference.attention import attend
from heed_kernels.reference.compare import chosen, masked
from heed_kernels.table import EditTable

LAYERS, HEADS, KV_HEADS, HEAD_DIM, BLOCK = 1, 6, 2, 16, 16
PROMPT, LENGTH = 50, 61
SCALE = 0.4
ON = HeadSet((1,))
VISUAL = KeyRanges(((4, 20), (22, 30)))
ROWS = Rows(PROMPT - 1, OPEN)
BIAS = KeyBias(HeadSet((0b110101,)), Rows(), KeyRanges(((10, 33),)), -0.7, 1)
COMPARISONS = {
    "a ranking": HeadRanking(ON, ROWS, VISUAL, 4, 0.25, 0),
    "a ranking that removes": HeadRanking(ON, ROWS, VISUAL, 1, 0.0, 0),
    "a choice": HeadChoice(ON, ROWS, PROMPT - 1, VISUAL, 3, 2.0, True, 0),
    "a choice of outliers too": HeadChoice(ON, ROWS, PROMPT - 1, VISUAL, 2, 0.5, False, 0),
}


EVERY_ROW = HeadChoice(ON, Rows(), PROMPT - 1, VISUAL, 3, 2.0, True, 0)


def alone(local: torch.Tensor) -> torch.Tensor:
    return local


class Sequence:
    """Random tokens of one layer, and their pages."""

    def __init__(self, seed: int = 3) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.query = torch.randn(LENGTH, HEADS, HEAD_DIM, generator=draw)
        self.key, self.value = (
            torch.randn(LENGTH, KV_HEADS, HEAD_DIM, generator=draw) for _ in range(2)
        )
        self.layout = layout_of(BLOCK, HEAD_DIM)
        blocks = -(-LENGTH // BLOCK)
        self.table = torch.arange(blocks - 1, -1, -1, dtype=torch.int32)[None]
        self.pages = torch.zeros(blocks, KV_HEADS, BLOCK, 2 * HEAD_DIM)
        flat = self.pages.view(blocks, KV_HEADS, -1)
        for token in range(LENGTH):
            block, inside = int(self.table[0, token // BLOCK]), token % BLOCK
            flat[block][:, self.layout.key_offset[inside]] = self.key[token]
            flat[block][:, self.layout.value_offset[inside]] = self.value[token]

    def dense(self, edits: list[Edit]) -> torch.Tensor:
        return attend(self.query, self.key, self.value, edits, 0, SCALE)


def compared(
    sequence: Sequence,
    edits: list[Edit],
    steps: list[int],
    gather: Callable[[torch.Tensor], torch.Tensor] = alone,
    heads: slice = slice(0, HEADS),
    known: dict[int, torch.Tensor] | None = None,
    twin: dict[int, torch.Tensor] | None = None,
) -> torch.Tensor:
    """Outputs of one rank's heads: the other edits' dense ones, multiplied in steps."""
    comparison = next(e for e in edits if isinstance(e, HeadRanking | HeadChoice))
    others = [edit for edit in edits if edit is not comparison]
    output = sequence.dense(others)[:, heads].contiguous()
    local = heads.stop - heads.start
    table = EditTable(1, LAYERS, HEADS, KV_HEADS, head_start=heads.start, local_query_heads=local)
    slot = table.insert(edits, prompt_length=PROMPT)
    comparer = HeadComparer(table, slot, comparison, gather, {} if known is None else known, twin)
    group = HEADS // KV_HEADS
    pages = sequence.pages[:, heads.start // group : -(-heads.stop // group)]
    for first, end in zip([0, *steps], [*steps, LENGTH], strict=True):
        before = torch.zeros(5, local, HEAD_DIM)
        rows = torch.cat([before, output[first:end]])
        query = torch.cat([before, sequence.query[first:end, heads]])
        inputs = LayerInputs(query, pages, sequence.table, SCALE, None, sequence.layout)
        item = np.array([slot, 5, end - first, first, 0], np.int32)
        comparer.carry_out(item, 0, inputs, rows)
        output[first:end] = rows[5:]
    return output


@pytest.mark.parametrize("steps", [[], [49], [50], [17, 48, 49, 50, 51, 60]])
@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("name", COMPARISONS)
def test_outputs_are_the_dense_reference_s_in_any_steps(
    name: str, biased: bool, steps: list[int]
) -> None:
    edits: list[Edit] = [COMPARISONS[name], *([BIAS] if biased else [])]
    sequence = Sequence()
    expected = sequence.dense(edits)
    torch.testing.assert_close(compared(sequence, edits, steps), expected, rtol=1e-5, atol=1e-5)
    plain = sequence.dense(edits[1:])
    assert torch.equal(expected[: PROMPT - 1], plain[: PROMPT - 1])
    assert not torch.allclose(expected[PROMPT - 1], plain[PROMPT - 1])


@pytest.mark.parametrize("steps", [[], [50], [55]])
@pytest.mark.parametrize("biased", [False, True])
def test_heads_that_the_last_prompt_row_chooses_gain_in_every_row(
    biased: bool, steps: list[int]
) -> None:
    others: list[Edit] = [BIAS] if biased else []
    sequence = Sequence()
    expected, plain = sequence.dense([EVERY_ROW, *others]), sequence.dense(others)
    output = compared(sequence, [EVERY_ROW, *others], steps)
    torch.testing.assert_close(output, expected, rtol=1e-5, atol=1e-5)
    gained = (expected != plain).flatten(2).any(dim=2)
    assert gained.sum(dim=1).tolist() == [3] * LENGTH
    assert (gained == gained[PROMPT - 1]).all()


@pytest.mark.parametrize("edit", [*COMPARISONS.values(), EVERY_ROW])
def test_two_ranks_compare_the_whole_layer(edit: HeadRanking | HeadChoice) -> None:
    sequence, edits = Sequence(), list[Edit]([edit])
    halves = slice(0, 3), slice(3, 6)
    seen: dict[int, list[torch.Tensor]] = {0: [], 1: []}
    for rank, heads in enumerate(halves):

        def remember(local: torch.Tensor, rank: int = rank) -> torch.Tensor:
            seen[rank].append(local)
            return torch.cat([local, local])

        compared(sequence, edits, [], remember, heads)
    parts = []
    for heads in halves:
        calls = iter(zip(*(seen[each] for each in (0, 1)), strict=True))
        gather = lambda local, calls=calls: torch.cat(next(calls))  # noqa: E731
        parts.append(compared(sequence, edits, [], gather, heads))
    torch.testing.assert_close(torch.cat(parts, dim=1), sequence.dense(edits), rtol=1e-5, atol=1e-5)


def test_heads_that_were_chosen_stay_chosen() -> None:
    edit = COMPARISONS["a choice"]
    known = {0: torch.tensor([True, False, False, False, True, False])}
    sequence = Sequence()
    output = compared(sequence, [edit], [], known=known)
    factor = torch.ones(HEADS)
    factor[[0, 4]] = 2.0
    plain = sequence.dense([])
    torch.testing.assert_close(output[PROMPT - 1 :], plain[PROMPT - 1 :] * factor[:, None])


def test_outputs_of_a_twin_are_compared_with_in_place_of_the_row_s_own() -> None:
    sequence, choice = Sequence(), COMPARISONS["a choice"]
    assert isinstance(choice, HeadChoice)
    row, group = PROMPT - 1, HEADS // KV_HEADS
    key, value = (
        each[:PROMPT].repeat_interleave(group, 1) for each in (sequence.key, sequence.value)
    )
    weights = torch.einsum("hd,khd->hk", sequence.query[row], key).mul(SCALE).softmax(1)
    without = masked(choice, weights, value)
    edit = replace(choice, twin=True)
    same = compared(sequence, [edit], [17, 50], twin={0: without})
    torch.testing.assert_close(same, sequence.dense([choice]), rtol=1e-5, atol=1e-5)
    plain = sequence.dense([])
    # A twin that differs in two heads alone, one of them little.
    twin = {0: plain[row].clone()}
    twin[0][4] += 1
    twin[0][1] += 0.1
    edit = replace(edit, outliers_out=False)
    factor = chosen(edit, plain[row], twin[0])
    assert factor.tolist() == [2.0, 2.0, 1.0, 1.0, 2.0, 1.0]
    other = compared(sequence, [edit], [], twin=twin)
    torch.testing.assert_close(other[row:], plain[row:] * factor[:, None])
    assert not twin, "it is needed once"


def heads_of(chosen: torch.Tensor) -> list[int]:
    heads: list[int] = chosen.nonzero().flatten().tolist()
    return heads


def test_a_head_that_stands_out_twice_is_left_out() -> None:
    edit = HeadChoice(ON, ROWS, PROMPT - 1, VISUAL, 2, 2.0, True, 0)
    measured = torch.tensor([[9.0, 9], [2, 1], [3, 1], [1, 1], [1, 1], [1, 1]])
    assert heads_of(chosen_heads(edit, measured)) == [1, 2]
    # Far from the rest without the image alone, or with it alone, is no outlier.
    measured[0, 1] = 1
    assert heads_of(chosen_heads(edit, measured)) == [0, 2]


def test_of_equal_heads_the_lower_id_is_chosen() -> None:
    edit = HeadChoice(ON, ROWS, PROMPT - 1, VISUAL, 2, 2.0, True, 0)
    assert heads_of(chosen_heads(edit, torch.ones(6, 2))) == [0, 1]


def test_requests_whose_heads_are_chosen_are_multiplied_together_as_each_alone() -> None:
    """Of different lengths and layers, beside rows of others, on the second of two ranks."""
    heads = slice(3, 6)
    table = EditTable(3, 2, HEADS, KV_HEADS, head_start=heads.start, local_query_heads=3)
    choices = [
        HeadChoice(HeadSet(on), Rows(start, OPEN), start, VISUAL, 2, gain, True, 0)
        for on, start, gain in (((1, 1), 9, 2.0), ((0, 1), 4, 0.3), ((1, 0), 6, 3.0))
    ]
    comparers = []
    for number, choice in enumerate(choices):
        slot = table.insert([choice], prompt_length=choice.rows.start + 1)
        known = {
            layer: torch.arange(HEADS) % 3 == (number + layer) % 3
            for layer in range(2)
            if choice.on.masks[layer]
        }
        comparers.append(HeadComparer(table, slot, choice, alone, known))
    # A token of somebody else, all rows of a request that was preempted, two more tokens, one row, three.
    items = np.array([[0, 1, 14, 0, 0], [1, 17, 1, 30, 1], [2, 18, 3, 7, 2]], np.int32)
    draw = torch.Generator().manual_seed(1)
    before = torch.randn(22, 3, HEAD_DIM, generator=draw)
    inputs = LayerInputs(before, torch.empty(0), torch.empty(0), SCALE, None, layout_of(16, 16))
    together = SettledRows(list(zip(comparers, items, strict=True)))
    for layer in range(2):
        expected, output = before.clone(), before.clone()
        for comparer, item in zip(comparers, items, strict=True):
            comparer.carry_out(item, layer, inputs, expected)
        together.carry_out(layer, output)
        assert not torch.equal(output, before)
        assert torch.equal(output, expected)


def test_nothing_is_settled_while_heads_are_to_be_chosen_or_compared_in_each_row() -> None:
    table = EditTable(2, 2, HEADS, KV_HEADS)
    choice = HeadChoice(HeadSet((1, 1)), ROWS, PROMPT - 1, VISUAL, 2, 2.0, True, 0)
    slot = table.insert([choice], prompt_length=PROMPT)
    known: dict[int, torch.Tensor] = {0: torch.arange(HEADS) < 2}
    comparer = HeadComparer(table, slot, choice, alone, known)
    assert comparer.settled() is None
    known[1] = torch.arange(HEADS) > 3
    settled = comparer.settled()
    assert settled is not None
    assert settled.tolist() == [[2, 2, 1, 1, 1, 1], [1, 1, 1, 1, 2, 2]]
    by_kernel = HeadComparer(
        table, slot, choice, alone, known, multiply=lambda slot, layer, factors: None
    )
    ranking = HeadComparer(table, slot, HeadRanking(ON, ROWS, VISUAL, 4, 0.25, 0), alone, known)
    assert by_kernel.settled() is None and ranking.settled() is None
