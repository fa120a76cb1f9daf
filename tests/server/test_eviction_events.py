"""The rule of when a request evicts stands twice: the scheduler's side and the worker's agree."""

from itertools import product

from heed_kernels.cpu.eviction import Eviction
from heed_kernels.edits import Rows
from heed_kernels.evict import ColumnScore, Evict, WindowScore
from heed_kernels.table import EditTable
from heed_server.engine.eviction_events import EvictionPolicy

PROMPTS, SIZES, BUDGETS = (1, 15, 16, 17, 40), (8, 16), (8, 16, 33)
ENDLESS = 1000
"""Rows of a request whose answer has no end here."""


def test_scheduler_and_worker_have_the_same_events() -> None:
    for prompt, size, again, least in product(PROMPTS, SIZES, (False, True), BUDGETS):
        edit = Evict(
            ColumnScore(), None, (least, least + 3), least + 3, 0, 0, again, 1, True,
            Rows(prompt), source=0,
        )  # fmt: skip
        table = EditTable(1, 2, 6, 2)
        eviction = Eviction(edit, table, table.insert([edit], prompt_length=prompt), prompt, size)
        policy = EvictionPolicy(prompt, ENDLESS, least, least + 3, again, 1, every_row=True)
        for end in range(1, 100):
            case = (prompt, size, again, least, end)
            assert eviction.due(end) == policy.evicts_at(end, size), case
            if again and end > prompt:
                assert eviction.wants(end - 1, 1), case


def test_a_window_is_scored_in_decode_where_the_scheduler_has_an_event() -> None:
    for prompt, size in product(PROMPTS, SIZES):
        edit = Evict(
            WindowScore(1), None, (8,), 8, 0, 0, True, 1, False, Rows(prompt), source=0
        )  # fmt: skip
        table = EditTable(1, 1, 6, 2)
        eviction = Eviction(edit, table, table.insert([edit], prompt_length=prompt), prompt, size)
        policy = EvictionPolicy(prompt, ENDLESS, 8, 8, again=True, together=1, every_row=False)
        for first, rows in product(range(prompt, 60), range(1, size)):
            event = policy.next_event(first + rows - 1, size) == first + rows
            assert eviction.wants(first, rows) == event, (prompt, size, first, rows)
