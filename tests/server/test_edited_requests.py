import numpy as np
import pytest

from heed_kernels.edits import HeadGain, HeadSet, Rows, VisibleKeys
from heed_kernels.table import EditTable
from heed_server.engine.books.edited_requests import REPORTS_KEPT, EditedRequests
from heed_server.engine.payload import Payload, pack, unpack

LAYERS, HEADS = 2, 4
EVERYWHERE = HeadSet((0b1111,) * LAYERS)


def book(slots: int = 4) -> EditedRequests:
    return EditedRequests(EditTable(slots=slots, layers=LAYERS, query_heads=HEADS, kv_heads=2))


def payload(report: str = "r", choices: int = 1, rows: Rows | None = None) -> Payload:
    edit = HeadGain(EVERYWHERE, rows or Rows(), 2.0, source=0)
    return Payload(report, choices, prompt_length=10, publication_limit=None, edits=(edit,))


def run(requests: EditedRequests, name: str, first: int, count: int) -> None:
    requests.plan([name], np.array([0, count]), np.array([first]))


def test_a_payload_survives_the_wire() -> None:
    sent = payload(rows=Rows(9))
    assert unpack(pack(sent)) == sent


def test_a_request_holds_one_row_from_entering_to_leaving() -> None:
    requests = book()
    requests.enter("a", payload(), 0)
    assert requests.rows_in_use == 1 and "a" in requests
    requests.leave("a", finished=True)
    assert requests.rows_in_use == requests.table.rows_in_use == 0


def test_a_preempted_request_gives_its_row_back_and_its_report_counts_each_row_once() -> None:
    requests = book(slots=1)
    requests.enter("a", payload(), 4)
    run(requests, "a", 4, 6)
    run(requests, "a", 10, 1)
    requests.leave("a", finished=False)
    assert requests.table.rows_in_use == 0
    requests.enter("a", payload(), 0)
    run(requests, "a", 0, 11)
    run(requests, "a", 11, 1)
    requests.leave("a", finished=True)
    report = requests.take(["r"])["r"][0]
    assert report["interventions"][0]["computed"] == [[0, 12]]


def test_rows_outside_the_scope_are_not_reported() -> None:
    requests = book()
    requests.enter("a", payload(rows=Rows(10)), 0)
    run(requests, "a", 0, 10)
    run(requests, "a", 10, 1)
    assert requests.take(["r"])["r"][0]["interventions"][0]["computed"] == [[10, 11]]


def test_what_the_scheduler_freed_stands_in_the_report_of_the_method_that_hides_keys() -> None:
    requests = book()
    edits = (HeadGain(EVERYWHERE, Rows(), 2.0, source=0), VisibleKeys(4, 16, True, source=1))
    requests.enter("a", Payload("r", 1, 10, None, edits), 0)
    requests.enter("b", payload("other"), 0)
    run(requests, "a", 0, 40)
    requests.released({"a": (1, 16)})
    requests.released({"a": (3, 48), "gone": (9, 9)})
    reports = requests.take(["r", "other"])
    measured = reports["r"][0]["interventions"]
    assert (measured[1]["freed_blocks"], measured[1]["evicted_tokens"]) == (3, 48)
    assert "freed_blocks" not in measured[0]
    assert "freed_blocks" not in reports["other"][0]["interventions"][0]


def test_children_of_one_request_report_apart() -> None:
    requests = book()
    for index in (0, 1, 2):
        requests.enter(f"{index}_cmpl-x", payload(choices=3), 0)
        run(requests, f"{index}_cmpl-x", 0, 10 + index)
    requests.leave("1_cmpl-x", finished=True)
    taken = requests.take(["r"])["r"]
    assert {c: r["interventions"][0]["computed"] for c, r in taken.items()} == {
        c: [[0, 10 + c]] for c in (0, 1, 2)
    }


def test_a_finished_report_is_handed_over_once() -> None:
    requests = book()
    requests.enter("a", payload(), 0)
    requests.leave("a", finished=True)
    assert requests.take(["r"]) and not requests.take(["r"])


def test_reports_that_nobody_takes_are_bounded() -> None:
    requests = book()
    for index in range(REPORTS_KEPT + 10):
        requests.enter("a", payload(report=str(index)), 0)
        requests.leave("a", finished=True)
    assert not requests.take(["0"]) and requests.take([str(REPORTS_KEPT + 9)])


def test_a_step_without_edited_requests_has_no_plan() -> None:
    requests = book()
    assert requests.plan(["plain"], np.array([0, 3]), np.array([0])) is None
    requests.enter("a", payload(), 0)
    assert requests.plan(["plain"], np.array([0, 3]), np.array([0])) is None


def test_a_set_that_the_table_cannot_take_fails_that_request_alone() -> None:
    requests = book(slots=1)
    requests.enter("a", payload("ra"), 0)
    requests.enter("b", payload("rb"), 0)
    assert "b" not in requests and "a" in requests
    requests.leave("b", finished=True)
    assert requests.take(["rb"])["rb"][0]["failure"]


@pytest.mark.parametrize("name", ["a", "unknown"])
def test_leaving_twice_or_without_entering_is_harmless(name: str) -> None:
    requests = book()
    requests.enter("a", payload(), 0)
    requests.leave(name, finished=True)
    requests.leave(name, finished=True)
    requests.leave("a", finished=True)
    assert requests.table.rows_in_use == 0


def test_a_report_that_was_taken_while_running_is_not_kept_again() -> None:
    requests = book()
    requests.enter("a", payload(), 0)
    assert requests.take(["r"])
    requests.leave("a", finished=True)
    assert not requests.take(["r"])


def test_sets_that_fit_an_empty_table_fit_beside_any_others() -> None:
    scratch = EditTable(slots=1, layers=LAYERS, query_heads=HEADS, kv_heads=2)
    requests = book(slots=8)
    for number in range(8):
        # As different from each other as they can be: nothing in the pools is shared.
        edits = tuple(
            HeadGain(HeadSet((1 << head, 0)), Rows(start), 1.5 + number + head / 8, source=0)
            for head in range(HEADS)
            for start in (0, 3, 10)
        )
        scratch.release(scratch.insert(edits))
        sent = Payload(f"r{number}", 1, 10, None, edits)
        requests.enter(f"q{number}", sent, 0)
    assert requests.rows_in_use == 8
