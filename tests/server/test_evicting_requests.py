"""The worker's book of evictions: keys are moved when an event is carried out, and reports say so."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from tests.kernels.paged_model import layout_of

from heed_kernels.cpu.pages import Pages
from heed_kernels.cpu.search import LayerInputs
from heed_kernels.edits import OPEN, Rows
from heed_kernels.evict import ColumnScore, Evict, NormScore, Score, WindowScore
from heed_kernels.table import EditTable
from heed_server.engine.books.edited_requests import EditedRequests
from heed_server.engine.books.evicting_requests import EvictingRequests
from heed_server.engine.books.evictions_cpu import EvictingOnCPU
from heed_server.engine.payload import Payload
from heed_server.engine.worker import EditsInWorker

LAYERS, KV_HEADS, SIZE, PROMPT, KEEP = 2, 2, 32, 100, 40
ROW = np.array([5, 2, 7, 1, 0], np.int32)
TARGETS = [3, 8]


def evict(score: Score | None = None, again: bool = False) -> Evict:
    together = score.window if isinstance(score, WindowScore) else 1
    return Evict(
        score or NormScore(), None, (KEEP, KEEP + 10), KEEP + 10, 2, 8, again, together, isinstance(score, ColumnScore),
        Rows(PROMPT, OPEN), source=0,
    )  # fmt: skip


def book() -> tuple[EditedRequests, EvictingOnCPU]:
    layout = layout_of(SIZE, 32)
    pages = {
        layer: torch.randn(10, KV_HEADS, SIZE, 64, generator=torch.Generator().manual_seed(layer))
        for layer in range(LAYERS)
    }
    table = EditTable(slots=3, layers=LAYERS, query_heads=4, kv_heads=KV_HEADS)
    requests, cache = EditedRequests(table), EvictingOnCPU(table, pages, layout, SIZE)
    requests.evicting = EvictingRequests(table, cache, lambda local: local)
    return requests, cache


def enter(requests: EditedRequests, edit: Evict, detailed: tuple[int, ...] = ()) -> None:
    requests.enter("a", Payload("r", 1, PROMPT, PROMPT, (edit,), detailed), 0)
    requests.plan(["a"], np.array([0, PROMPT]), np.array([0]))


def keys(
    cache: EvictingOnCPU, layer: int, head: int, blocks: np.ndarray, count: int
) -> torch.Tensor:
    pages = Pages.of(cache.caches[layer], blocks, cache.layout)
    return pages.read(np.arange(count), "key")[head]


def test_survivors_are_moved_to_the_targets_and_stand_in_a_full_report() -> None:
    requests, cache = book()
    before = {
        (layer, head): keys(cache, layer, head, ROW, PROMPT)
        for layer in range(LAYERS)
        for head in range(KV_HEADS)
    }
    enter(requests, evict(), detailed=(0,))
    assert requests.evict("a", PROMPT, ROW, TARGETS) == KEEP + 10
    requests.released({"a": (1, None)})
    measured = requests.take(["r"], block_bytes=1000)["r"][0]["interventions"][0]
    for (layer, head), old in before.items():
        positions = measured["kept"][str(layer)][head]
        assert len(positions) == KEEP + 10 * layer
        assert positions[:2] == [0, 1] and positions[-8:] == list(range(92, 100))
        moved = keys(cache, layer, head, np.array(TARGETS), len(positions))
        assert torch.equal(moved, old[positions])
    assert measured["evicted_tokens"] == PROMPT - (KEEP + 5)
    assert (measured["freed_blocks"], measured["freed_bytes"]) == (1, 1000)
    # Three whole blocks; each layer's survivors fill two.
    assert measured["realised_saving"] == 1
    assert PROMPT in requests.table.evicted_end


def test_a_short_report_has_no_positions() -> None:
    requests, _ = book()
    enter(requests, evict())
    requests.evict("a", PROMPT, ROW, TARGETS)
    assert "kept" not in requests.take(["r"])["r"][0]["interventions"][0]


def test_nothing_is_moved_where_no_event_is() -> None:
    requests, cache = book()
    before = {layer: page.clone() for layer, page in cache.caches.items()}
    enter(requests, evict())
    assert requests.evict("a", PROMPT + 28, ROW, TARGETS) is None
    assert requests.evict("gone", PROMPT, ROW, TARGETS) is None
    assert all(torch.equal(cache.caches[layer], before[layer]) for layer in before)


@pytest.mark.parametrize("detailed", [(), (0,)])
def test_a_request_that_starts_again_evicts_the_same_again(detailed: tuple[int, ...]) -> None:
    requests, cache = book()
    pages = {layer: page.clone() for layer, page in cache.caches.items()}
    enter(requests, evict(again=True), detailed)
    first = requests.evict("a", PROMPT, ROW, TARGETS)
    once = requests.take(["r"])["r"][0]["interventions"][0]
    requests.leave("a", finished=False)
    for layer, page in cache.caches.items():
        page.copy_(pages[layer])
    enter(requests, evict(again=True), detailed)
    assert requests.evict("a", PROMPT, ROW, TARGETS) == first
    assert requests.take(["r"])["r"][0]["interventions"][0] == once


def test_only_rows_that_are_scored_are_observed() -> None:
    requests, _ = book()
    requests.enter("a", Payload("r", 1, PROMPT, PROMPT, (evict(WindowScore(16)),)), 0)
    for first, count, observed in [(0, 84, 0), (84, 16, 1), (100, 1, 0)]:
        step = requests.plan(["a"], np.array([0, count]), np.array([first]))
        assert step is not None and len(step.observers) == observed


def test_an_eviction_that_is_not_of_this_prompt_fails_that_request_alone() -> None:
    requests, _ = book()
    requests.enter("a", Payload("r", 1, PROMPT + 1, PROMPT + 1, (evict(),)), 0)
    assert "a" not in requests and requests.rows_in_use == requests.table.rows_in_use == 0
    assert requests.take(["r"])["r"][0]["failure"]


def observe_all(requests: EditedRequests, cache: EvictingOnCPU, first: int, count: int) -> None:
    """A step of request "a": its observers see every layer."""
    step = requests.plan(["a"], np.array([0, count]), np.array([first]))
    assert step is not None
    for layer in range(LAYERS):
        query = torch.randn(count, 4, 32, generator=torch.Generator().manual_seed(layer))
        block_table = torch.from_numpy(ROW)[None]
        inputs = LayerInputs(query, cache.caches[layer], block_table, 0.125, None, cache.layout)
        for observer in step.observers:
            observer.before_edits(layer, inputs)


@pytest.mark.parametrize("steps", [[(0, 90), (90, 10)], [(0, 100)]])
def test_rows_that_come_apart_fail_their_request_and_not_the_forward(
    steps: list[tuple[int, int]],
) -> None:
    requests, cache = book()
    before = {layer: page.clone() for layer, page in cache.caches.items()}
    requests.enter("a", Payload("r", 1, PROMPT, PROMPT, (evict(WindowScore(16)),)), 0)
    for first, count in steps:
        observe_all(requests, cache, first, count)
    kept = requests.evict("a", PROMPT, ROW, TARGETS)
    report = requests.take(["r"])["r"][0]
    if len(steps) == 1:
        assert kept == KEEP + 10 and report["failure"] is None
        return
    assert kept is None and "together" in report["failure"]
    assert report["interventions"][0]["evicted_tokens"] == 0
    assert all(torch.equal(cache.caches[layer], before[layer]) for layer in before)
    # It goes on, and sees all of its keys.
    assert "a" in requests and not requests.table.evicted_end.any()
    assert requests.evict("a", PROMPT, ROW, TARGETS) is None


def test_an_eviction_without_enough_blocks_fails_its_request_alone() -> None:
    requests, _ = book()
    enter(requests, evict(again=True))
    assert requests.evict("a", PROMPT, ROW, TARGETS[:1]) is None
    assert "target blocks" in requests.take(["r"])["r"][0]["failure"]
    assert requests.evict("a", PROMPT + 28, ROW, TARGETS) is None


@pytest.mark.parametrize("failing", [True, False])
def test_every_rank_comes_to_the_exchange_of_scores_and_gives_up_with_the_others(
    failing: bool,
) -> None:
    """Two ranks: what each hands in decides on both."""
    requests, cache = book()
    handed_in = []

    def gather(local: np.ndarray) -> np.ndarray:
        handed_in.append(local)
        return np.ones_like(local)  # somebody fails

    requests.evicting = EvictingRequests(requests.table, cache, gather)
    enter(requests, evict(WindowScore(16) if failing else None))
    assert requests.evict("a", PROMPT, ROW, TARGETS) is None
    assert [local.tolist() for local in handed_in] == [[float(failing)] * KV_HEADS]
    failure = requests.take(["r"])["r"][0]["failure"]
    assert ("not seen" if failing else "another rank") in failure


@pytest.mark.parametrize(("max_tokens", "observed"), [(1, 0), (2, 1), (None, 1)])
def test_nothing_is_scored_for_an_answer_of_one_token(
    max_tokens: int | None, observed: int
) -> None:
    requests, _ = book()
    payload = Payload("r", 1, PROMPT, PROMPT, (evict(WindowScore(16)),))
    requests.enter("a", payload, 0, max_tokens=max_tokens)
    step = requests.plan(["a"], np.array([0, PROMPT]), np.array([0]))
    assert step is not None and len(step.observers) == observed


class Stock:
    """A worker in whose step the request ends."""

    edited: EditedRequests

    def execute_model(self, scheduler_output: object) -> None:
        self.edited.leave("a", finished=True)


class Worker(EditsInWorker, Stock):  # type: ignore[misc]
    pass


def test_what_is_told_with_the_end_of_a_request_is_in_its_report() -> None:
    worker = Worker()
    worker.edited, _ = book()
    enter(worker.edited, evict())
    worker.execute_model(SimpleNamespace(heed_released={"a": (18, None)}))
    report = worker.edited.take(["r"])["r"][0]
    assert report["interventions"][0]["freed_blocks"] == 18


BLOCKS = {"a": [5, 2, 7, 1, 0], "b": [9, 6, 4, 3, 8]}


def sums_of_columns(batches: list[list[tuple[str, int, int]]]) -> dict[str, list[np.ndarray]]:
    """Column sums by request and layer. batches: steps, of requests with their first row and row count."""
    requests, cache = book()
    layout = layout_of(SIZE, 32)
    table = torch.tensor(list(BLOCKS.values()), dtype=torch.int32)
    for name in BLOCKS:
        edit = evict(ColumnScore(), again=True)
        requests.enter(name, Payload(name, 1, PROMPT, PROMPT, (edit,)), 0)
    for batch in batches:
        names, first, rows = (list(column) for column in zip(*batch, strict=True))
        starts = np.cumsum([0, *rows])
        step = requests.plan(names, starts, np.array(first))
        assert step is not None
        (observer,) = step.observers
        for layer in range(LAYERS):
            query = torch.cat(
                [
                    torch.randn(
                        128, 4, 32, generator=torch.Generator().manual_seed(layer + ord(name))
                    )[start : start + count]
                    for name, start, count in batch
                ]
            )
            block_table = table[[list(BLOCKS).index(name) for name in names]]
            inputs: Any = SimpleNamespace(
                query=query, kv_cache=cache.caches[layer], block_table=block_table, scale=0.125,
                rope=None, layout=layout,
            )  # fmt: skip
            observer.before_edits(layer, inputs)
    assert requests.evicting is not None
    found = {}
    for name in BLOCKS:
        scorer = requests.evicting._by_slot[requests._slots[name]].eviction._observer
        found[name] = [scorer._columns[layer].sums for layer in range(LAYERS)]
    return found


def test_columns_of_a_batch_are_added_up_in_one_call_and_have_the_bits_of_each_request_alone() -> (
    None
):
    alone = sums_of_columns(
        [[("a", 0, 60)], [("a", 60, 40)], [("b", 0, 100)], [("a", 100, 1)], [("b", 100, 1)]]
    )
    together = sums_of_columns(
        [[("b", 0, 100), ("a", 0, 30)], [("a", 30, 70), ("b", 100, 1)], [("a", 100, 1)]]
    )
    for name in BLOCKS:
        for one, other in zip(alone[name], together[name], strict=True):
            assert np.array_equal(one, other)
            # Each of the 101 rows gives its keys 1 in all.
            assert one.sum(axis=1) == pytest.approx(101 * 2**40, rel=1e-5)


def test_memory_that_runs_out_fails_its_request_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    requests, cache = book()
    enter(requests, evict())

    def read(*_: Any) -> torch.Tensor:
        raise torch.OutOfMemoryError

    monkeypatch.setattr(Pages, "read", read)
    before = {layer: page.clone() for layer, page in cache.caches.items()}
    assert requests.evict("a", PROMPT, ROW, TARGETS) is None
    assert "no memory left" in requests.take(["r"])["r"][0]["failure"]
    assert all(torch.equal(cache.caches[layer], before[layer]) for layer in before)
    requests.enter("b", Payload("s", 1, PROMPT, PROMPT, (evict(WindowScore(16)),)), 0)
    step = requests.plan(["b"], np.array([0, PROMPT]), np.array([0]))
    assert step is not None
    (observer,) = step.observers
    query, blocks = torch.zeros(PROMPT, 4, 32), torch.from_numpy(ROW)[None]
    observer.before_edits(0, LayerInputs(query, cache.caches[0], blocks, 1.0, None, cache.layout))
    assert requests.evict("b", PROMPT, ROW, TARGETS) is None
    assert "no memory left" in requests.take(["s"])["s"][0]["failure"]
