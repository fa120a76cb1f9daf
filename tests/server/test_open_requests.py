"""Requests that are open: how many may be, what the others are told, and how a drain waits for the last."""

from __future__ import annotations

import asyncio
import time
from threading import Thread
from types import SimpleNamespace

import httpx
import pytest
from fastapi import FastAPI
from tests.server.application import application

from heed_server.api.body_limit import BodyLimit
from heed_server.api.open_requests import MEASURED, PROBES, Entrance, NotTakenError, OpenRequests
from heed_server.settings import OPEN_VARIABLE

MANY_SECONDS = 60.0
"""Longer than any of these tests takes."""


class Server:
    """An application whose `/held` answers when it is let go."""

    def __init__(self, requests: OpenRequests) -> None:
        self.app = FastAPI()
        self.begun = asyncio.Semaphore(0)
        self.let_go = asyncio.Event()
        self.rejected: list[str] = []
        metrics = SimpleNamespace(rejected=self.rejected.append)
        self.app.state.heed_door = SimpleNamespace(metrics=metrics)
        self.app.add_middleware(Entrance, requests=requests)

        @self.app.get("/held")
        async def held() -> str:
            self.begun.release()
            await self.let_go.wait()
            return "whole"

        @self.app.get("/fails")
        async def fails() -> None:
            raise ValueError

        @self.app.get("/{path:path}")
        async def other(path: str) -> str:
            return path

    async def asked(self, path: str) -> httpx.Response:
        transport = httpx.ASGITransport(self.app, raise_app_exceptions=False)
        async with httpx.AsyncClient(transport=transport, base_url="http://server") as client:
            return await client.get(path)

    async def holding(self, count: int) -> list[asyncio.Task[httpx.Response]]:
        """So many requests that are open."""
        tasks = [asyncio.create_task(self.asked("/held")) for _ in range(count)]
        for _ in range(count):
            await self.begun.acquire()
        return tasks


def assert_refused(response: httpx.Response, words: str) -> None:
    assert response.status_code == 503
    error = response.json()["error"]
    assert (error["type"], error["code"], error["param"]) == ("ServiceUnavailableError", 503, None)
    assert words in error["message"]
    assert int(response.headers["retry-after"]) > 0


def test_more_requests_than_are_allowed_at_once_are_told_to_come_again() -> None:
    async def crowd() -> None:
        server = Server(OpenRequests(most=2))
        held = await server.holding(2)
        refused = await server.asked("/v1/completions")
        assert_refused(refused, "2 requests are open")
        assert "connection" not in refused.headers, "this server goes on"
        assert server.rejected == ["overload"]
        for path in PROBES | MEASURED:
            assert (await server.asked(path)).status_code == 200, path
        server.let_go.set()
        assert [(await task).json() for task in held] == ["whole"] * 2
        assert (await server.asked("/v1/completions")).status_code == 200

    asyncio.run(crowd())


def test_a_request_that_fails_or_whose_client_leaves_is_no_longer_open() -> None:
    async def come_and_go() -> None:
        server = Server(OpenRequests(most=1))
        (held,) = await server.holding(1)
        held.cancel()
        await asyncio.wait([held])
        assert (await server.asked("/fails")).status_code == 500
        assert (await server.asked("/v1/completions")).status_code == 200

    asyncio.run(come_and_go())


def test_without_a_bound_any_number_is_taken() -> None:
    requests = OpenRequests()
    for _ in range(10_000):
        requests.begin()


def test_a_server_that_drains_takes_no_more_and_lets_what_it_has_end() -> None:
    async def drain() -> None:
        requests = OpenRequests()
        server = Server(requests)
        (held,) = await server.holding(1)
        requests.drain()
        for path in ("/v1/completions", *PROBES):
            refused = await server.asked(path)
            assert_refused(refused, "shutting down")
            assert refused.headers["connection"] == "close"
        for path in MEASURED:
            assert (await server.asked(path)).status_code == 200, path
        assert server.rejected == [], "nobody has asked for too much"
        server.let_go.set()
        assert (await held).json() == "whole"

    asyncio.run(drain())


def test_waiting_ends_with_the_last_request() -> None:
    requests = OpenRequests()
    requests.begin()
    requests.begin()
    requests.drain()
    with pytest.raises(NotTakenError):
        requests.begin()
    waiting = Thread(target=requests.wait_for_the_last, args=(MANY_SECONDS, lambda: True))
    waiting.start()
    requests.end()
    waiting.join(0.1)
    assert waiting.is_alive()
    requests.end()
    waiting.join(MANY_SECONDS / 2)
    assert not waiting.is_alive()


def test_waiting_ends_with_its_time_and_with_what_it_waits_for() -> None:
    requests = OpenRequests()
    requests.begin()
    began = time.monotonic()
    requests.wait_for_the_last(0.05, lambda: True)
    assert time.monotonic() - began >= 0.05
    requests.wait_for_the_last(MANY_SECONDS, lambda: False)
    assert time.monotonic() - began < MANY_SECONDS / 2


def test_the_entrance_comes_before_anything_of_heeds_and_has_the_operators_bound(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(OPEN_VARIABLE, "3")
    with application() as app:
        classes = [middleware.cls for middleware in app.user_middleware]
        entrance = app.user_middleware[classes.index(Entrance)]  # type: ignore[arg-type]
        assert classes.index(Entrance) < classes.index(BodyLimit)  # type: ignore[arg-type]
        assert entrance.kwargs["requests"].most == 3  # type: ignore[attr-defined]
