"""Requests through the server's books and buffers, with the kernels of a device and with those of the CPU."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from tests.kernels.paged_model import layout_of, write_plain

from heed_kernels.beside.flags import BlockFlags
from heed_kernels.cpu import attend
from heed_kernels.cpu.flags import FoundOnCPU
from heed_kernels.cpu.search import LayerInputs
from heed_kernels.edits import (
    ALL_KEYS,
    OPEN,
    Edit,
    FindKeys,
    FlagKeys,
    FoundKeys,
    Gate,
    GazeShift,
    HeadChoice,
    HeadRanking,
    HeadSet,
    KeyBias,
    KeyRanges,
    MassTransfer,
    Rows,
)
from heed_kernels.evict import ColumnScore, DifferenceScore, Evict, WindowScore
from heed_kernels.inspection import QUANTITIES, Inspection
from heed_kernels.reference import attention as reference
from heed_kernels.table import EditTable
from heed_server.engine.books.compared_heads import ComparedHeads
from heed_server.engine.books.edited_requests import EditedRequests
from heed_server.engine.books.evicting_requests import EvictingRequests
from heed_server.engine.books.evictions_cpu import EvictingOnCPU
from heed_server.engine.books.evictions_cuda import EvictingOnCUDA
from heed_server.engine.books.flagged_tokens import FlaggedTokens
from heed_server.engine.books.inspected_requests import InspectedRequests
from heed_server.engine.books.inspections_cpu import InspectingOnCPU
from heed_server.engine.books.inspections_cuda import InspectingOnCUDA
from heed_server.engine.books.key_searches import KeySearches
from heed_server.engine.books.searches_cpu import SearchingOnCPU
from heed_server.engine.books.searches_cuda import SearchingOnCUDA
from heed_server.engine.books.sink_samples import SinkSamples
from heed_server.engine.books.twins import Twins
from heed_server.engine.payload import Payload, Twin
from heed_server.engine.running.device_edits import DeviceEdits

LAYERS, HEADS, KV_HEADS, HEAD_DIM, SIZE = 2, 4, 2, 32, 16
PROMPT, TOTAL, SCALE = 44, 49, 32**-0.5
ROW = np.array([4, 2, 6, 5], np.int32)
TARGETS = [1, 3, 7]


class Tokens:
    """One request's queries, keys and values, [layers, tokens, heads, head_dim]."""

    def __init__(self) -> None:
        generator = torch.Generator().manual_seed(0)

        def draw(heads: int) -> torch.Tensor:
            return torch.randn(LAYERS, TOTAL, heads, HEAD_DIM, generator=generator)

        self.query, self.key, self.value = draw(HEADS), draw(KV_HEADS), draw(KV_HEADS)
        self.key[:, 5] *= 2.5
        self.states = torch.randn(LAYERS, TOTAL, 24, generator=generator)


class OnCPU:
    """As the CPU's worker and backend do it."""

    device = torch.device("cpu")

    def __init__(self, tokens: Tokens) -> None:
        self.tokens, self.layout, self.row = tokens, layout_of(SIZE, HEAD_DIM), ROW.copy()
        self.table = EditTable(3, LAYERS, HEADS, KV_HEADS, multiplies=isinstance(self, OnDevice))
        self.book = self.new_book()

    def new_book(self) -> EditedRequests:
        shape = (9, KV_HEADS, SIZE, 2 * HEAD_DIM)
        self.caches = {layer: torch.zeros(shape) for layer in range(LAYERS)}
        book = EditedRequests(self.table, KeySearches(SearchingOnCPU(self.table)))
        device = EvictingOnCPU(self.table, self.caches, self.layout, SIZE)
        book.evicting = EvictingRequests(self.table, device, lambda local: local)
        book.flagging = FlaggedTokens(
            self.table, BlockFlags(LAYERS, 9, SIZE), FoundOnCPU(self.table)
        )
        twins = Twins()
        book.comparing = ComparedHeads(self.table, lambda local: local, twins)
        book.inspected = InspectedRequests(self.table, InspectingOnCPU(self.table), twins)
        return book

    def write(self, layer: int, first: int, end: int) -> None:
        key, value = self.tokens.key[layer, first:end], self.tokens.value[layer, first:end]
        halves = self.caches[layer].view(9, KV_HEADS, 2 * SIZE, HEAD_DIM).chunk(2, dim=2)
        write_plain(key, value, *halves, self.slots(first, end))

    def slots(self, first: int, end: int) -> torch.Tensor:
        position = torch.arange(first, end)
        return torch.from_numpy(self.row).long()[position // SIZE] * SIZE + position % SIZE

    def step(self, first: int, end: int, name: str = "r") -> list[torch.Tensor]:
        edits = self.book.plan([name], np.array([0, end - first]), np.array([first]))
        assert edits is not None
        self.load(edits)
        outputs = []
        for layer in range(LAYERS):
            self.look(layer, edits, self.tokens.states[layer, first:end])
            self.write(layer, first, end)
            outputs.append(self.layer(layer, edits, first, end))
        kept = self.book.evict(name, end, self.row, TARGETS)
        if kept is not None:
            self.row[: len(TARGETS)] = np.where(np.arange(3) < end // SIZE, TARGETS, self.row[:3])
        return outputs

    def load(self, edits: Any) -> None:
        pass

    def look(self, layer: int, edits: Any, states: torch.Tensor) -> None:
        states, blocks = states.to(self.device), self.blocks()
        for watcher in edits.watchers:
            watcher.look(layer, states[watcher.tokens], blocks)
        for watcher in edits.watchers:
            watcher.settle(layer, blocks)

    def blocks(self) -> torch.Tensor:
        """The block table of a batch of this request alone."""
        return torch.from_numpy(self.row)[None].to(self.device)

    def stock(self, layer: int, first: int, end: int) -> torch.Tensor:
        """What the stock kernel leaves in all rows."""
        tokens = self.tokens
        key, value = tokens.key[layer, :end], tokens.value[layer, :end]
        query = tokens.query[layer, first:end]
        return reference.attend(query, key, value, [], 0, SCALE).contiguous()

    def layer(self, layer: int, edits: Any, first: int, end: int) -> torch.Tensor:
        blocks = self.blocks()
        query = self.tokens.query[layer, first:end].contiguous()
        inputs = LayerInputs(query, self.caches[layer], blocks, SCALE, None, self.layout)
        for observer in edits.observers:
            observer.before_edits(layer, inputs)
        output = self.stock(layer, first, end)
        attend(
            query=query, output=output, kv_cache=self.caches[layer], block_table=blocks,
            table=self.table, plan=edits.plan, layer=layer, scale=SCALE, rope=None, layout=self.layout,
        )  # fmt: skip
        for comparer in edits.comparers:
            comparer.after_edits(layer, inputs, output)
        return output


class OnDevice(OnCPU):
    """As the CUDA worker and backend do it, on any device. waiting: what stands around a layer's work."""

    def __init__(
        self,
        tokens: Tokens,
        device: str = "cpu",
        waiting: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> None:
        self.device, self.waiting = torch.device(device), waiting
        super().__init__(tokens)

    def new_book(self) -> EditedRequests:
        device = self.device
        self.edits = DeviceEdits(
            self.table,
            device,
            most_tokens=TOTAL,
            most_requests=1,
            head_dim=HEAD_DIM,
            dtype=torch.float32,
        )
        # vLLM's layout, and tokens before heads behind it.
        self.halves = {
            layer: torch.zeros(9, SIZE, KV_HEADS, 2 * HEAD_DIM, device=device).chunk(2, dim=-1)
            for layer in range(LAYERS)
        }
        book = EditedRequests(self.table, KeySearches(SearchingOnCUDA(self.edits.searches)))
        evicting = EvictingOnCUDA(self.edits.evictions, self.halves)
        book.evicting = EvictingRequests(self.table, evicting, lambda local: local)
        flags = BlockFlags(LAYERS, 9, SIZE, device)
        book.flagging = FlaggedTokens(self.table, flags, self.edits.found, device)
        twins = Twins()
        book.comparing = ComparedHeads(
            self.table, lambda local: local, twins, device, self.edits.multiply
        )
        inspecting = InspectingOnCUDA(self.edits.recordings)
        book.inspected = InspectedRequests(self.table, inspecting, twins)
        return book

    def write(self, layer: int, first: int, end: int) -> None:
        slots = self.slots(first, end).to(self.device)
        for cache, tokens in zip(
            self.halves[layer], (self.tokens.key, self.tokens.value), strict=True
        ):
            cache[slots // SIZE, slots % SIZE] = tokens[layer, first:end].to(self.device)

    def load(self, edits: Any) -> None:
        self.edits.load(edits)

    def layer(self, layer: int, edits: Any, first: int, end: int) -> torch.Tensor:
        query = self.tokens.query[layer, first:end].to(self.device)
        output = self.stock(layer, first, end).to(self.device)
        tensors = query, *self.halves[layer], self.blocks()
        of_layer: dict[str, Any] = {"layer": layer, "scale": SCALE, "rope": None}
        with self.waiting():
            self.edits.observe(edits.observers, *tensors, **of_layer)
            self.edits.attend(*tensors, output, **of_layer)
            self.edits.compare(edits.comparers, *tensors, output, **of_layer)
        return output.cpu()


def act(*, off: bool = False) -> Iterator[Edit]:
    on = HeadSet((0b0110, 0b1111))
    until = PROMPT if off else OPEN
    yield FindKeys(
        on, Rows(0, PROMPT), 1.5, 1, 4, KeyRanges(()), True, 0, True, PROMPT, until=until
    )
    yield MassTransfer(on, Rows(0, until), FoundKeys(), ALL_KEYS, 0.6, Gate(), 0)


def evict(score: Any, *, again: bool = False) -> Evict:
    window = score.window if isinstance(score, WindowScore) else 1
    every_row = isinstance(score, ColumnScore)
    counts = (30, 26)
    return Evict(score, None, counts, 30, 4, 8, again, window, every_row, Rows(PROMPT), source=1)


ON, SECOND = HeadSet((0b1111, 0b1111)), HeadSet((0, 0b1111))
VISUAL, QUESTION = KeyRanges(((3, 20),)), KeyRanges(((20, PROMPT - 1),))
ANSWER = Rows(PROMPT - 1, OPEN)
BIAS = KeyBias(HeadSet((0b0101, 0b0011)), Rows(7), KeyRanges(((4, 30),)), 0.7, 1)
VAR: tuple[Edit, ...] = (
    FlagKeys(ON, Rows(0, PROMPT), (1, 7), 1.7, VISUAL, False, 0),
    MassTransfer(ON, Rows(20, OPEN), FoundKeys(), VISUAL, 0.6, Gate(VISUAL, VISUAL, 0.3, 0.1), 0),
)
CHOICE = HeadChoice(ON, ANSWER, PROMPT - 1, VISUAL, 2, 2.0, True, 1)
SETS: dict[str, tuple[Edit, ...]] = {
    "var": VAR,
    "spin": (HeadRanking(ON, ANSWER, VISUAL, 3, 0.1, 0),),
    "vhr beside a bias": (BIAS, CHOICE),
    "vhr of every row": (BIAS, replace(CHOICE, rows=Rows())),
    "gift": (GazeShift(SECOND, ANSWER, VISUAL, QUESTION, QUESTION, 0, 2, 5.0, 1.3, 0),),
    "var and vhr": (*VAR, CHOICE),
    "act": tuple(act()),
    "window": (evict(WindowScore(8, 5)),),
    "columns": (evict(ColumnScore(), again=True),),
    "act and keys": (*act(off=True), evict(DifferenceScore())),
}


@pytest.mark.parametrize(
    "name",
    [pytest.param(name, marks=pytest.mark.slow) if "and vhr" in name else name for name in SETS],
)
def test_a_request_gets_the_same_on_both(name: str) -> None:
    tokens = Tokens()
    same_on_both(name, OnCPU(tokens), OnDevice(tokens))


def same_on_both(name: str, *servers: OnCPU) -> float:
    """A request of SETS on the CPU and on a device. Returns the largest difference of an output."""
    payload, largest = Payload("report", 1, PROMPT, 0, SETS[name], detailed=(0, 1)), 0.0
    for server in servers:
        server.book.enter("r", payload, 0, max_tokens=40)
    # A search for keys ends steps at rows 32 and P.
    cuts = sorted({0, 12, 32, PROMPT, 45, 48, TOTAL}) if "act" in name else [0, 12, PROMPT, 45, 48]
    if "every row" in name:
        cuts.remove(12)
    for first, end in pairwise(cuts):
        cpu, device = (server.step(first, end) for server in servers)
        for ours, theirs in zip(device, cpu, strict=True):
            assert torch.allclose(ours, theirs, atol=2e-5), (first, end)
            largest = max(largest, float((ours - theirs).abs().max()))
        plain = [servers[0].stock(layer, first, end) for layer in range(LAYERS)]
        edited = not all(torch.equal(*pair) for pair in zip(cpu, plain, strict=True))
        assert edited or end < PROMPT or isinstance(SETS[name][0], Evict)
    told = [server.book.take(["report"], 10)["report"][0] for server in servers]
    for report in told:
        assert report["failure"] is None
        for part in report["interventions"].values():
            for layer, mass in part.get("found", {}).get("moved", {}).items():
                part["found"]["moved"][layer] = pytest.approx(mass, abs=1e-4)
    assert told[1] == told[0]
    found = told[0]["interventions"].get(0, {}).get("found")
    assert found is None or all(found["counts"].values())
    sinks = told[0]["interventions"].get(0, {}).get("told", {}).get("sinks")
    assert (sinks is not None) is ("var" in name) and (sinks is None or all(sinks.values()))
    kept = told[0]["interventions"].get(1, {}).get("kept")
    assert kept is None or {len(keys) for heads in kept.values() for keys in heads} != {TOTAL}
    assert (found is not None) is ("act" in name)
    assert (kept is not None) is any(isinstance(edit, Evict) for edit in SETS[name])
    return largest


def test_a_request_with_flags_behind_rows_of_the_prefix_cache_gets_the_same_on_both() -> None:
    servers = OnCPU(Tokens()), OnDevice(Tokens())
    told = []
    for server in servers:
        server.book.enter("first", Payload("first", 1, PROMPT, 0, VAR), 0)
        server.step(0, PROMPT, "first")
        server.book.leave("first", finished=True)
        server.book.enter("r", Payload("report", 1, PROMPT, 0, VAR, detailed=(0,)), 2 * SIZE)
        server.step(2 * SIZE, PROMPT)
        taken = server.book.take(["first", "report"], 10)
        told.append([taken[name][0]["interventions"][0]["told"] for name in ("first", "report")])
    assert told[0] == told[1]
    first, second = told[0]
    assert first["sinks"] == second["sinks"] and all(first["sinks"].values())
    outputs = [server.step(PROMPT, PROMPT + 1) for server in servers]
    for cpu, device in zip(*outputs, strict=True):
        assert torch.allclose(cpu, device, atol=2e-5)


def test_heads_are_chosen_by_a_twin_on_both() -> None:
    text = PROMPT - 17
    choice = HeadChoice(ON, ANSWER, PROMPT - 1, VISUAL, 2, 2.0, False, 0, twin=True)
    twin = Payload("twin", 1, text, None, (), twin=Twin("report", 1, (0, 1)))
    reports, outputs = [], []
    for server in OnCPU(Tokens()), OnDevice(Tokens()):
        server.book.enter("t", twin, 0)
        server.step(0, text, "t")
        server.book.leave("t", finished=True)
        server.book.enter("r", Payload("report", 1, PROMPT, 0, (choice,)), 0)
        outputs.append(server.step(0, PROMPT))
        report = server.book.take(["report"], 10)["report"][0]
        assert report["failure"] is None
        reports.append(report["interventions"][0]["told"]["chosen_heads"])
    assert reports[0] == reports[1] and [len(heads) for heads in reports[0].values()] == [2, 2]
    for cpu, device in zip(*outputs, strict=True):
        assert torch.allclose(cpu, device, atol=2e-5)


def test_the_weight_of_the_first_token_is_sampled_the_same_on_both() -> None:
    samples = []
    for server in OnCPU(Tokens()), OnDevice(Tokens()):
        sinks = server.book.sinks = SinkSamples(server.table, every=2)
        server.book.enter("r", Payload("report", 1, PROMPT, 0, (BIAS,)), 0)
        server.step(0, 12)
        assert sinks.take() == []
        # A step whose attention is replayed in a graph: nobody looks, and the next one is due as well.
        assert server.book.plan(["r"], np.array([0, 8]), np.array([12])) is not None
        server.step(12, 20)
        samples.append(sinks.take())
        server.step(20, 21)
        assert sinks.take() == []
    assert len(samples[0]) == LAYERS and samples[1] == pytest.approx(samples[0], abs=1e-5)


@pytest.mark.parametrize("name", [None, "act"])
def test_attention_is_recorded_the_same_on_both(name: str | None) -> None:
    edits = SETS[name] if name is not None else ()
    asked = Inspection(
        PROMPT, (0, 1), (0, 1, 3), (0, 11, 33, 43), (((0, 1),), ((3, 20),)), 40, QUANTITIES
    )
    taken = []
    for server in OnCPU(Tokens()), OnDevice(Tokens()):
        server.book.enter("r", Payload("report", 1, PROMPT, 0, edits, (), asked), 0)
        for first, end in pairwise([0, 12, 32, PROMPT, PROMPT + 1]):
            server.step(first, end)
        assert server.book.inspected is not None
        found = server.book.inspected.take("report")
        assert found is not None and found["failure"] is None and found["heads"] == [0, 1, 3]
        taken.append(found["arrays"])
    assert set(taken[0]) == set(QUANTITIES)
    for quantity, (shape, data) in taken[0].items():
        assert taken[1][quantity][0] == shape
        cpu, device = (np.frombuffer(each, "<f4") for each in (data, taken[1][quantity][1]))
        np.testing.assert_allclose(device, cpu, rtol=1e-4, atol=1e-4, err_msg=quantity)
    columns = np.frombuffer(taken[0]["columns"][1], "<f4").reshape(2, 3, PROMPT)
    np.testing.assert_allclose(columns.sum(axis=2), PROMPT, rtol=1e-5)
