import inspect
from types import SimpleNamespace
from typing import Any

import pytest
from tests.server.cuda_standins import (
    CPU,
    act,
    gain,
)
from tests.server.fake_kernel import LAYERS, FakeKernel
from tests.server.server_v2 import SLOTS, Server, request, with_stand_ins
from vllm.v1.worker.gpu import model_states
from vllm.v1.worker.gpu.input_batch import InputBatch, InputBuffers
from vllm.v1.worker.gpu.model_states.interface import ModelState

from heed_kernels.edits import OPEN, HeadSet, KeyRanges, KeyScale, PatchKeys, Rows
from heed_server.engine.running.backend_cuda import Captured, EditedStep
from heed_server.engine.running.runner_v2 import EditsInModelState, EditsInRunner


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    return with_stand_ins(monkeypatch)


EVERYWHERE = gain({0, 1, 2})


def test_an_edited_requests_slot_is_the_runners_own_index(server: Server) -> None:
    server.step(("p", 3, 0), ("e", 10, 0), new=(request("p"), request("e", EVERYWHERE)))
    assert server.book.table.occupied.nonzero()[0].tolist() == [server.slot("e")]
    assert server.rows() == [[server.slot("e"), 3, 10, 0, 1]]


def test_a_plain_step_carries_no_edits(server: Server) -> None:
    metadata = server.step(("p", 10, 0), new=(request("p"), request("e", EVERYWHERE)))
    assert not hasattr(metadata, "edited")
    assert server.rows() == []
    metadata = server.step(("p", 1, 10), ("e", 10, 0))
    assert isinstance(metadata.edited, EditedStep)


def test_rows_after_a_prefix_hit_stand_at_their_absolute_positions(server: Server) -> None:
    server.step(("e", 2, 8), new=(request("e", EVERYWHERE, computed=8),))
    assert server.rows() == [[server.slot("e"), 0, 2, 8, 0]]
    assert server.computed("e") == [[8, 10]]
    server.step(("f", 2, 8), new=(request("f", gain({0}, Rows(9)), computed=8),))
    assert server.rows() == [[server.slot("f"), 1, 1, 9, 0]]


def test_chunks_and_generated_rows_follow_each_other(server: Server) -> None:
    server.step(("e", 4, 0), new=(request("e", EVERYWHERE),))
    server.step(("e", 6, 4))
    assert server.rows() == [[server.slot("e"), 0, 6, 4, 0]]
    for position in (10, 11):
        server.step(("e", 1, position))
    assert server.rows() == [[server.slot("e"), 0, 1, 11, 0]]
    assert server.computed("e") == [[0, 12]]


def test_a_preempted_request_comes_back_into_another_slot_and_its_report_goes_on(
    server: Server,
) -> None:
    server.step(("e", 10, 0), new=(request("e", EVERYWHERE),))
    server.step(("e", 1, 10))
    first = server.slot("e")
    server.step(("p", 10, 0), new=(request("p"),), preempted=("e",))
    assert server.book.rows_in_use == 0 and server.rows() == []
    back = request("e", EVERYWHERE, computed=8, tokens=11)
    server.step(("e", 3, 8), ("p", 1, 10), new=(back,))
    assert server.slot("e") != first
    assert server.rows() == [[server.slot("e"), 0, 3, 8, 0]]
    server.step(("e", 1, 11))
    server.step(finished=("e",))
    assert server.computed("e") == [[0, 12]]
    assert not server.book.take(["e"])


def test_a_request_that_ends_while_preempted_reports_what_ran(server: Server) -> None:
    server.step(("e", 10, 0), new=(request("e", EVERYWHERE),))
    server.step(preempted=("e",))
    server.step(finished=("e",))
    assert server.computed("e") == [[0, 10]]
    assert not server.book._live and not server.book._keys


def test_a_finished_request_frees_its_slot_for_a_plain_one(server: Server) -> None:
    server.step(("e", 10, 0), new=(request("e", EVERYWHERE),))
    slot = server.slot("e")
    metadata = server.step(("p", 10, 0), new=(request("p"),), finished=("e",))
    assert server.slot("p") == slot
    assert not hasattr(metadata, "edited") and server.rows() == []


def test_a_slot_passes_from_one_set_of_edits_to_another_in_one_step(server: Server) -> None:
    server.step(("e", 10, 0), new=(request("e", gain({0})),))
    server.step(("f", 10, 0), new=(request("f", gain({1})),), finished=("e",))
    assert server.rows(0) == []
    assert server.rows(1) == [[server.slot("f"), 0, 10, 0, 0]]


def test_rows_that_pad_a_graph_are_nobodys(server: Server) -> None:
    new = (request("p"), request("e", EVERYWHERE))
    server.step(("p", 10, 0), ("e", 10, 0), new=new)
    server.step(("p", 1, 10), ("e", 1, 10), padded=2)
    assert server.rows() == [[server.slot("e"), 1, 1, 10, 1]]
    server.step(("p", 1, 11), padded=3)
    assert server.rows() == []


@pytest.mark.parametrize("for_capture", [True, False])
def test_a_made_up_batch_edits_nothing_although_it_names_slots_in_use(
    server: Server, for_capture: bool
) -> None:
    """Captured batches, and those that one data-parallel rank runs for the sake of others."""
    new = tuple(request(f"e{index}", EVERYWHERE) for index in range(SLOTS))
    server.step(*((f"e{index}", 1, 0) for index in range(SLOTS)), new=new)
    assert len(server.rows()) == SLOTS
    dummy = InputBatch.make_dummy(SLOTS, SLOTS, InputBuffers(SLOTS, 64, CPU))
    metadata = server.prepare(dummy, full=True, for_capture=for_capture)
    assert server.rows() == []
    assert isinstance(getattr(metadata, "edited", None), Captured) is for_capture
    assert server.computed("e0") == [[0, 1]]


def test_on_a_model_that_cannot_be_edited_the_stock_path_is_all(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    FakeKernel().install(monkeypatch)
    server = Server(editing=False)
    metadata = server.step(("e", 10, 0), new=(request("e", EVERYWHERE),))
    server.step(finished=("e",))
    assert not hasattr(metadata, "edited") and server.book.rows_in_use == 0


def test_a_search_is_loaded_with_each_step_of_its_request(server: Server) -> None:
    metadata = server.step(("s", 10, 0), new=(request("s", *act({0}, ahead=True)),))
    (observer,) = metadata.edited.observers
    assert [search.rows for search in observer.searches] == [10]
    server.step(("s", 1, 10), padded=3)
    slot = server.slot("s")
    assert server.kernel.looked == [
        ("load", [[slot, 0, 10, 0, 0]]),
        ("load", [[slot, 0, 1, 10, 0]]),
    ]


class OwnState(ModelState):  # type: ignore[misc]
    """A model state that a model brings along."""


def test_whatever_state_vllm_chooses_for_a_model_gets_edits_while_it_is_loaded() -> None:
    model = SimpleNamespace(get_model_state_cls=lambda: OwnState)

    class Loader:
        def load_model(self, load_dummy_weights: bool = False) -> None:
            self.chosen = model_states.resolve_model_state_cls(None, model)

    loader: Any = type("Runner", (EditsInRunner, Loader), {})()
    loader.load_model(load_dummy_weights=True)
    assert issubclass(loader.chosen, EditsInModelState) and issubclass(loader.chosen, OwnState)
    assert loader.chosen.__mro__.index(EditsInModelState) < loader.chosen.__mro__.index(OwnState)
    assert model_states.resolve_model_state_cls(None, model) is OwnState


@pytest.mark.parametrize("method", ["add_request", "remove_request"])
def test_hooks_take_what_vllm_passes(method: str) -> None:
    assert list(inspect.signature(getattr(EditsInModelState, method)).parameters) == list(
        inspect.signature(getattr(ModelState, method)).parameters
    )


def test_the_hook_into_a_step_takes_whatever_vllm_passes() -> None:
    parameters = inspect.signature(ModelState.prepare_attn).parameters
    assert list(parameters)[:2] == ["self", "input_batch"]


def test_the_images_of_a_request_reach_the_book_with_it(server: Server) -> None:
    image: Any = object()
    entered: list[Any] = []
    server.book.class_attention = lambda features: entered.extend(features) or ()
    patches = KeyScale(
        HeadSet((1,) * LAYERS), Rows(9, OPEN), PatchKeys(KeyRanges(()), False, 1), 1.0, 0.5, 0
    )
    new = request("e", patches)
    new.mm_features = [image]
    server.step(("e", 10, 0), new=(new,))
    assert entered == [image]
