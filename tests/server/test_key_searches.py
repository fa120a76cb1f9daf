"""The worker's book of searches, and what reports make of it."""

from __future__ import annotations

from typing import Any

import numpy as np

from heed_kernels.cpu import KeySearch
from heed_kernels.edits import (
    ALL_KEYS,
    OPEN,
    Edit,
    FindKeys,
    FoundKeys,
    Gate,
    HeadSet,
    KeyRanges,
    MassTransfer,
    Rows,
)
from heed_kernels.table import EditTable
from heed_server.api.found_keys import of_all_ranks, sink_counts
from heed_server.engine.books.edited_requests import EditedRequests
from heed_server.engine.books.key_searches import KeySearches
from heed_server.engine.books.searches_cpu import SearchingOnCPU, StepSearches
from heed_server.engine.messages import Orders
from heed_server.engine.payload import Payload, pack, unpack

ON = HeadSet((0b0110, 0))


def act(prompt: int, source: int = 0) -> tuple[Edit, ...]:
    return (
        FindKeys(
            ON, Rows(0, prompt), 0.1, 1, 8, KeyRanges(()), True, source, prompt=prompt, ahead=True
        ),
        MassTransfer(ON, Rows(0, OPEN), FoundKeys(), ALL_KEYS, 0.6, Gate(), source),
    )


def book() -> EditedRequests:
    table = EditTable(4, 2, 4, 2)
    return EditedRequests(table, KeySearches(SearchingOnCPU(table)))


def payload(prompt: int, **fields: Any) -> Payload:
    made = Payload("report", 1, prompt, 0, act(prompt), **fields)
    assert unpack(pack(made)) == made
    return made


def step(edited: EditedRequests, names: list[str], rows: list[tuple[int, int]]) -> Any:
    starts = np.cumsum([0, *(end - first for first, end in rows)])
    return edited.plan(names, starts, np.array([first for first, _ in rows]))


def test_a_step_has_an_observer_only_for_those_who_search() -> None:
    edited = book()
    edited.enter("searching", payload(5), 0)
    plan = step(edited, ["plain", "searching"], [(0, 3), (0, 5)])
    (observer,) = plan.observers
    assert isinstance(observer, StepSearches)
    (search,) = observer.searches
    assert isinstance(search, KeySearch)
    assert search.item.tolist() == [0, 3, 5, 0, 1] and search.rows == 5
    assert step(edited, ["plain"], [(3, 4)]) is None


def test_a_prompt_cut_in_two_is_a_failure_that_the_report_carries() -> None:
    edited = book()
    edited.enter("searching", payload(5), 0)
    assert step(edited, ["searching"], [(0, 3)]).observers == ()
    report = edited.take(["report"])["report"][0]
    assert "more than one step" in report["failure"]
    assert edited.take_failed() == ["searching"] and edited.take_failed() == []


def test_cached_rows_are_a_failure() -> None:
    edited = book()
    edited.enter("searching", payload(5), 4)
    assert "prefix cache" in edited.take(["report"])["report"][0]["failure"]
    assert edited.take_failed() == ["searching"]


def test_a_request_goes_on_from_what_another_one_has_counted() -> None:
    edited = book()
    searches = edited.searches
    assert searches is not None
    causal = (FindKeys(ON, Rows(0, 64), 0.1, 1, 8, KeyRanges(()), True, 0, prompt=64), *act(64)[1:])
    edited.enter("first", Payload("one", 1, 64, 64, causal), 0)
    step(edited, ["first"], [(0, 32)])
    searches.order(Orders(keep={"first": "key"}))
    step(edited, ["first"], [(32, 64)])
    searches.order(Orders(resume={"second": "key"}, drop=["key"]))
    edited.enter("second", Payload("two", 1, 64, 64, causal), 32)
    (observer,) = step(edited, ["second"], [(32, 64)]).observers
    assert observer.searches[0].rows == 64
    searches.order(Orders(resume={"third": "key"}))
    edited.enter("third", Payload("three", 1, 64, 64, causal), 32)
    assert "uncounted" in edited.take(["three"])["three"][0]["failure"]


def test_a_search_that_fails_keeps_nothing_and_says_so() -> None:
    edited = book()
    searches = edited.searches
    assert searches is not None
    causal = (FindKeys(ON, Rows(0, 99), 0.1, 1, 8, KeyRanges(()), True, 0, prompt=99), *act(99)[1:])
    for name in ("sound", "failing"):
        edited.enter(name, Payload(name, 1, 99, 99, causal), 0)
    step(edited, ["sound", "failing"], [(0, 32), (0, 32)])
    searches.order(Orders(keep={"sound": "one", "failing": "other"}))
    step(edited, ["sound", "failing"], [(32, 64), (32, 65)])
    assert searches.not_kept() == ["other"]
    searches.order(Orders(keep={"sound": "second", "failing": "third"}))
    step(edited, ["sound", "failing"], [(64, 99), (65, 99)])
    assert searches.not_kept() == ["third"]
    searches.order(Orders())
    assert searches.not_kept() == []


def test_what_was_found_is_told_while_the_request_runs_and_after_it() -> None:
    edited = book()
    edited.enter("searching", payload(5, detailed=(0,)), 0)
    (observer,) = step(edited, ["searching"], [(0, 5)]).observers
    slot = observer.searches[0].slot
    edited.table.found_count[slot, 0, 1] = 2
    edited.table.found_keys[slot, 0, 1, :2] = 2, 4
    told = {
        "counts": {0: 2},
        "positions": {0: [2, 4]},
        "keys": {0: {1: [2, 4]}},
        "moved": {0: 0.0},
        "heads": {0: 2},
        "rows": 5,
    }
    running = edited.take(["report"])["report"][0]
    assert running["interventions"][0]["found"] == told
    edited.enter("other", Payload("second", 1, 5, 0, act(5)), 0)
    edited.leave("other", finished=True)
    finished = edited.take(["second"])["second"][0]["interventions"][0]["found"]
    assert "keys" not in finished and finished["counts"] == {0: 0}
    assert edited.table.rows_in_use == 1


def test_a_preempted_request_begins_its_search_again() -> None:
    edited = book()
    edited.enter("searching", payload(5), 0)
    step(edited, ["searching"], [(0, 5)])
    edited.leave("searching", finished=False)
    edited.enter("searching", payload(5), 0)
    (observer,) = step(edited, ["searching"], [(0, 7)]).observers
    assert observer.searches[0].rows == 5


def test_ranks_are_put_together() -> None:
    both = {"heads": {0: 3, 1: 1}, "rows": 10}
    one = both | {
        "counts": {0: 2, 1: 0},
        "positions": {0: [4, 9], 1: []},
        "moved": {0: 1.2, 1: 0.0},
    }
    other = both | {
        "counts": {0: 1, 1: 3},
        "positions": {0: [4], 1: [*range(10)]},
        "moved": {0: 0.3, 1: 0.5},
    }
    keys = {"keys": {0: {0: [4, 9]}, 1: {}}}, {"keys": {0: {2: [4]}, 1: {3: [*range(10)]}}}
    merged = of_all_ranks(one | keys[0], other | keys[1])
    assert sink_counts({"found": merged}) == {
        "sinks": {"0": 3, "1": 3},
        "sink_positions": {"0": [4, 9], "1": [0, 1, 2, 3, 4, 5, 6, 7]},
        "moved_mass": 0.05,
        "layer_moved_mass": {"0": 0.05, "1": 0.05},
        "sink_keys": {"0": {"0": [4, 9], "2": [4]}, "1": {"3": [*range(10)]}},
    }
    assert sink_counts({"found": of_all_ranks(one, other)}).keys() == {
        "sinks", "sink_positions", "moved_mass", "layer_moved_mass",
    }  # fmt: skip
    assert sink_counts({}) == sink_counts(None) == {}
