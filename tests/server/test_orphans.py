"""An engine's process ends with the one that started it; other children are left alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from multiprocessing.connection import Connection

import psutil
import pytest

from heed_server.engine.orphans import end_with_parent

SPAWN = multiprocessing.get_context("spawn")


def child(ready: Connection) -> None:
    end_with_parent()
    end_with_parent()
    ready.send(os.getpid())
    time.sleep(60)


def parent(name: str, ready: Connection) -> None:
    SPAWN.Process(target=child, args=(ready,), name=name).start()
    time.sleep(60)


@pytest.mark.parametrize(
    ("name", "ends"), [("EngineCore", True), ("EngineCore_DP1", True), ("other", False)]
)
def test_an_engine_ends_with_its_parent(name: str, ends: bool) -> None:
    mine, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=parent, args=(name, theirs))
    process.start()
    orphan = psutil.Process(mine.recv())
    process.kill()
    process.join()
    gone, alive = psutil.wait_procs([orphan], timeout=10 if ends else 1)
    for each in alive:
        each.send_signal(signal.SIGKILL)
    assert bool(gone) is ends
