"""A server whose engine is gone closes what is open, and its status says whether the engine failed."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from heed_server.api import leaving


@pytest.mark.parametrize(
    ("should_exit", "errored", "left"),
    [(True, True, True), (True, False, False), (False, True, False), (False, False, False)],
)
def test_connections_are_closed_when_the_server_ends_without_an_engine(
    monkeypatch: pytest.MonkeyPatch, should_exit: bool, errored: bool, left: bool
) -> None:
    monkeypatch.setattr(leaving, "WATCH_SECONDS", 0.01)
    monkeypatch.setattr(leaving, "PARTING_SECONDS", 0.01)
    server = SimpleNamespace(should_exit=False, force_exit=False)
    engine, state = SimpleNamespace(errored=False), SimpleNamespace()

    async def watch() -> None:
        task = asyncio.create_task(leaving.leave_with_the_engine(engine, state))
        await asyncio.sleep(0.03)
        state.server = server
        server.should_exit, engine.errored = should_exit, errored
        await asyncio.wait([task], timeout=0.2)
        task.cancel()

    asyncio.run(watch())
    assert server.force_exit is left


@pytest.mark.parametrize(
    ("codes", "failed"),
    [([0, 0], False), ([0, None], False), ([0, -9], True), ([1], True), ([], False)],
)
def test_an_engine_that_did_not_end_well_is_noticed(
    monkeypatch: pytest.MonkeyPatch, codes: list[int | None], failed: bool
) -> None:
    monkeypatch.setattr(leaving, "ENGINES", [])
    manager: Any = SimpleNamespace(processes=[SimpleNamespace(exitcode=code) for code in codes])
    for known in (manager, None):
        resources = SimpleNamespace(engine_manager=known)
        leaving.remember_engines(SimpleNamespace(engine_core=SimpleNamespace(resources=resources)))
    assert leaving.engine_failed() is failed
