"""Requests through the server's books and buffers, with the kernels of a device and with those of the CPU."""

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
from tests.kernels.paged_model import layout_of, write_plain

from heed_kernels.cpu import attend
from heed_kernels.cpu.search import LayerInputs
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
from heed_kernels.evict import ColumnScore, DifferenceScore, Evict, WindowScore
from heed_kernels.table import EditTable
from heed_server.engine.device_edits import DeviceEdits
from heed_server.engine.edited_requests import EditedRequests
from heed_server.engine.evicting_requests import EvictingRequests
from heed_server.engine.evictions_cpu import EvictingOnCPU
from heed_server.engine.evictions_cuda import EvictingOnCUDA
from heed_server.engine.key_searches import KeySearches
from heed_server.engine.payload import Payload
from heed_server.engine.searches_cpu import SearchingOnCPU
from heed_server.engine.searches_cuda import SearchingOnCUDA

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


class OnCPU:
    """As the CPU's worker and backend do it."""

    def __init__(self, tokens: Tokens) -> None:
        self.tokens, self.layout, self.row = tokens, layout_of(SIZE, HEAD_DIM), ROW.copy()
        self.table = EditTable(3, LAYERS, HEADS, KV_HEADS)
        self.book = self.new_book()

    def new_book(self) -> EditedRequests:
        shape = (9, KV_HEADS, SIZE, 2 * HEAD_DIM)
        self.caches = {layer: torch.zeros(shape) for layer in range(LAYERS)}
        book = EditedRequests(self.table, KeySearches(SearchingOnCPU(self.table)))
        device = EvictingOnCPU(self.table, self.caches, self.layout, SIZE)
        book.evicting = EvictingRequests(self.table, device, lambda local: local)
        return book

    def write(self, layer: int, first: int, end: int) -> None:
        key, value = self.tokens.key[layer, first:end], self.tokens.value[layer, first:end]
        halves = self.caches[layer].view(9, KV_HEADS, 2 * SIZE, HEAD_DIM).chunk(2, dim=2)
        write_plain(key, value, *halves, self.slots(first, end))

    def slots(self, first: int, end: int) -> torch.Tensor:
        position = torch.arange(first, end)
        return torch.from_numpy(self.row).long()[position // SIZE] * SIZE + position % SIZE

    def step(self, first: int, end: int) -> list[torch.Tensor]:
        edits = self.book.plan(["r"], np.array([0, end - first]), np.array([first]))
        assert edits is not None
        self.load(edits)
        outputs = []
        for layer in range(LAYERS):
            self.write(layer, first, end)
            outputs.append(self.layer(layer, edits, self.tokens.query[layer, first:end]))
        kept = self.book.evict("r", end, self.row, TARGETS)
        if kept is not None:
            self.row[: len(TARGETS)] = np.where(np.arange(3) < end // SIZE, TARGETS, self.row[:3])
        return outputs

    def load(self, edits: Any) -> None:
        pass

    def layer(self, layer: int, edits: Any, query: torch.Tensor) -> torch.Tensor:
        blocks = torch.from_numpy(self.row)[None]
        query = query.contiguous()
        inputs = LayerInputs(query, self.caches[layer], blocks, SCALE, None, self.layout)
        for observer in edits.observers:
            observer.before_edits(layer, inputs)
        output = torch.zeros_like(query)
        attend(
            query=query, output=output, kv_cache=self.caches[layer], block_table=blocks,
            table=self.table, plan=edits.plan, layer=layer, scale=SCALE, rope=None, layout=self.layout,
        )  # fmt: skip
        return output


class OnDevice(OnCPU):
    """As the CUDA worker and backend do it."""

    def new_book(self) -> EditedRequests:
        device = torch.device("cpu")
        self.edits = DeviceEdits(self.table, device, most_tokens=TOTAL, most_requests=1)
        # vLLM's layout, and tokens before heads behind it.
        self.halves = {
            layer: torch.zeros(9, SIZE, KV_HEADS, 2 * HEAD_DIM).chunk(2, dim=-1)
            for layer in range(LAYERS)
        }
        book = EditedRequests(self.table, KeySearches(SearchingOnCUDA(self.edits.searches)))
        evicting = EvictingOnCUDA(self.edits.evictions, self.halves)
        book.evicting = EvictingRequests(self.table, evicting, lambda local: local)
        return book

    def write(self, layer: int, first: int, end: int) -> None:
        slots = self.slots(first, end)
        for cache, tokens in zip(
            self.halves[layer], (self.tokens.key, self.tokens.value), strict=True
        ):
            cache[slots // SIZE, slots % SIZE] = tokens[layer, first:end]

    def load(self, edits: Any) -> None:
        self.edits.load(edits)

    def layer(self, layer: int, edits: Any, query: torch.Tensor) -> torch.Tensor:
        output, blocks = torch.zeros_like(query), torch.from_numpy(self.row)[None]
        tensors = query, *self.halves[layer], blocks
        of_layer: dict[str, Any] = {"layer": layer, "scale": SCALE, "rope": None}
        if edits.observers:
            self.edits.observe(edits.observers, *tensors, **of_layer)
        self.edits.attend(*tensors, output, **of_layer)
        return output


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


SETS: dict[str, tuple[Edit, ...]] = {
    "act": tuple(act()),
    "window": (evict(WindowScore(8, 5)),),
    "columns": (evict(ColumnScore(), again=True),),
    "act and keys": (*act(off=True), evict(DifferenceScore())),
}


@pytest.mark.parametrize("name", SETS)
def test_a_request_gets_the_same_on_both(name: str) -> None:
    tokens = Tokens()
    payload = Payload("report", 1, PROMPT, 0, SETS[name], detailed=(0, 1))
    servers = OnCPU(tokens), OnDevice(tokens)
    for server in servers:
        server.book.enter("r", payload, 0, max_tokens=40)
    # A search for keys ends steps at rows 32 and P.
    cuts = sorted({0, 12, 32, PROMPT, 45, 48, TOTAL}) if "act" in name else [0, 12, PROMPT, 45, 48]
    for first, end in pairwise(cuts):
        cpu, device = (server.step(first, end) for server in servers)
        for ours, theirs in zip(device, cpu, strict=True):
            assert torch.allclose(ours, theirs, atol=2e-5), (first, end)
    told = [server.book.take(["report"], 10)["report"][0] for server in servers]
    for report in told:
        assert report["failure"] is None
        for part in report["interventions"].values():
            for layer, mass in part.get("found", {}).get("moved", {}).items():
                part["found"]["moved"][layer] = pytest.approx(mass, abs=1e-4)
    assert told[1] == told[0]
    found = told[0]["interventions"].get(0, {}).get("found")
    assert found is None or all(found["counts"].values())
    kept = told[0]["interventions"].get(1, {}).get("kept")
    assert kept is None or {len(keys) for heads in kept.values() for keys in heads} != {TOTAL}
    assert (found is None) is (kept is not None) or name == "act and keys"
