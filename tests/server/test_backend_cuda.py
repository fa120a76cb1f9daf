import inspect
import itertools
from typing import Any

import numpy as np
import pytest
import torch
from tests.server.cuda_standins import (
    BACKENDS,
    CPU,
    STOCK,
    UNTOUCHED,
    Stock,
    act,
    cache,
    common_metadata,
    gain,
    layer,
    new_table,
    payload,
)
from tests.server.fake_kernel import HEAD_DIM, HEADS, HEED, KV_HEADS, LAYERS, FakeKernel
from vllm.v1.attention.backends.registry import AttentionBackendEnum

from heed_kernels.edits import HeadRanking, HeadSet, KeyRanges, Rows
from heed_server.engine.books.compared_heads import ComparedHeads
from heed_server.engine.books.edited_requests import EditedRequests
from heed_server.engine.books.key_searches import KeySearches
from heed_server.engine.books.searches_cuda import SearchingOnCUDA
from heed_server.engine.books.twins import Twins
from heed_server.engine.running import backend_cuda, step
from heed_server.engine.running.backend_cuda import (
    EditingBuilder,
    EditingImpl,
    split_cache,
)
from heed_server.engine.running.device_edits import DeviceEdits


@pytest.fixture(params=BACKENDS, ids=lambda stock: stock.name)
def stock(request: pytest.FixtureRequest) -> Stock:
    found: Stock = request.param
    return found


class Model:
    """Attention layers over one backend, fed by hand as a runner would."""

    def __init__(self, stock: Stock, monkeypatch: pytest.MonkeyPatch) -> None:
        self.stock_calls = stock.record(monkeypatch)
        self.kernel = FakeKernel()
        self.kernel.install(monkeypatch)
        table = new_table()
        self.on_device = DeviceEdits(
            table, CPU, most_tokens=64, most_requests=8, head_dim=HEAD_DIM, dtype=torch.float32
        )
        self.book = EditedRequests(table, KeySearches(SearchingOnCUDA(self.on_device.searches)))
        self.builder = stock.builder(stock.heed("MetadataBuilder"))
        self.impl = stock.impl(stock.heed("Impl"))
        self.impl.edits, self.impl.layer_id = self.on_device, 0
        self.kv_cache = cache()

    def metadata(self, names: list[str], lengths: list[int], positions: list[int]) -> Any:
        starts = np.array([0, *np.cumsum(lengths)], np.int32)
        edits = self.book.plan(names, starts, np.array(positions, np.int32))
        self.on_device.load(edits)
        with step.carrying(edits):
            return self.builder.build(0, common_metadata(lengths, positions))

    def forward(
        self, metadata: Any, *, layer_id: int = 0, tokens: int | None = None
    ) -> list[float]:
        """The first element of each output row."""
        self.impl.layer_id = layer_id
        rows = tokens or metadata.num_actual_tokens
        query, key, value = (torch.zeros(rows, n, HEAD_DIM) for n in (HEADS, KV_HEADS, KV_HEADS))
        output = torch.full_like(query, UNTOUCHED)
        self.impl.forward(layer(), query, key, value, self.kv_cache, metadata, output)
        assert (output == output[:, :1, :1]).all()
        return [float(value) for value in output[:, 0, 0]]


@pytest.fixture
def model(stock: Stock, monkeypatch: pytest.MonkeyPatch) -> Model:
    return Model(stock, monkeypatch)


def same(left: Any, right: Any) -> bool:
    if isinstance(left, torch.Tensor) and isinstance(right, torch.Tensor):
        return (left.data_ptr(), left.shape, left.stride(), left.dtype) == (
            right.data_ptr(),
            right.shape,
            right.stride(),
            right.dtype,
        )
    return bool(left == right)


def stock_call(stock: Stock, model: Model, metadata: Any, arguments: tuple[Any, ...]) -> Any:
    """What the stock implementation gives its kernel for the stock metadata of the same batch."""
    before = len(model.stock_calls)
    stock.impl(stock.stock("Impl")).forward(*arguments[:5], metadata, arguments[6])
    assert len(model.stock_calls) == before + 1
    return model.stock_calls.pop()


@pytest.mark.parametrize("edited", [False, True])
def test_the_stock_kernel_gets_exactly_the_stock_call(
    stock: Stock, model: Model, edited: bool
) -> None:
    if edited:
        model.book.enter("e", payload("r", gain({0})), 0)
    lengths, positions = [3, 1, 5], [0, 20, 4]
    metadata = model.metadata(["p", "e", "q"], lengths, positions)
    rows = (torch.zeros(9, n, HEAD_DIM) for n in (HEADS, KV_HEADS, KV_HEADS, HEADS))
    query, key, value, output = rows
    arguments = (layer(), query, key, value, model.kv_cache, metadata, output)
    model.impl.forward(*arguments)
    (ours,) = model.stock_calls

    plain = stock.builder(stock.stock("MetadataBuilder"))
    common = common_metadata(lengths, positions)
    common.query_start_loc, common.seq_lens = metadata.query_start_loc, metadata.seq_lens
    common.block_table_tensor = metadata.block_table
    theirs = stock_call(stock, model, plain.build(0, common), arguments)
    # The stock builders own scratch buffers, one set each.
    scratch = {name for name in ours if name.startswith("softmax_segm")}
    assert ours.keys() == theirs.keys()
    assert [name for name in ours.keys() - scratch if not same(ours[name], theirs[name])] == []
    assert len(model.kernel.calls) == edited


def test_a_plain_step_launches_nothing_of_heeds(model: Model) -> None:
    model.book.enter("elsewhere", payload("r", gain({0})), 0)
    assert model.forward(model.metadata(["p", "q"], [2, 1], [0, 7])) == [STOCK] * 3
    assert not model.kernel.calls


def test_both_parts_of_a_step_are_timed(model: Model) -> None:
    model.book.enter("e", payload("r", gain({0})), 0)
    for lengths, positions in ([2, 4], [0, 3]), ([1, 1], [2, 7]):
        metadata = model.metadata(["p", "e"], lengths, positions)
        for layer_id in range(LAYERS):
            model.forward(metadata, layer_id=layer_id)
    model.metadata(["p"], [1], [3])
    samples = [(phase, path) for path, phase, seconds in backend_cuda.TIMES.take() if seconds > 0]
    assert samples == list(itertools.product(("prompt", "generation"), ("stock", "edited")))


def test_in_a_mixed_step_only_edited_rows_are_heeds(model: Model) -> None:
    model.book.enter("e", payload("r", gain({0})), 0)
    model.book.enter("f", payload("s", gain({0}, Rows(6))), 0)
    metadata = model.metadata(["p", "e", "f", "q"], [2, 1, 4, 1], [0, 20, 4, 9])
    assert model.forward(metadata) == [
        STOCK, STOCK, HEED + 20, STOCK, STOCK, HEED + 6, HEED + 7, STOCK,
    ]  # fmt: skip
    (call,) = model.kernel.calls
    assert call["block_table"] is metadata.block_table
    assert (call["layer"], call["scale"], call["rope"]) == (0, 0.125, None)


def test_a_layer_without_active_rows_is_left_to_the_stock_kernel(model: Model) -> None:
    model.book.enter("e", payload("r", gain({1})), 0)
    metadata = model.metadata(["e"], [3], [0])
    assert model.forward(metadata, layer_id=0) == [STOCK] * 3
    assert not model.kernel.calls
    assert model.forward(metadata, layer_id=1) == [HEED, HEED + 1, HEED + 2]


def test_a_batch_in_which_every_row_is_edited_skips_the_stock_kernel(model: Model) -> None:
    model.book.enter("e", payload("r", gain({0})), 0)
    model.book.enter("f", payload("s", gain({0, 2})), 0)
    metadata = model.metadata(["e", "f"], [1, 2], [5, 0])
    assert model.forward(metadata) == [HEED + 5, HEED, HEED + 1]
    assert not model.stock_calls
    assert model.forward(metadata, layer_id=2) == [STOCK, HEED, HEED + 1]
    assert len(model.stock_calls) == 1


@pytest.mark.parametrize("heads_first", [True, False])
def test_heed_reads_the_cache_that_the_stock_kernel_reads(model: Model, heads_first: bool) -> None:
    model.kv_cache = cache(heads_first=heads_first)
    model.book.enter("e", payload("r", gain({0})), 0)
    model.forward(model.metadata(["e", "p"], [1, 1], [3, 3]))
    (stock_kernel,), (heed_kernel,) = model.stock_calls, model.kernel.calls
    assert same(stock_kernel["k"], heed_kernel["key_cache"])
    assert same(stock_kernel["v"], heed_kernel["value_cache"])
    assert not same(heed_kernel["key_cache"], heed_kernel["value_cache"])


def test_a_search_looks_before_the_edits_in_every_layer_that_the_step_computes(
    model: Model,
) -> None:
    model.book.enter("s", payload("r", *act({0, 1}, ahead=True)), 0)
    metadata = model.metadata(["p", "s"], [1, 10], [4, 0])
    slot = int(model.book.table.occupied.nonzero()[0][0])
    assert model.kernel.looked == [("load", [[slot, 1, 10, 0, 1]])]
    for layer_id in range(3):
        # Where no row is edited the stock kernel's rows stay, and the search is asked all the same.
        rows = model.forward(metadata, layer_id=layer_id)
        assert rows[1:] == [HEED + row if layer_id < 2 else STOCK for row in range(10)]
    assert model.kernel.looked[1:] == [(0, [slot]), (1, [slot]), (2, [slot])]


def test_heads_are_compared_after_the_edits_whichever_kernel_wrote_the_rows(model: Model) -> None:
    weakened = HeadRanking(ranked({0, 1}), Rows(9), KeyRanges(((0, 2),)), 0, 0.5, 1)
    model.book.comparing = ComparedHeads(model.book.table, lambda local: local, Twins(), CPU)
    model.book.enter("e", payload("r", gain({0}, Rows(10)), weakened), 0)
    metadata = model.metadata(["p", "e"], [1, 4], [4, 8])
    last = [(HEED + 10) / 2, (HEED + 11) / 2]
    assert model.forward(metadata, layer_id=0) == [STOCK, STOCK, STOCK / 2, *last]
    assert model.forward(metadata, layer_id=1) == [STOCK, STOCK] + [STOCK / 2] * 3
    assert model.forward(metadata, layer_id=2) == [STOCK] * 5
    assert len(model.kernel.calls) == 1


def ranked(layers: set[int]) -> HeadSet:
    return HeadSet(tuple((1 << HEADS) - 1 if index in layers else 0 for index in range(LAYERS)))


def test_a_run_without_metadata_is_the_stock_one(model: Model) -> None:
    assert model.forward(None, tokens=3) == [0.0] * 3
    assert not model.stock_calls and not model.kernel.calls


def test_before_the_worker_starts_editing_forward_is_the_stock_one(model: Model) -> None:
    model.book.enter("e", payload("r", gain({0})), 0)
    metadata = model.metadata(["e"], [1], [4])
    captured = model.builder.build_for_cudagraph_capture(common_metadata([1], [0]))
    model.impl.edits = None
    assert model.forward(metadata) == model.forward(captured) == [STOCK]


def capture(model: Model, requests: int) -> list[torch.Tensor]:
    """Capture a decode graph of `requests` rows over two layers; returns their outputs."""
    model.on_device.load(None)
    metadata = model.builder.build_for_cudagraph_capture(
        common_metadata([1] * requests, [0] * requests)
    )
    model.kernel.captured = []
    assert model.forward(metadata, layer_id=0) == model.forward(metadata, layer_id=1)
    assert len(model.stock_calls) == len(model.kernel.captured) == 2
    return [call["output"] for call in model.kernel.captured]


def replay(model: Model, outputs: list[torch.Tensor]) -> list[list[float]]:
    for output in outputs:
        output.fill_(STOCK)
    model.kernel.replay()
    return [[float(row) for row in output[:, 0, 0]] for output in outputs]


def test_a_graph_captured_once_meets_the_edits_of_each_step(model: Model) -> None:
    outputs = capture(model, 3)
    assert replay(model, outputs) == [[STOCK] * 3, [STOCK] * 3]
    model.book.enter("e", payload("r", gain({0})), 0)
    model.metadata(["p", "e"], [1, 1], [3, 7])
    assert replay(model, outputs) == [[STOCK, HEED + 7, STOCK], [STOCK] * 3]
    model.book.enter("f", payload("s", gain({1})), 0)
    model.metadata(["f", "p", "e"], [1, 1, 1], [0, 4, 8])
    assert replay(model, outputs) == [[STOCK, STOCK, HEED + 8], [HEED, STOCK, STOCK]]
    model.metadata(["p"], [1], [5])
    assert replay(model, outputs) == [[STOCK] * 3, [STOCK] * 3]


def test_plain_steps_copy_nothing_to_the_device(model: Model) -> None:
    model.book.enter("e", payload("r", gain({0})), 0)
    (table,), work = model.kernel.tables, model.on_device._work
    model.metadata(["e"], [1], [3])
    assert (table.syncs, work.fills) == (2, 2)
    for position in (3, 4, 5):
        model.metadata(["p"], [1], [position])
    assert (table.syncs, work.fills) == (2, 3)


def test_graph_support_and_everything_else_vllm_asks_are_the_stock_classes_own(
    stock: Stock,
) -> None:
    backend, heed = stock.stock("Backend"), stock.heed("Backend")
    assert heed.get_name() == stock.name and AttentionBackendEnum[stock.name]
    assert heed.get_impl_cls() is stock.heed("Impl")
    builder = heed.get_builder_cls()
    assert builder is stock.heed("MetadataBuilder")
    assert builder.get_cudagraph_support(None, None) is (
        backend.get_builder_cls().get_cudagraph_support(None, None)
    )
    own = {"get_impl_cls", "get_builder_cls"}
    assert {name for name in vars(heed) if not name.startswith("_")} == own
    # vLLM finds the class again by this name.
    assert heed.full_cls_name() == (stock.wrapped, heed.__name__)


@pytest.mark.parametrize(
    ("kind", "method"),
    [("Impl", "forward"), ("MetadataBuilder", "build"),
     ("MetadataBuilder", "build_for_cudagraph_capture")],
)  # fmt: skip
def test_what_is_wrapped_takes_what_vllm_passes(stock: Stock, kind: str, method: str) -> None:
    ours = EditingImpl if kind == "Impl" else EditingBuilder
    theirs = getattr(stock.stock(kind), method)
    assert list(inspect.signature(getattr(ours, method)).parameters) == list(
        inspect.signature(theirs).parameters
    )


def test_the_stand_in_has_the_signatures_of_the_kernel() -> None:
    kernels = pytest.importorskip("heed_kernels.triton")
    fake: Any = FakeKernel()
    for name in (
        "attend", "warm_up", "DeviceTable", "StepWork", "DeviceSearches", "DeviceEvictions",
        "DeviceRecordings", "FoundOnDevice", "ColumnWork", "Room", "LayerInputs",
    ):  # fmt: skip
        assert list(inspect.signature(getattr(fake, name)).parameters) == list(
            inspect.signature(getattr(kernels, name)).parameters
        ), name


@pytest.mark.parametrize(
    ("name", "method"),
    [
        *(("DeviceSearches", method) for method in ("new", "load", "observe")),
        *(("DeviceEvictions", method) for method in (
            "enter", "leave", "pages", "moved", "load", "observe",
        )),
        *(("DeviceRecordings", method) for method in (
            "enter", "leave", "summing", "found", "load", "observe",
        )),
        ("FoundOnDevice", "write"),
        ("ColumnWork", "reserve"),
        ("ColumnWork", "warm_up"),
        ("StepWork", "reserve"),
    ],
)  # fmt: skip
def test_the_stand_ins_observers_take_what_the_kernels_take(name: str, method: str) -> None:
    kernels = pytest.importorskip("heed_kernels.triton")
    ours, theirs = (getattr(getattr(each, name), method) for each in (FakeKernel(), kernels))
    assert list(inspect.signature(ours).parameters) == list(inspect.signature(theirs).parameters)


def test_cache_views_are_halves_of_the_last_axis() -> None:
    whole = torch.arange(2 * 3 * 4 * 8).view(2, 3, 4, 8)
    key, value = split_cache(whole)
    assert key.shape == value.shape == (2, 4, 3, 4)
    assert key[1, 2, 0].tolist() == whole[1, 0, 2, :4].tolist()
    assert value[1, 2, 0].tolist() == whole[1, 0, 2, 4:].tolist()
