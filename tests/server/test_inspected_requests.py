"""The worker's book of inspections: rows are seen in order, and what was measured is taken once."""

from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from tests.kernels.paged_model import Model, layout_of

from heed_kernels.cpu.search import LayerInputs
from heed_kernels.edits import VisibleKeys
from heed_kernels.inspection import Inspection
from heed_kernels.table import EditTable
from heed_server.engine.books import inspected_requests
from heed_server.engine.books.edited_requests import EditedRequests
from heed_server.engine.books.inspected_requests import InspectedRequests
from heed_server.engine.books.inspections_cpu import InspectingOnCPU
from heed_server.engine.books.twins import Twins
from heed_server.engine.payload import Payload, pack, unpack

LENGTH, LAYERS = 40, 2
ASKED = Inspection(LENGTH, (0, 1), (1, 3), (39,), (((0, 1),),), LENGTH, ("mass", "columns"))


def payload(report: str = "r", inspection: Inspection | None = ASKED) -> Payload:
    return Payload(report, 1, LENGTH, LENGTH, (), (), inspection)


def book() -> tuple[EditedRequests, Model]:
    requests = EditedRequests(EditTable(slots=3, layers=LAYERS, query_heads=4, kv_heads=2))
    requests.inspected = InspectedRequests(requests.table, InspectingOnCPU(requests.table), Twins())
    return requests, Model(layout_of(32, 32), 4, 2, [LENGTH])


def run(requests: EditedRequests, model: Model, first: int, end: int) -> None:
    """A step of request "a", alone in the batch."""
    step = requests.plan(["a"], np.array([0, end - first]), np.array([first]))
    assert step is not None
    inputs = LayerInputs(
        model.query[0][first:end], model.pages, model.block_table, model.scale, None, model.layout
    )
    for layer in range(LAYERS):
        for observer in step.observers:
            observer.before_edits(layer, inputs)


def take(requests: EditedRequests, report: str = "r") -> dict[str, Any] | None:
    assert requests.inspected is not None
    return requests.inspected.take(report)


@pytest.mark.parametrize("cuts", [[0, 40], [0, 7, 33, 40]], ids=["whole", "chunks"])
def test_what_was_measured_is_taken_once_also_when_the_request_is_gone(cuts: list[int]) -> None:
    requests, model = book()
    requests.enter("a", payload(), 0)
    for first, end in pairwise(cuts):
        run(requests, model, first, end)
    requests.leave("a", finished=True)
    taken = take(requests)
    assert taken is not None and taken["failure"] is None and taken["heads"] == [1, 3]
    shape, data = taken["arrays"]["columns"]
    columns = np.frombuffer(data, "<f4").reshape(shape)
    assert columns.shape == (LAYERS, 2, LENGTH)
    np.testing.assert_allclose(columns.sum(axis=-1), LENGTH, rtol=1e-5)
    assert take(requests) is None
    assert requests.inspected is not None and not requests.inspected._by_slot


def test_a_request_that_comes_back_after_preemption_starts_again() -> None:
    requests, model = book()
    requests.enter("a", payload(), 0)
    run(requests, model, 0, 20)
    requests.leave("a", finished=False)
    requests.enter("a", payload(), 0)
    run(requests, model, 0, LENGTH)
    taken = take(requests)
    assert taken is not None and taken["failure"] is None


def test_rows_out_of_a_prefix_cache_are_a_failure_of_that_request() -> None:
    requests, model = book()
    requests.enter("a", payload(), 32)
    run(requests, model, 32, LENGTH)
    taken = take(requests)
    assert taken is not None and "row 32 came" in taken["failure"] and not taken["arrays"]


def test_requests_that_ask_for_nothing_are_not_looked_at() -> None:
    requests, _ = book()
    requests.enter("a", payload(inspection=None), 0)
    step = requests.plan(["a"], np.array([0, LENGTH]), np.array([0]))
    assert step is not None and step.observers == ()
    assert take(requests) is None


def test_an_inspection_leaves_every_row_to_the_stock_kernel() -> None:
    requests, _ = book()
    requests.enter("a", payload(), 0)
    step = requests.plan(["a"], np.array([0, LENGTH]), np.array([0]))
    assert step is not None
    assert all(step.plan.stock_needed(layer).all() for layer in range(LAYERS))


def test_recordings_that_nobody_takes_make_room(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspected_requests, "RECORDINGS_KEPT", 2)
    requests, _ = book()
    for name in ("x", "y", "z"):
        requests.enter(name, payload(report=name), 0)
        requests.leave(name, finished=True)
    assert take(requests, "x") is None
    assert take(requests, "z") is not None


@pytest.mark.parametrize(("room", "kept"), [(2.5, "yz"), (0.5, "z")])
def test_recordings_that_are_large_make_room_sooner(
    monkeypatch: pytest.MonkeyPatch, room: float, kept: str
) -> None:
    """The last one stays however large it is: its own client may still ask for it."""
    monkeypatch.setattr(inspected_requests, "MOST_BYTES_KEPT", int(4 * ASKED.values * room))
    requests, _ = book()
    for name in "xyz":
        requests.enter(name, payload(report=name), 0)
        requests.leave(name, finished=True)
    assert [name for name in "xyz" if take(requests, name) is not None] == list(kept)


def test_a_payload_travels_with_its_inspection() -> None:
    edits = (VisibleKeys(4, 16, False, 0),)
    for inspection in (
        None,
        ASKED,
        replace(ASKED, quantities=("apart",), without=((3, 5), (7, 9))),
    ):
        sent = Payload("r", 1, LENGTH, None, edits, (0,), inspection)
        assert unpack(pack(sent)) == sent
    assert ASKED.values == 2 * 2 * (1 + LENGTH)
