"""When a request evicts: the one rule against a plain list of its events, and both sides that ask it."""

from collections.abc import Iterator
from itertools import product

import pytest

from heed_kernels.edits import OPEN, Rows
from heed_kernels.events import EvictionEvents
from heed_kernels.evict import ColumnScore, Evict, Score, WindowScore
from heed_kernels.eviction import Eviction
from heed_kernels.table import EditTable
from heed_server.engine.payload import Payload, pack
from heed_server.engine.scheduling.eviction_events import EvictionPolicy, eviction_in

PROMPTS, SIZES, BUDGETS, ANSWERS = (1, 15, 16, 17, 40), (8, 16), (8, 16, 33), (None, 2, 20, 30)
LONGEST = 100


def listed(prompt: int, size: int, *, again: bool, rows: int = OPEN) -> list[int]:
    """Every event up to LONGEST tokens, by counting."""
    ends = [prompt, *(end for end in range(size, LONGEST, size) if again and end > prompt)]
    return [end for end in ends if end < rows]


def evict(score: Score, prompt: int, *, again: bool, least: int = 8) -> Evict:
    return Evict(
        score, None, (least, least + 3), least + 3, 0, 0, again, 1, True, Rows(prompt, OPEN), 0
    )  # fmt: skip


def both_sides(
    edit: Evict, prompt: int, size: int, answer: int | None = None
) -> tuple[Eviction, EvictionPolicy]:
    """The worker's side and the scheduler's of the same request, each from what it is given."""
    table = EditTable(1, 2, 6, 2)
    rows = OPEN if answer is None else prompt + answer - 1
    slot = table.insert([edit], prompt_length=prompt)
    policy = eviction_in(pack(Payload("r", 1, prompt, prompt, (edit,))), answer)
    assert policy is not None
    return Eviction(edit, table, slot, prompt, size, rows=rows), policy


@pytest.mark.parametrize("again", [False, True])
def test_the_rule_finds_every_event_of_the_list_and_no_other(again: bool) -> None:
    for prompt, size, rows in product(PROMPTS, SIZES, (OPEN, 18, 40, 57)):
        events = EvictionEvents(prompt, again, fewest=8, rows=rows)
        ends = listed(prompt, size, again=again, rows=rows)
        for computed in range(LONGEST - size):
            later = (end for end in ends if end > computed)
            assert events.next_after(computed, size) == next(later, None), (prompt, size, computed)
            assert events.ends_at(computed + 1, size) == (computed + 1 in ends)


def grid() -> Iterator[tuple[int, int, bool, int, int | None]]:
    return iter(product(PROMPTS, SIZES, (False, True), BUDGETS, ANSWERS))


def test_scheduler_and_worker_evict_at_the_listed_events_that_exceed_the_budget() -> None:
    for prompt, size, again, least, answer in grid():
        edit = evict(ColumnScore(), prompt, again=again, least=least)
        eviction, policy = both_sides(edit, prompt, size, answer)
        rows = OPEN if answer is None else prompt + answer - 1
        ends = listed(prompt, size, again=again, rows=rows)
        for end in range(1, LONGEST):
            case = (prompt, size, again, least, answer, end)
            expected = end in ends and end > least
            assert eviction.due(end) == policy.evicts_at(end, size) == expected, case
            if again and end > prompt:
                assert eviction.wants(end - 1, 1), case


def test_no_step_of_the_scheduler_goes_beyond_an_event_of_the_worker() -> None:
    for prompt, size, again, least, answer in grid():
        edit = evict(ColumnScore(), prompt, again=again, least=least)
        eviction, policy = both_sides(edit, prompt, size, answer)
        for computed, count in product(range(prompt + 20), (1, 5, 30)):
            end = computed + policy.chunk(computed, count, size)
            assert not any(eviction.due(inside) for inside in range(computed + 1, end))


def test_a_window_is_scored_in_decode_where_there_is_an_event() -> None:
    for prompt, size in product(PROMPTS, SIZES):
        edit = evict(WindowScore(1), prompt, again=True)
        eviction, _ = both_sides(edit, prompt, size)
        ends = listed(prompt, size, again=True)
        for first, rows in product(range(prompt, 60), range(1, size)):
            assert eviction.wants(first, rows) == (first + rows in ends), (prompt, size, first)
