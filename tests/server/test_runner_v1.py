from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.server.cuda_standins import CPU, act, gain, new_table, payload
from tests.server.fake_kernel import HEAD_DIM, FakeKernel
from vllm.config import CUDAGraphMode
from vllm.forward_context import BatchDescriptor
from vllm.v1.cudagraph_dispatcher import CudagraphDispatcher

from heed_server.engine.books.edited_requests import EditedRequests
from heed_server.engine.books.key_searches import KeySearches
from heed_server.engine.books.searches_cuda import SearchingOnCUDA
from heed_server.engine.payload import RESERVED_KEY, pack
from heed_server.engine.running import step
from heed_server.engine.running.device_edits import DeviceEdits
from heed_server.engine.running.runner_v1 import EditsInRunner


def dispatcher(mode: CUDAGraphMode) -> CudagraphDispatcher:
    """vLLM's own, with the graphs of `mode` for two tokens."""
    made = CudagraphDispatcher.__new__(CudagraphDispatcher)
    scheduling = SimpleNamespace(max_num_seqs=8)
    made.vllm_config = SimpleNamespace(scheduler_config=scheduling)  # type: ignore[assignment]
    made.compilation_config = SimpleNamespace(max_cudagraph_capture_size=8)  # type: ignore[assignment]
    made.uniform_decode_query_len, made._bs_to_padded_graph_size = 1, [0, 1, 2]
    made.keys_initialized, made.cudagraph_mode = True, mode
    made.specialize_lora_count = False
    made.cudagraph_keys = {CUDAGraphMode.PIECEWISE: set(), CUDAGraphMode.FULL: set()}
    made.add_cudagraph_key(CUDAGraphMode.FULL, BatchDescriptor(2, 2, mode.separate_routine()))
    if mode.mixed_mode() == CUDAGraphMode.PIECEWISE:
        made.add_cudagraph_key(CUDAGraphMode.PIECEWISE, BatchDescriptor(2))
    return made


class Stock:
    """As much of the V1 runner as the seam reads; its metadata is the step that a builder finds."""

    def __init__(self) -> None:
        self.input_batch = SimpleNamespace(
            num_reqs=2, req_ids=["p", "e", None], num_computed_tokens_cpu=np.array([4, 7, 0])
        )
        self.query_start_loc = SimpleNamespace(np=np.array([0, 1, 3, 3]))
        self.cudagraph_dispatcher = dispatcher(CUDAGraphMode.FULL_AND_PIECEWISE)

    def _build_attention_metadata(self, **_: Any) -> Any:
        return step.current()

    def _determine_batch_execution_and_padding(self, *, force_eager: bool = False) -> CUDAGraphMode:
        modes = {CUDAGraphMode.NONE} if force_eager else None
        mode, _ = self.cudagraph_dispatcher.dispatch(2, uniform_decode=True, valid_modes=modes)
        return mode

    def _dummy_run(self) -> Any:
        return self._build_attention_metadata(), self._determine_batch_execution_and_padding()


class Runner(EditsInRunner, Stock):
    pass


def edited_runner(monkeypatch: pytest.MonkeyPatch) -> Runner:
    FakeKernel().install(monkeypatch)
    runner = Runner()
    table = new_table()
    on_device = DeviceEdits(
        table, CPU, most_tokens=64, most_requests=8, head_dim=HEAD_DIM, dtype=torch.float32
    )
    book = EditedRequests(table, KeySearches(SearchingOnCUDA(on_device.searches)))
    runner.edit_with(book, on_device)
    book.enter("e", payload("r", gain({0})), 0)
    return runner


def test_a_step_reaches_the_builder_and_the_device(monkeypatch: pytest.MonkeyPatch) -> None:
    runner = edited_runner(monkeypatch)
    edits = runner._build_attention_metadata(num_reqs=2)
    assert edits.rows.tolist() == [1]
    assert runner.on_device is not None
    assert runner.on_device._work.plan is edits.plan
    assert edits.plan.items(0)[:, 1:].tolist() == [[1, 2, 7, 1]]
    assert step.current() is None


def test_a_captured_batch_edits_nothing_whoever_stands_in_the_runners_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = edited_runner(monkeypatch)
    runner._build_attention_metadata(num_reqs=2)
    assert runner._dummy_run() == (None, CUDAGraphMode.FULL)
    assert runner.on_device is not None and runner.on_device._work.plan is None
    assert runner._build_attention_metadata(num_reqs=2) is not None


@pytest.mark.parametrize(
    ("running", "first", "counted"),
    [(False, 0, True), (False, 9, True), (False, 10, False), (True, 10, True)],
)
@pytest.mark.parametrize("mode", [CUDAGraphMode.FULL_AND_PIECEWISE, CUDAGraphMode.FULL])
def test_a_step_in_which_rows_are_counted_has_its_attention_outside_of_graphs(
    monkeypatch: pytest.MonkeyPatch,
    running: bool,
    first: int,
    counted: bool,
    mode: CUDAGraphMode,
) -> None:
    runner = edited_runner(monkeypatch)
    runner.cudagraph_dispatcher = dispatcher(mode)
    assert runner.edited is not None
    assert runner._determine_batch_execution_and_padding() is CUDAGraphMode.FULL
    runner.edited.leave("e", finished=True)
    runner.edited.enter("e", payload("r", *act({0}, ahead=False, running=running)), 0)
    runner.input_batch.num_computed_tokens_cpu[1] = first
    pieces = mode == CUDAGraphMode.FULL_AND_PIECEWISE
    eager = CUDAGraphMode.PIECEWISE if pieces else CUDAGraphMode.NONE
    expected = eager if counted else CUDAGraphMode.FULL
    assert runner._determine_batch_execution_and_padding() is expected
    assert runner._dummy_run()[1] is CUDAGraphMode.FULL


def test_a_step_whose_hidden_states_are_looked_at_has_no_graph(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runner = edited_runner(monkeypatch)
    monkeypatch.setattr(
        runner.edited, "flagging", SimpleNamespace(watches=lambda slot, first: first == 7)
    )
    assert runner._determine_batch_execution_and_padding() is CUDAGraphMode.NONE
    runner.input_batch.num_computed_tokens_cpu[1] = 8
    assert runner._determine_batch_execution_and_padding() is CUDAGraphMode.FULL


def test_without_edits_in_the_batch_the_stock_metadata_is_all() -> None:
    runner = Runner()
    assert runner._build_attention_metadata(num_reqs=2) is None


def test_a_request_enters_with_its_images() -> None:
    runner, entered = Runner(), []
    runner.edited = SimpleNamespace(  # type: ignore[assignment]
        enter=lambda name, given, computed, **rest: entered.append((name, given, computed, rest))
    )
    sent, request = payload("r", gain({0})), SimpleNamespace(mm_features=["image"])
    runner.requests = {"n": request}  # type: ignore[attr-defined]
    params = SimpleNamespace(extra_args={RESERVED_KEY: pack(sent)}, max_tokens=7)
    runner._enter("n", params, 32)
    rest = {"max_tokens": 7, "features": ["image"]}
    assert entered == [("n", sent, 32, rest)]
