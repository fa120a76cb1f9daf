"""A process of vLLM's ends with the one that started it; other children are left alone."""

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
    ("name", "ends"),
    [("EngineCore", True), ("EngineCore_DP1", True), ("ApiServer_0", True), ("other", False)],
)
def test_a_process_of_vllms_ends_with_its_parent(name: str, ends: bool) -> None:
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


def coordinating(ready: Connection, method: str) -> None:
    """What vLLM does for several engines, with its coordinator told of an address that nobody uses."""
    from vllm.v1.engine.coordinator import DPCoordinatorProc

    from heed_server.engine import coordinator

    end_with_parent()
    coordinator.put_in_place()
    address = f"ipc:///tmp/heed-{os.getpid()}"
    process = multiprocessing.get_context(method).Process(
        target=DPCoordinatorProc.run_coordinator,
        name="VLLM_DP_Coordinator",
        args=(1, f"{address}-a", f"{address}-b", f"{address}-c"),
        daemon=True,
    )
    process.start()
    ready.send(process.pid)
    time.sleep(60)


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_the_coordinator_of_several_engines_ends_with_its_parent(method: str) -> None:
    mine, theirs = SPAWN.Pipe()
    process = SPAWN.Process(target=coordinating, args=(theirs, method))
    process.start()
    orphan = psutil.Process(mine.recv())
    assert mine.poll(5) is False and orphan.is_running()
    process.kill()
    process.join()
    gone, alive = psutil.wait_procs([orphan], timeout=30)
    for each in alive:
        each.send_signal(signal.SIGKILL)
    assert gone
