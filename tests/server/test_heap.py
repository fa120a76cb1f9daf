"""What an idle worker gives back to the system."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest

from heed_server.engine import worker_cpu
from heed_server.engine.running import heap
from heed_server.engine.running.heap import LEAST_SECONDS, Heap


class Clock:
    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 0.0
        monkeypatch.setattr(heap.time, "monotonic", lambda: self.now)


def test_holes_in_the_heap_go_back_to_the_system_and_not_too_often(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    clock, resident = Clock(monkeypatch), psutil.Process().memory_info
    free = Heap()
    # Below the size at which glibc maps memory of its own. Every other array stays.
    arrays = [np.ones(64 << 10, np.uint8) for _ in range(2048)]
    del arrays[::2]
    before = resident().rss
    assert not free.give_back()
    clock.now = LEAST_SECONDS
    assert free.give_back() and not free.give_back()
    assert before - resident().rss > 32 << 20
    assert len(arrays) == 1024


@pytest.mark.parametrize("running", [True, False])
def test_a_worker_does_so_when_it_is_asked_how_it_is_and_nothing_runs(
    monkeypatch: pytest.MonkeyPatch, running: bool
) -> None:
    worker: Any = worker_cpu.HeedCPUWorker.__new__(worker_cpu.HeedCPUWorker)
    given: list[bool] = []
    monkeypatch.setattr(
        worker_cpu.HeedCPUWorker, "_heap", SimpleNamespace(give_back=lambda: given.append(True))
    )
    worker.edited = None
    worker.model_runner = SimpleNamespace(requests={"a": None} if running else {})
    assert worker.heed_gauges()["edit_table_rows"] == 0
    assert bool(given) is not running
