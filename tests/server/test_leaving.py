"""A server's end: requests under way end first, nothing holds up one without an engine, and its status is right."""

import asyncio
from threading import Timer
from types import SimpleNamespace
from typing import Any

import pytest

from heed_server.api import leaving
from heed_server.api.open_requests import OpenRequests


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


def client_of(left: list[float], **rest: Any) -> Any:
    """An engine client that notes what is left of the time when vLLM's own shutdown begins."""

    def shutdown(timeout: float) -> None:
        left.append(timeout)

    return SimpleNamespace(errored=False, shutdown=shutdown, **rest)


def test_the_engine_is_told_when_the_last_request_has_ended() -> None:
    requests, left = OpenRequests(), list[float]()
    client = client_of(left)
    leaving.drain_before_shutdown(client, requests)
    requests.begin()
    Timer(0.2, requests.end).start()
    client.shutdown(timeout=60)
    assert requests.draining and 30 < left[0] <= 59.8


def test_a_request_that_outlasts_the_time_leaves_the_engine_none() -> None:
    requests, left = OpenRequests(), list[float]()
    client = client_of(left)
    leaving.drain_before_shutdown(client, requests)
    requests.begin()
    client.shutdown(timeout=0.1)
    assert left == [0]


def test_nothing_is_waited_for_without_a_timeout_or_an_engine_or_in_the_event_loop() -> None:
    requests, left = OpenRequests(), list[float | None]()
    client: Any = client_of(left)  # type: ignore[arg-type]
    leaving.drain_before_shutdown(client, requests)
    requests.begin()
    client.shutdown(timeout=0)
    assert requests.draining

    async def at_the_end_of_the_server() -> None:
        client.shutdown(timeout=60)

    asyncio.run(at_the_end_of_the_server())
    client.errored = True
    client.shutdown(timeout=60)
    assert left[:2] == [0, 60] and left[2] is not None and left[2] > 30
