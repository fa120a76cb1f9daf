"""SIGHUP where vLLM runs several API processes: those that read profiles are told, and nobody ends."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from multiprocessing.connection import Connection

import pytest

from heed_server.hangup import pass_hangups_on

SPAWN = multiprocessing.get_context("spawn")


def child(says: Connection, *, handles: bool) -> None:
    if handles:
        signal.signal(signal.SIGHUP, lambda *_: says.send("told"))
    says.send("ready")
    time.sleep(60)


@pytest.fixture(autouse=True)
def handler() -> Iterator[None]:
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    yield
    signal.signal(signal.SIGHUP, before)


def test_api_processes_that_have_begun_to_serve_are_told_and_the_others_left_alone() -> None:
    pass_hangups_on()
    started = []
    for name, handles in (("ApiServer_0", True), ("ApiServer_1", False), ("EngineCore", True)):
        mine, theirs = SPAWN.Pipe()
        process = SPAWN.Process(
            target=child, args=(theirs,), kwargs={"handles": handles}, name=name
        )
        process.start()
        assert mine.recv() == "ready"
        started.append((process, mine))
    os.kill(os.getpid(), signal.SIGHUP)
    (serving, said), *others = started
    try:
        assert said.poll(10) and said.recv() == "told"
        assert not any(mine.poll(0.5) for _, mine in others)
        assert all(process.is_alive() for process, _ in started), serving.exitcode
    finally:
        for process, _ in started:
            process.kill()
            process.join()


def test_a_hangup_that_is_ignored_stays_ignored() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    pass_hangups_on()
    assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
