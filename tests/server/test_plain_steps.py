"""Steps without an edited request are vLLM's own."""

from typing import Any

import pytest
from tests.server.schedule_simulator import Plan, Simulator
from tests.server.simulated_scheduler import Setting
from tests.server.test_kv_release import tokens

from heed_server.engine.scheduling.hidden_blocks import Window
from heed_server.engine.scheduling.plain_steps import STOCK_METHODS


def are_stock(simulator: Simulator) -> list[bool]:
    """Of what a step calls for each request: whether it is a method of vLLM's."""
    scheduler = simulator.scheduler
    cache = scheduler.kv_cache_manager
    methods: list[Any] = [
        cache.allocate_slots,
        cache.coordinator.cache_blocks,
        simulator.manager.get_num_blocks_to_allocate,
        *(getattr(scheduler, name) for name in STOCK_METHODS),
    ]
    return [method.__module__.startswith("vllm.") for method in methods]


@pytest.mark.parametrize("run_ahead", [False, True])
def test_what_is_called_for_each_request_is_vllms_own_until_one_is_edited(run_ahead: bool) -> None:
    simulator = Simulator(Setting(pool=60, run_ahead=run_ahead))
    simulator.add(Plan("plain", tokens(60, 0), 20))
    simulator.step()
    assert all(are_stock(simulator))
    for name in ("first", "second"):
        simulator.add(Plan(name, tokens(40, 1), 30, Window(4, 16)))
        assert not any(are_stock(simulator))
    while "first" in simulator.scheduler.requests or "second" in simulator.scheduler.requests:
        assert not any(are_stock(simulator))
        simulator.step()
    assert all(are_stock(simulator)) and "plain" in simulator.scheduler.requests
    simulator.finish(100)


def test_an_edited_request_that_is_aborted_before_its_first_step_leaves_vllms_own() -> None:
    simulator = Simulator(Setting(pool=60))
    simulator.add(Plan("edited", tokens(40, 1), 30, Window(4, 16)))
    simulator.abort("edited")
    assert all(are_stock(simulator))
    simulator.finish(1)
