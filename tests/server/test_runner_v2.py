import inspect
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tests.server.cuda_standins import (
    BACKENDS,
    CPU,
    FakeKernel,
    act,
    gain,
    input_batch,
    new_table,
    payload,
    spec,
)
from vllm.config import CUDAGraphMode
from vllm.sampling_params import SamplingParams
from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput
from vllm.v1.kv_cache_interface import KVCacheConfig, KVCacheGroupSpec
from vllm.v1.worker.gpu import model_states
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor, CudaGraphManager
from vllm.v1.worker.gpu.dp_utils import dispatch_cg_and_sync_dp
from vllm.v1.worker.gpu.input_batch import InputBatch, InputBuffers
from vllm.v1.worker.gpu.model_runner import GPUModelRunner
from vllm.v1.worker.gpu.model_states.default import DefaultModelState
from vllm.v1.worker.gpu.model_states.interface import ModelState
from vllm.v1.worker.gpu.states import RequestState
from vllm.v1.worker.utils import AttentionGroup

from heed_kernels.edits import Edit, Rows
from heed_server.engine.backend_cuda import Captured, EditedStep
from heed_server.engine.backend_triton import HeedTritonAttentionBackend
from heed_server.engine.device_edits import DeviceEdits
from heed_server.engine.edited_requests import EditedRequests
from heed_server.engine.key_searches import KeySearches
from heed_server.engine.payload import RESERVED_KEY, pack
from heed_server.engine.runner_v2 import EditsInModelState, EditsInRunner, with_edits
from heed_server.engine.searches_cuda import SearchingOnCUDA

SLOTS = 4
LAYER = "layers.0.attn"


class Slots(RequestState):  # type: ignore[misc]
    """The runner's request states without their device buffers."""

    def __init__(self) -> None:
        self.req_id_to_index: dict[str, int] = {}
        self.index_to_req_id: dict[int, str] = {}
        self.free_indices = list(range(SLOTS))

    def add_request(self, req_id: str, **_: Any) -> None:
        index = self.free_indices.pop()
        self.req_id_to_index[req_id], self.index_to_req_id[index] = index, req_id

    def apply_staged_writes(self) -> None:
        pass


class Server:
    """The real V2 runner's book-keeping and the real model state, without a model."""

    kernel: FakeKernel

    def __init__(self, *, editing: bool = True) -> None:
        table = new_table(SLOTS)
        self.on_device = DeviceEdits(table, CPU, most_tokens=64, most_requests=SLOTS)
        self.book = EditedRequests(table, KeySearches(SearchingOnCUDA(self.on_device.searches)))
        self.state: Any = with_edits(DefaultModelState).__new__(with_edits(DefaultModelState))
        self.state.rope_state = self.state.prompt_embeds_state = None
        self.state.supports_mm_inputs = False
        self.state.model_config = SimpleNamespace(max_model_len=128)

        runner: Any = type("Runner", (EditsInRunner, GPUModelRunner), {})
        self.runner = runner.__new__(runner)
        nothing = SimpleNamespace(
            add_request=lambda *_: None,
            remove_request=lambda *_: None,
            append_block_ids=lambda *_, **__: None,
        )
        for name, value in {
            "model_state": self.state,
            "req_states": Slots(),
            "block_tables": nothing,
            "lora_state": nothing,
            "is_last_pp_rank": False,
        }.items():
            setattr(self.runner, name, value)
        for name in (
            "sampler", "adaptive_verification", "pooling_runner", "encoder_cache", "pp_handler",
            "prompt_logprobs_worker",
        ):  # fmt: skip
            setattr(self.runner, name, None)
        if editing:
            self.runner.edit_with(self.book, self.on_device)
        group = AttentionGroup(HeedTritonAttentionBackend, [LAYER], spec(), 0)
        group.metadata_builders = [BACKENDS[1].builder(BACKENDS[1].heed("MetadataBuilder"))]
        self.groups = [[group]]
        self.cache = KVCacheConfig(8, [], [KVCacheGroupSpec([LAYER], spec())])

    def step(
        self,
        *batch: tuple[str, int, int],
        new: tuple[NewRequestData, ...] = (),
        finished: tuple[str, ...] = (),
        preempted: tuple[str, ...] = (),
        padded: int = 0,
    ) -> Any:
        """Execute one scheduler output: requests of the batch with their rows and first positions.

        Returns the layer's attention metadata, or None for an empty batch.
        """
        output = SchedulerOutput.make_empty()
        output.scheduled_new_reqs = list(new)
        output.finished_req_ids = set(finished)
        output.preempted_req_ids = set(preempted)
        self.runner.finish_requests(output)
        self.runner.add_requests(output)
        if not batch:
            return None
        names, lengths, positions = (list(column) for column in zip(*batch, strict=True))
        slots = [self.runner.req_states.req_id_to_index[name] for name in names]
        made = input_batch(names, slots, lengths, positions, padded)
        return self.prepare(made, full=padded > 0)

    def prepare(self, batch: InputBatch, *, full: bool = False, for_capture: bool = False) -> Any:
        mode = CUDAGraphMode.FULL if full else CUDAGraphMode.NONE
        rows = batch.num_reqs_after_padding
        metadata = self.state.prepare_attn(
            batch,
            mode,
            (torch.zeros(rows, 4, dtype=torch.int32),),
            torch.zeros(1, batch.num_tokens_after_padding, dtype=torch.int64),
            self.groups,
            self.cache,
            for_capture=for_capture,
        )
        return metadata[LAYER]

    def rows(self, layer: int = 0) -> list[list[int]]:
        """What the device is to compute: slot, first token, rows, first position, batch row."""
        plan = self.on_device._work.plan
        if plan is None:
            return []
        return sorted(item.tolist() for item in plan.items(layer))

    def slot(self, name: str) -> int:
        index: int = self.runner.req_states.req_id_to_index[name]
        return index

    def computed(self, report: str) -> list[list[int]]:
        taken = self.book.take([report])[report][0]["interventions"][0]["computed"]
        return [list(pair) for pair in taken]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    kernel = FakeKernel()
    kernel.install(monkeypatch)
    server = Server()
    server.kernel = kernel
    return server


def request(name: str, *edits: Edit, computed: int = 0, tokens: int = 10) -> NewRequestData:
    """A request as the scheduler announces it; `name` is its report's id too."""
    extra = {RESERVED_KEY: pack(payload(name, *edits))} if edits else None
    return NewRequestData(
        req_id=name,
        prompt_token_ids=[1] * 10,
        mm_features=[],
        sampling_params=SamplingParams(extra_args=extra),
        pooling_params=None,
        block_ids=([],),
        num_computed_tokens=computed,
        lora_request=None,
        prefill_token_ids=[1] * tokens,
    )


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


def scheduled(*batch: tuple[str, int, int], new: tuple[NewRequestData, ...] = ()) -> Any:
    """A scheduler's output: requests that go on, with their rows and first positions, and new ones."""
    output = SchedulerOutput.make_empty()
    output.scheduled_new_reqs = list(new)
    output.scheduled_cached_reqs.req_ids = [name for name, _, _ in batch]
    output.scheduled_cached_reqs.num_computed_tokens = [first for _, _, first in batch]
    entering = {request.req_id: len(request.prefill_token_ids) for request in new}
    output.num_scheduled_tokens = {name: rows for name, rows, _ in batch} | entering
    return output


@pytest.fixture
def graphs(server: Server, monkeypatch: pytest.MonkeyPatch) -> Any:
    """How vLLM's own dispatch would run a step of as many rows as requests: as one graph."""
    full = BatchExecutionDescriptor(CUDAGraphMode.FULL, num_tokens=8, num_reqs=8)
    manager = CudaGraphManager.__new__(CudaGraphManager)
    manager._graphs_captured, manager._lora_dispatch_map = True, {}
    manager._candidates = {(tokens, 0): [full] for tokens in range(9)}
    server.runner.cudagraph_manager = manager
    monkeypatch.setattr(GPUModelRunner, "gather_batch_req_state", lambda *given: given[1:])

    def mode(output: Any, *, dummy_run: bool = False) -> CUDAGraphMode:
        assert server.runner.gather_batch_req_state(output, dummy_run) == (output, dummy_run)
        made, _ = dispatch_cg_and_sync_dp(manager, 1, 1, 1, dp_size=1, dp_rank=0)
        return made.cg_mode

    return mode


def test_a_step_in_which_rows_are_counted_runs_without_a_graph(server: Server, graphs: Any) -> None:
    frozen = request("f", *act({0}, ahead=False), tokens=5)
    running = request("r", *act({1}, ahead=True, running=True))
    server.step(("f", 5, 0), ("r", 10, 0), new=(frozen, running))
    full, none = CUDAGraphMode.FULL, CUDAGraphMode.NONE
    assert graphs(scheduled(new=(frozen,))) is none
    assert graphs(scheduled(("f", 5, 5), ("p", 1, 30))) is none
    assert graphs(scheduled(("p", 1, 31))) is full
    # What is found from the prompt is found before the forward, and a graph reads it.
    assert graphs(scheduled(("f", 1, 10), ("p", 1, 32))) is full
    assert graphs(scheduled(("f", 1, 11), ("r", 1, 10))) is none
    assert graphs(scheduled(("r", 1, 11)), dummy_run=True) is full
    server.runner.cudagraph_manager = None
    assert server.runner.gather_batch_req_state("profile", True) == ("profile", True)


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
