"""Calls into the workers: answered, failed, refused while the engines stop, and never answered at all."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from heed_server.api import plugin
from heed_server.api.plugin import STOPPING, Engines, StoppedError


class Core:
    """Stands in for the engine client's `engine_core`; None as an answer never comes."""

    def __init__(self, answer: Any) -> None:
        self.answer = answer
        self.calls = 0

    async def call_utility_all_async(self, *arguments: Any) -> Any:
        self.calls += 1
        if isinstance(self.answer, Exception):
            raise self.answer
        if self.answer is None:
            await asyncio.Event().wait()
        return self.answer


def client(answer: Any) -> Any:
    return SimpleNamespace(engine_core=Core(answer), errored=False)


def test_reports_come_from_the_first_worker_of_each_engine() -> None:
    report = {"r": {0: {"failure": None, "interventions": {}}}}
    engines = Engines(client([[report], [{}]]))
    assert asyncio.run(engines.reports(["r"])) == [report, {}]


def test_a_call_that_fails_says_why() -> None:
    with pytest.raises(RuntimeError, match="out of memory"):
        asyncio.run(Engines(client(RuntimeError("out of memory"))).reports(["r"]))


def test_engines_that_stop_have_no_reports_and_are_not_asked_again() -> None:
    stopping = client(Exception(STOPPING))
    engines = Engines(stopping)
    assert asyncio.run(engines.reports(["r"])) == []
    assert asyncio.run(engines.reports(["s"])) == []
    assert stopping.engine_core.calls == 1
    with pytest.raises(StoppedError):
        asyncio.run(engines.call("heed_gauges"))


def test_a_call_that_a_dead_engine_never_answers_is_given_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(plugin, "ALIVE_SECONDS", 0.01)
    silent = client(None)

    async def ask() -> Any:
        asked = asyncio.ensure_future(Engines(silent).reports(["r"]))
        await asyncio.sleep(0.05)
        assert not asked.done()
        silent.errored = True
        return await asyncio.wait_for(asked, 5)

    assert asyncio.run(ask()) == []


def test_who_gives_up_a_call_leaves_nothing_behind() -> None:
    async def ask() -> int:
        asked = asyncio.ensure_future(Engines(client(None)).reports(["r"]))
        await asyncio.sleep(0.01)
        asked.cancel()
        await asyncio.wait([asked])
        await asyncio.sleep(0.01)
        return len(asyncio.all_tasks())

    assert asyncio.run(ask()) == 1
