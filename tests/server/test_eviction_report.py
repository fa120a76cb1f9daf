"""Positions of survivors: held for a full report alone, made lists when it is taken, and not too many."""

from typing import Any

import numpy as np
import pytest
import torch
from tests.kernels.paged_model import layout_of

from heed_kernels.edits import Rows
from heed_kernels.evict import Evict, NormScore
from heed_kernels.table import EditTable
from heed_server.api.reports import memory_counts
from heed_server.engine.books import evicting_requests
from heed_server.engine.books.evicting_requests import EvictingRequests, LetGo
from heed_server.engine.books.evictions_cpu import EvictingOnCPU
from heed_server.engine.payload import Payload

KV_HEADS, SIZE, PROMPT = 2, 32, 100
COUNTS = (40, 50)
POSITIONS = KV_HEADS * sum(COUNTS)


def let_go(detailed: tuple[int, ...]) -> LetGo:
    """Of one request that evicts once."""
    edit = Evict(
        NormScore(), None, COUNTS, max(COUNTS), 2, 8, False, 1, False, Rows(PROMPT), source=0
    )
    table = EditTable(slots=1, layers=len(COUNTS), query_heads=4, kv_heads=KV_HEADS)
    generator = torch.Generator().manual_seed(0)
    pages = {
        layer: torch.randn(8, KV_HEADS, SIZE, 64, generator=generator)
        for layer in range(len(COUNTS))
    }
    device = EvictingOnCPU(table, pages, layout_of(SIZE, 32), SIZE)
    requests = EvictingRequests(table, device, lambda array: array)
    slot = table.insert([edit], prompt_length=PROMPT)
    requests.enter(slot, Payload("r", 1, PROMPT, PROMPT, (edit,), detailed), None)
    evicted = requests.evict(slot, PROMPT, np.array([5, 2, 7, 1], np.int32), [3, 6])
    assert evicted is not None and evicted[0] == max(COUNTS)
    return evicted[1]


def test_arrays_become_lists_when_the_report_is_taken() -> None:
    found = let_go(detailed=(0,))
    assert found.survivors is not None
    assert {keys.dtype for heads in found.survivors for keys in heads} == {np.dtype(np.int32)}
    kept: dict[str, Any] = found.told()["kept"]
    for layer, count in enumerate(COUNTS):
        for positions in kept[str(layer)]:
            assert len(positions) == count and type(positions[0]) is int
            assert positions[:2] == [0, 1] and positions[-8:] == list(range(92, 100))


def test_a_short_report_holds_no_positions() -> None:
    found = let_go(detailed=())
    assert found.survivors is None and found.told() == {}


def test_a_report_that_would_have_too_many_says_why_it_has_none(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(evicting_requests, "MOST_POSITIONS", POSITIONS)
    assert let_go(detailed=(0,)).told().keys() == {"kept"}
    monkeypatch.setattr(evicting_requests, "MOST_POSITIONS", POSITIONS - 1)
    found = let_go(detailed=(0,))
    assert found.survivors is None
    reason = found.told()["kept_left_out"]
    assert reason == f"a report has at most {POSITIONS - 1} positions, and these are {POSITIONS}"
    measured = {"freed_blocks": 1, "evicted_tokens": 55, **found.told()}
    assert memory_counts(measured, PROMPT, 1)["kept_left_out"] == reason
    assert let_go(detailed=()).told() == {}
