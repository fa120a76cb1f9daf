"""Flagged tokens: as defined, and whatever the steps in which the rows come."""

from typing import Any

import numpy as np
import pytest
import torch

from heed_kernels.beside.flags import BlockFlags, KeyFlags
from heed_kernels.cpu.flags import FoundOnCPU
from heed_kernels.edits import (
    OPEN,
    SOURCES,
    FlagKeys,
    FoundKeys,
    Gate,
    HeadSet,
    KeyRanges,
    MassTransfer,
    Rows,
)
from heed_kernels.errors import EditError
from heed_kernels.reference.attention import flagged_keys
from heed_kernels.table import EditTable

LAYERS, HEADS, KV_HEADS, WIDTH, PROMPT = 3, 4, 2, 32, 150
BLOCK, OWN = 16, (9, 3, 0, 1, 12, 5, 6, 7, 8, 2)
VISUAL = KeyRanges(((5, 40), (44, 60)))
ON = HeadSet((0b1111, 0, 0b0101))


def flag(**changed: Any) -> FlagKeys:
    given = {
        "on": ON,
        "rows": Rows(0, PROMPT),
        "dimensions": (3, 17),
        "threshold": 2.0,
        "needed": VISUAL,
        "only_needed": False,
        "source": 0,
    }
    return FlagKeys(**(given | changed))


def states(rows: int) -> torch.Tensor:
    return torch.randn(rows, WIDTH, generator=torch.Generator().manual_seed(rows))


def entered(
    edit: FlagKeys, blocks: BlockFlags | None = None, computed: int = 0
) -> tuple[EditTable, KeyFlags]:
    table = EditTable(2, LAYERS, HEADS, KV_HEADS)
    transfer = MassTransfer(ON, Rows(60, OPEN), FoundKeys(), VISUAL, 0.5, Gate(), 0)
    slot = table.insert([edit, transfer], prompt_length=PROMPT)
    blocks = blocks or BlockFlags(LAYERS, 2 * len(OWN), BLOCK)
    return table, KeyFlags(table, slot, edit, blocks, FoundOnCPU(table), computed)


def seen(
    flags: KeyFlags, layer: int, given: torch.Tensor, first: int, end: int,
    own: tuple[int, ...] = OWN,
) -> torch.Tensor:  # fmt: skip
    """A step's look at rows [first, end) of `given`, behind a neighbour's seven tokens; other layers are
    looked at as well. Returns the batch's block table."""
    flags.advance(np.array([0, 7, end - first, first, 1], np.int32))
    table = torch.tensor([[3] * len(OWN), own], dtype=torch.int32)
    batch = torch.cat([10 * torch.ones(7, WIDTH), given[first:end]])
    for other in range(LAYERS):
        flags.look(other, batch[flags.tokens], table)
        if other != layer:
            flags.settle(other, table)
    return table


def fed(
    flags: KeyFlags, layer: int, given: torch.Tensor, steps: list[int], start: int = 0,
    own: tuple[int, ...] = OWN,
) -> None:  # fmt: skip
    """The rows of `given` from `start` on, cut before each of `steps`."""
    for first, end in zip([start, *steps], [*steps, len(given)], strict=True):
        flags.settle(layer, seen(flags, layer, given, first, end, own))


@pytest.mark.parametrize("only_needed", [False, True])
@pytest.mark.parametrize("steps", [[], [1, 6, 63, 64, 149], [150, 151, 152]])
def test_what_is_flagged_is_the_definition_s_in_any_steps(
    steps: list[int], only_needed: bool
) -> None:
    edit, given = flag(only_needed=only_needed), states(160)
    _, flags = entered(edit)
    fed(flags, 0, given, steps)
    expected = flagged_keys(edit, given)
    assert flags.found(0) == expected
    assert 0 < len(expected) < SOURCES
    assert max(expected) < PROMPT


def test_the_table_has_the_same_keys_for_every_head() -> None:
    edit, given = flag(), states(PROMPT)
    table, flags = entered(edit)
    fed(flags, 2, given, [50])
    expected = flagged_keys(edit, given)
    assert (table.found_count[0, 2] == len(expected)).all()
    assert (table.found_keys[0, 2, :, : len(expected)] == expected).all()
    starts = table.range_start[0, : table.range_count[0]]
    for key, at in zip(expected, table.found_range[0, 2, 0], strict=False):
        assert starts[at] <= key and (at + 1 == len(starts) or key < starts[at + 1])


@pytest.mark.parametrize("hit", [32, 144])
@pytest.mark.parametrize("steps", [[], [145, 150]])
def test_who_goes_on_from_another_s_blocks_has_their_flags(hit: int, steps: list[int]) -> None:
    edit, given = flag(), states(155)
    blocks = BlockFlags(LAYERS, 2 * len(OWN), BLOCK)
    fed(entered(edit, blocks)[1], 0, given, [60])
    own = (*OWN[: hit // BLOCK], *range(10, 20))[: len(OWN)]
    table, flags = entered(edit, blocks, hit)
    fed(flags, 0, given, steps, hit, own)
    assert flags.found(0) == flagged_keys(edit, given)
    assert table.found_count[0, 0, 0] == len(flags.found(0))


def test_who_is_computed_to_the_prompt_s_end_has_its_flags_before_its_first_row() -> None:
    edit, given = flag(rows=Rows(0, 144)), states(155)
    blocks = BlockFlags(LAYERS, 2 * len(OWN), BLOCK)
    fed(entered(edit, blocks)[1], 0, given, [])
    table, flags = entered(edit, blocks, computed=144)
    fed(flags, 0, given, [145], 144)
    assert flags.found(0) == flagged_keys(edit, given)
    assert table.found_count[0, 0, 0] > 0


def test_blocks_that_another_request_computes_in_the_same_step_are_settled_after_all_looks() -> (
    None
):
    edit, given = flag(), states(PROMPT)
    blocks = BlockFlags(LAYERS, 2 * len(OWN), BLOCK)
    first, second = entered(edit, blocks)[1], entered(edit, blocks, 96)[1]
    table = seen(second, 0, given, 96, PROMPT)
    seen(first, 0, given, 0, PROMPT)
    for flags in (second, first):
        flags.settle(0, table)
        assert flags.found(0) == flagged_keys(edit, given)


def test_a_block_s_new_tokens_take_the_place_of_its_old_ones_flags() -> None:
    edit = flag()
    blocks = BlockFlags(LAYERS, 2 * len(OWN), BLOCK)
    fed(entered(edit, blocks)[1], 0, states(160), [])
    _, flags = entered(edit, blocks)
    given = states(PROMPT)
    for first in range(0, PROMPT, 50):
        flags.settle(0, seen(flags, 0, given, first, first + 50))
        assert flags.found(0) == flagged_keys(edit, given[: first + 50])


def test_a_layer_without_a_flag_where_one_is_needed_has_none() -> None:
    edit = flag(needed=KeyRanges(((148, 149),)))
    _, flags = entered(edit)
    given = states(PROMPT)
    given[148, [3, 17]] = 0
    fed(flags, 0, given, [])
    assert flags.found(0) == [] == flagged_keys(edit, given)


def test_layers_without_heads_are_not_looked_at() -> None:
    table, flags = entered(flag())
    fed(flags, 1, states(PROMPT), [])
    assert flags.found(1) == [] and not table.found_count[:, 1].any()
    assert flags.found(0) and flags.left_out(1) == 0


def test_of_too_many_the_first_hold() -> None:
    edit, given = flag(threshold=0.0), states(PROMPT)
    _, flags = entered(edit)
    fed(flags, 0, given, [70])
    assert flags.found(0) == list(range(SOURCES)) == flagged_keys(edit, given)
    assert flags.left_out(0) == PROMPT - SOURCES


def test_rows_that_do_not_follow_are_refused() -> None:
    _, flags = entered(flag())
    with pytest.raises(EditError, match="row 5 came"):
        flags.advance(np.array([0, 0, 3, 5, 0], np.int32))


def test_rows_whose_hidden_states_were_not_looked_at_are_an_error_of_the_next_step() -> None:
    _, flags = entered(flag())
    flags.advance(np.array([0, 0, 100, 0, 0], np.int32))
    with pytest.raises(EditError, match="layer 0 were not looked at"):
        flags.advance(np.array([0, 0, 50, 100, 0], np.int32))


def test_generated_rows_are_not_looked_at() -> None:
    _, flags = entered(flag())
    assert flags.watches(PROMPT), "flags of blocks that others computed are read once"
    fed(flags, 0, states(PROMPT), [])
    assert not flags.watches(PROMPT)
    for first in range(PROMPT, PROMPT + 3):
        flags.advance(np.array([0, 0, 1, first, 0], np.int32))
    assert flags.tokens == slice(0, 0)
