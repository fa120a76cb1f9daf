"""Which steps of the V2 runner have no graph, or none that holds their attention."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.server.cuda_standins import act, cache
from tests.server.fake_kernel import BLOCK, HEAD_DIM, HEADS, LAYERS
from tests.server.server_v2 import Server, request, with_stand_ins
from vllm.config import CUDAGraphMode
from vllm.v1.core.sched.output import NewRequestData, SchedulerOutput
from vllm.v1.worker.gpu.cudagraph_utils import BatchExecutionDescriptor, CudaGraphManager
from vllm.v1.worker.gpu.dp_utils import dispatch_cg_and_sync_dp
from vllm.v1.worker.gpu.model_runner import GPUModelRunner

from heed_kernels.beside.flags import BlockFlags
from heed_kernels.edits import (
    OPEN,
    Edit,
    FlagKeys,
    GazeShift,
    HeadChoice,
    HeadRanking,
    HeadSet,
    KeyRanges,
    Rows,
)
from heed_kernels.evict import ColumnScore, Evict, NormScore, Score, WindowScore
from heed_kernels.inspection import Inspection
from heed_server.engine.books.compared_heads import ComparedHeads
from heed_server.engine.books.evicting_requests import EvictingRequests
from heed_server.engine.books.evictions_cuda import EvictingOnCUDA
from heed_server.engine.books.flagged_tokens import FlaggedTokens
from heed_server.engine.books.inspected_requests import InspectedRequests
from heed_server.engine.books.inspections_cuda import InspectingOnCUDA
from heed_server.engine.books.twins import Twins
from heed_server.engine.payload import Payload, Twin
from heed_server.engine.running.backend_cuda import split_cache


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    return with_stand_ins(monkeypatch)


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


@pytest.mark.parametrize("ranks", [1, 2])
def test_between_piecewise_graphs_attention_can_be_looked_at(
    server: Server, graphs: Any, ranks: int
) -> None:
    """But not on one data-parallel rank alone, whose graph may be padded otherwise."""
    server.runner.parallel_config.data_parallel_size = ranks
    full = BatchExecutionDescriptor(
        CUDAGraphMode.FULL, num_tokens=8, num_reqs=8, uniform_token_count=1
    )
    pieces = BatchExecutionDescriptor(CUDAGraphMode.PIECEWISE, num_tokens=8, num_reqs=None)
    server.runner.cudagraph_manager._candidates = {(n, 0): [full, pieces] for n in range(9)}
    running = request("r", *act({1}, ahead=True, running=True))
    server.step(("r", 10, 0), new=(running,))
    assert graphs(scheduled(("p", 1, 31))) is CUDAGraphMode.FULL
    expected = CUDAGraphMode.PIECEWISE if ranks == 1 else CUDAGraphMode.NONE
    assert graphs(scheduled(("r", 1, 11))) is expected
    server.book.flagging = SimpleNamespace(watches=lambda slot, first: True)  # type: ignore[assignment]
    assert graphs(scheduled(("r", 1, 11))) is CUDAGraphMode.NONE


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


def evict(score: Score, *, again: bool = False) -> Evict:
    window = score.window if isinstance(score, WindowScore) else 1
    counts = (4,) * LAYERS
    return Evict(
        score, None, counts, 4, 1, 2, again, window, isinstance(score, ColumnScore), Rows(10), 0
    )


@pytest.mark.parametrize(
    ("edit", "looked_at"),
    [
        (evict(NormScore()), [False, False, False, False]),
        (evict(WindowScore(2)), [False, True, False, False]),
        (evict(WindowScore(1), again=True), [False, True, False, True]),
        (evict(ColumnScore(), again=True), [True, True, True, True]),
    ],
    ids=["norm", "window", "last row", "columns"],
)
def test_a_step_in_which_rows_are_scored_runs_without_a_graph(
    server: Server, graphs: Any, edit: Evict, looked_at: list[bool]
) -> None:
    caches = {layer: split_cache(cache()) for layer in range(LAYERS)}
    device = EvictingOnCUDA(server.on_device.evictions, caches)
    server.book.evicting = EvictingRequests(server.book.table, device, lambda local: local)
    server.step(("e", 5, 0), new=(request("e", edit),))
    assert server.kernel.looked[0] == ("enter", [server.slot("e"), HEAD_DIM, 25])
    # Two chunks of the prompt, its first generated row, and the row that fills a block.
    steps = [("e", 5, 0), ("e", 5, 5), ("e", 1, 10), ("e", 1, 15)]
    assert [graphs(scheduled(step)) is CUDAGraphMode.NONE for step in steps] == looked_at


EVERY = HeadSet(((1 << HEADS) - 1,) * LAYERS)
LATER = HeadSet((0, *EVERY.masks[1:]))
ANSWER = Rows(9, OPEN)
IMAGE, QUESTION = KeyRanges(((2, 4),)), KeyRanges(((4, 9),))


@pytest.mark.parametrize(
    ("edit", "looked_at"),
    [
        (HeadRanking(EVERY, ANSWER, IMAGE, 2, 0.5, 0), [False, True, True]),
        (HeadChoice(EVERY, ANSWER, ANSWER.start, IMAGE, 2, 2.0, True, 0), [False, True, False]),
        (GazeShift(LATER, ANSWER, IMAGE, QUESTION, QUESTION, 0, 2, 5.0, 1.0, 0), [True] * 3),
        (FlagKeys(EVERY, Rows(0, 10), (1,), 2.0, IMAGE, False, 0), [True, True, False]),
    ],
    ids=["spin", "vhr", "gift", "var"],
)
def test_a_step_beside_whose_kernel_something_is_done_runs_without_a_graph(
    server: Server, graphs: Any, edit: Edit, looked_at: list[bool]
) -> None:
    table, found = server.book.table, server.on_device.found
    multiply = server.on_device.multiply
    server.book.comparing = ComparedHeads(table, lambda local: local, Twins(), None, multiply)
    server.book.flagging = FlaggedTokens(table, BlockFlags(LAYERS, 8, BLOCK), found)
    server.step(("e", 5, 0), new=(request("e", edit),))
    modes = []
    for rows, first in (5, 0), (5, 5), (1, 10):
        modes.append(graphs(scheduled(("e", rows, first), ("p", 1, 30))) is CUDAGraphMode.NONE)
        if first:
            server.step(("e", rows, first))
        item = np.array([[server.slot("e"), 0, rows, first, 0]])
        compared, failures = server.book.comparing.advance(item)
        assert not failures
        for rows_of in compared:
            for layer in range(LAYERS):
                known = rows_of.comparer.known
                if isinstance(edit, HeadChoice):
                    known[layer] = torch.ones(HEADS, dtype=torch.bool)
                    output = torch.zeros(rows, HEADS, HEAD_DIM)
                    rows_of.after_edits(layer, SimpleNamespace(query=output), output)
        for flags in server.book.flagging._by_slot.values():
            for layer in range(LAYERS):
                flags.settle(layer, torch.zeros(2, 4, dtype=torch.int32))
    assert modes == looked_at
    assert graphs(scheduled(("p", 1, 31))) is CUDAGraphMode.FULL


def test_only_the_row_that_a_twin_leaves_needs_a_step_without_a_graph(
    server: Server, graphs: Any
) -> None:
    server.book.comparing = ComparedHeads(server.book.table, lambda local: local, Twins())
    server.step(("t", 5, 0), new=(request("t"),))
    twin = Payload("t", 1, 10, None, (), twin=Twin("r", 1, (0, 1)))
    server.book.enter("t", twin, 0, server.slot("t"))
    steps = [("t", 5, 0), ("t", 5, 5), ("t", 1, 10)]
    modes = [graphs(scheduled(step)) is CUDAGraphMode.NONE for step in steps]
    assert modes == [False, True, False]


def test_rows_whose_attention_is_asked_for_are_computed_without_a_graph(
    server: Server, graphs: Any
) -> None:
    inspecting = InspectingOnCUDA(server.on_device.recordings)
    server.book.inspected = InspectedRequests(server.book.table, inspecting, Twins())
    server.step(("i", 5, 0), new=(request("i"),))
    asked = Inspection(10, (0,), (0,), (9,), (), 10, ("weights", "columns"))
    server.book.enter("i", Payload("i", 1, 10, None, (), (), asked), 0, server.slot("i"))
    steps = [("i", 5, 0), ("i", 5, 5), ("i", 1, 10)]
    modes = [graphs(scheduled(step)) is CUDAGraphMode.NONE for step in steps]
    assert modes == [True, True, False]
    server.step(("i", 5, 0))
    assert server.kernel.looked[-1] == ("load", [[server.slot("i"), 0, 5, 0, 0]])
