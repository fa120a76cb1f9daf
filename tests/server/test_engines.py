"""Calls into the workers: answered, failed, refused while the engines stop, and never answered at all."""

import asyncio
import queue
from types import SimpleNamespace
from typing import Any

import pytest
from vllm.v1.engine.core import EngineCoreProc, EngineShutdownState
from vllm.v1.serial_utils import run_method

from heed_server.api import plugin
from heed_server.api.plugin import STOPPING, Engines, StoppedError
from heed_server.api.served_model import DESCRIBE


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


def test_vllm_refuses_calls_while_it_stops_in_the_words_that_are_looked_for() -> None:
    core = SimpleNamespace(
        shutdown_state=EngineShutdownState.SHUTTING_DOWN, output_queue=queue.Queue()
    )
    assert EngineCoreProc._reject_utility_in_shutdown(core, 0, 1, "collective_rpc")
    _, outputs = core.output_queue.get_nowait()
    assert outputs.utility_output.failure_message == STOPPING


def of_a_worker_without_heed() -> Exception:
    with pytest.raises(NotImplementedError) as caught:
        run_method(object(), DESCRIBE, (), {})
    # As multiproc_executor.py and core.py hand it on.
    return Exception(f"Call to collective_rpc method failed: Worker failed with '{caught.value}'")


def test_workers_without_heed_are_known_by_vllms_own_words() -> None:
    served = client(of_a_worker_without_heed())
    served.model_config = SimpleNamespace(max_model_len=512)
    support = asyncio.run(Engines(served).describe())
    assert support.unsupported == "the server's workers run without Heed"


@pytest.mark.parametrize("answer", [[[{}]], RuntimeError("a worker failed: KeyError('layers')")])
def test_a_worker_of_heeds_that_fails_ends_the_start(answer: Any) -> None:
    """A server that came up would refuse every edit, for a reason that is not so."""
    with pytest.raises((KeyError, RuntimeError), match="layers"):
        asyncio.run(Engines(client(answer)).describe())


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
