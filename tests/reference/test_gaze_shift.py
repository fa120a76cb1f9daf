"""`GazeShift` on pages, as the independent definition has it, in any steps and on two ranks."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
import vision_definition
from tests.kernels.test_compare import (
    HEAD_DIM,
    HEADS,
    KV_HEADS,
    LENGTH,
    PROMPT,
    SCALE,
    Sequence,
    alone,
)
from vision_definition import Images

from heed_kernels.beside.shift import GazeShifter, saliency
from heed_kernels.cpu.search import LayerInputs
from heed_kernels.edits import OPEN, GazeShift, HeadSet, KeyRanges, Rows
from heed_kernels.errors import EditError
from heed_kernels.reference.attention import attention_weights
from heed_kernels.table import EditTable

LAYERS, IMAGE_END = 2, 30
VISUAL = KeyRanges(((4, 20), (22, IMAGE_END)))
QUESTION = KeyRanges(((IMAGE_END, PROMPT - 1),))
CASES: dict[str, dict[str, Any]] = {
    "as published": {"alpha": 5.0, "beta": 1.0, "head_fraction": 0.5},
    "gentle": {"alpha": 0.7, "beta": 1.6, "head_fraction": 0.34},
    "of some rows": {
        "alpha": 3.0,
        "beta": 0.5,
        "head_fraction": 1,
        "content_rows": [{"start": 31, "end": 33}, {"start": 40, "end": 41}],
    },
    "of no rows": {"alpha": 3.0, "beta": 1.5, "head_fraction": 0.5, "content_rows": []},
}


def edit_of(case: dict[str, Any]) -> GazeShift:
    spans = case.get("content_rows", "all")
    turning = (
        QUESTION if spans == "all" else KeyRanges(tuple((s["start"], s["end"]) for s in spans))
    )
    heads = int(case["head_fraction"] * HEADS)
    return GazeShift(
        HeadSet((0, 0b111111)), Rows(PROMPT - 1, OPEN), VISUAL, QUESTION, turning, 0, heads,
        case["alpha"], case["beta"], 0,
    )  # fmt: skip


def images() -> Images:
    visual = torch.zeros(LENGTH, dtype=torch.bool)
    for start, end in VISUAL.ranges:
        visual[start:end] = True
    return Images(visual, 4, IMAGE_END)


def defined(case: dict[str, Any], layers: list[Sequence]) -> torch.Tensor:
    """Outputs [rows, heads, head_dim] of the second layer."""
    edit = {"content_rows": "all", **case}
    weights = [attention_weights(each.query, each.key, [], 0, SCALE).before for each in layers]
    salient = vision_definition.saliency(edit, images(), weights[0], PROMPT)
    output = layers[1].dense([]).transpose(0, 1)
    value = layers[1].value.repeat_interleave(HEADS // KV_HEADS, dim=1).transpose(0, 1)
    return vision_definition.shifted(
        output, edit, images(), weights[1], value, salient, PROMPT
    ).transpose(0, 1)


def shifted(
    edit: GazeShift,
    layers: list[Sequence],
    steps: list[int],
    gather: Callable[[torch.Tensor], torch.Tensor] = alone,
    heads: slice = slice(0, HEADS),
    evicted_end: int = 0,
) -> torch.Tensor:
    """Outputs of one rank's heads of the second layer, its rows in steps."""
    local, group = heads.stop - heads.start, HEADS // KV_HEADS
    table = EditTable(1, LAYERS, HEADS, KV_HEADS, head_start=heads.start, local_query_heads=local)
    slot = table.insert([edit], prompt_length=PROMPT)
    table.evicted_end[slot] = evicted_end
    shifter = GazeShifter(table, slot, edit, gather, {})
    output = layers[1].dense([])[:, heads].contiguous()
    for first, end in zip([0, *steps], [*steps, LENGTH], strict=True):
        item = np.array([0, 5, end - first, first, 0], np.int32)
        rows = torch.cat([torch.zeros(5, local, HEAD_DIM), output[first:end]])
        for layer, each in enumerate(layers):
            query = torch.cat([torch.zeros(5, local, HEAD_DIM), each.query[first:end, heads]])
            pages = each.pages[:, heads.start // group : -(-heads.stop // group)]
            inputs = LayerInputs(query, pages, each.table, SCALE, None, each.layout)
            shifter.carry_out(item, layer, inputs, rows)
        output[first:end] = rows[5:]
    return output


@pytest.fixture(scope="module")
def layers() -> list[Sequence]:
    return [Sequence(5), Sequence(6)]


@pytest.mark.parametrize("steps", [[], [30], [29, 31, 49], [*range(1, LENGTH)]], ids=len)
@pytest.mark.parametrize("name", CASES)
def test_outputs_are_those_of_the_definition_in_any_steps(
    layers: list[Sequence], name: str, steps: list[int]
) -> None:
    expected = defined(CASES[name], layers)
    found = shifted(edit_of(CASES[name]), layers, steps)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    plain = layers[1].dense([])
    assert torch.equal(found[: PROMPT - 1], plain[: PROMPT - 1])
    assert not torch.allclose(found[PROMPT - 1 :], plain[PROMPT - 1 :])


def test_keys_that_an_eviction_let_go_are_never_read(layers: list[Sequence]) -> None:
    with pytest.raises(EditError, match="gone"):
        shifted(edit_of(CASES["as published"]), layers, [PROMPT], evicted_end=PROMPT)


def test_two_ranks_compare_the_whole_layer(layers: list[Sequence]) -> None:
    """What a rank gathers is known from a run of the whole layer: each call gives all heads' values."""
    edit = edit_of(CASES["as published"])
    calls: list[torch.Tensor] = []

    def remember(whole: torch.Tensor) -> torch.Tensor:
        calls.append(whole.clone())
        return whole

    whole = shifted(edit, layers, [40], remember)
    for heads in slice(0, 3), slice(3, 6):
        given = iter(calls)

        def gather(local: torch.Tensor, heads: slice = heads, given: Any = given) -> torch.Tensor:
            every: torch.Tensor = next(given)
            torch.testing.assert_close(local, every[heads], rtol=1e-5, atol=1e-6)
            return every

        part = shifted(edit, layers, [40], gather, heads)
        torch.testing.assert_close(part, whole[:, heads], rtol=1e-5, atol=1e-5)


def test_the_saliency_lies_between_0_and_1_and_a_flat_one_is_0() -> None:
    edit = edit_of(CASES["as published"])
    draw = torch.rand(HEADS, 24, generator=torch.Generator().manual_seed(0))
    found = saliency(edit, draw, 7)
    assert (found.min(), found.max()) == (0, 1)
    assert not saliency(edit, torch.ones(HEADS, 24), 7).any()
    assert not saliency(edit, draw, 0).any()
