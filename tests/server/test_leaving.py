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


@pytest.mark.parametrize("dead_before", [True, False])
def test_an_engine_that_died_by_itself_is_told_from_one_that_was_stopped(
    monkeypatch: pytest.MonkeyPatch, dead_before: bool
) -> None:
    monkeypatch.setattr(leaving, "_failed", [])
    resources, calls = SimpleNamespace(engine_dead=dead_before), list[int]()

    def shutdown(timeout: int = 0) -> None:
        resources.engine_dead = True
        calls.append(timeout)

    client: Any = SimpleNamespace(
        engine_core=SimpleNamespace(resources=resources), shutdown=shutdown
    )
    leaving.note_failures(client)
    assert not leaving.engine_failed()
    client.shutdown(timeout=3)
    client.shutdown()  # vLLM does so once more at its very end
    assert calls == [3, 0]
    assert leaving.engine_failed() is dead_before
