"""Blocks of streaming requests go back to the pool while they run, and never one too many."""

from __future__ import annotations

import random

import pytest
from tests.server.schedule_simulator import Plan, Simulator
from tests.server.simulated_scheduler import Setting
from tests.slow_cases import gated

from heed_server.engine.scheduling.hidden_blocks import Window

SCHEDULES, IN_THE_GATE = range(240), range(60)
WINDOWS = [Window(4, 16), Window(0, 16), Window(1, 23), Window(7, 32), Window(33, 17)]


def tokens(length: int, seed: int, shared: int = 0) -> list[int]:
    """`length` tokens of which the first `shared` are the same for all seeds."""
    own = random.Random(seed)
    return [*range(shared), *(own.randrange(1000) for _ in range(length - shared))][:length]


def random_setting(chance: random.Random) -> Setting:
    size = chance.choice([1, 2, 4, 8, 16])
    return Setting(
        pool=-(-chance.randint(110, 320) // size),
        block_size=size,
        chunk=chance.choice([3, 7, 16, 40, 200]),
        batch=chance.choice([1, 3, 6]),
        prefix_caching=chance.random() < 0.75,
        reserve_full_prompt=chance.random() < 0.75,
        watermark=chance.choice([0.0, 0.0, 0.05]),
        run_ahead=chance.random() < 0.4,
    )


def random_plan(chance: random.Random, setting: Setting, number: int) -> Plan:
    room = setting.pool * setting.block_size
    window = chance.choice([None, *WINDOWS])
    # Two batches of one row each can be under way.
    if window is not None and window.most_blocks(2, setting.block_size) > setting.pool:
        window = None
    longest = room - 1 if window is None else 3 * room
    length = chance.randint(2, min(longest, 600))
    prompt = max(1, length - chance.randint(1, 120))
    shared = chance.choice([0, 30, 90, 300])
    return Plan(f"r{number}", tokens(length, number, min(shared, prompt)), prompt, window)


@pytest.fixture(scope="module")
def done() -> list[Simulator]:
    """Random schedules that have run."""
    return []


@pytest.mark.parametrize("seed", gated(SCHEDULES, IN_THE_GATE))
def test_random_schedules_lose_no_block_and_take_none_that_is_read(
    seed: int, done: list[Simulator]
) -> None:
    chance = random.Random(seed)
    simulator = Simulator(random_setting(chance))
    waiting = [random_plan(chance, simulator.setting, i) for i in range(chance.randint(2, 9))]
    while waiting:
        if chance.random() < 0.3:
            simulator.add(waiting.pop())
        if chance.random() < 0.04 and simulator.scheduler.requests:
            simulator.abort(chance.choice(sorted(simulator.scheduler.requests)))
        if chance.random() < 0.01 and not simulator.under_way:
            simulator.preempt_all()
        simulator.step()
    simulator.finish(steps=20_000)
    done.append(simulator)


def test_the_random_schedules_hold_what_they_are_for(done: list[Simulator]) -> None:
    """Preemptions, freed blocks, and prompts longer than their pool: without them they show nothing."""
    if len(done) < len(IN_THE_GATE):
        pytest.skip("only some of the schedules have run")
    preemptions = sum(simulator.preemptions for simulator in done)
    freed = sum(blocks for each in done for blocks, _ in each.reported.values())
    longer = sum(
        row.plan.prompt > each.setting.pool * each.setting.block_size
        for each in done
        for row in each.rows.values()
    )
    assert preemptions > 10 and freed > 200 and longer > 10, (preemptions, freed, longer)


def plans(count: int, prompt: int, answer: int, window: Window | None) -> list[Plan]:
    return [Plan(f"r{i}", tokens(prompt + answer, i), prompt, window) for i in range(count)]


def test_a_pool_that_holds_three_plain_requests_holds_six_streaming_ones() -> None:
    """Blocks of 32, chunks of 128, 800 + 120 tokens, 4 sinks and a window of 256."""
    setting = Setting(pool=3 * 29, block_size=32, chunk=128, batch=16)
    plain, streaming = Simulator(setting), Simulator(setting)
    for plan in plans(6, 800, 120, None):
        plain.add(plan)
    for plan in plans(6, 800, 120, Window(4, 256)):
        streaming.add(plan)
    plain.finish(2000)
    streaming.finish(2000)
    assert plain.most_running - bool(plain.preemptions) <= 3
    assert streaming.most_running == 6
    assert streaming.preemptions == 0
    assert streaming.most_blocks <= 3 * 29 - 6 * 2


def test_a_prompt_longer_than_the_pool_streams_through_beside_a_plain_request() -> None:
    simulator = Simulator(Setting(pool=20, block_size=32, chunk=512, batch=4))
    simulator.add(Plan("plain", tokens(120, 1), 80))
    simulator.add(Plan("long", tokens(1800, 2), 1500, Window(4, 128)))
    simulator.finish(3000)
    assert simulator.preemptions == 0
    freed, evicted = simulator.reported["long"]
    assert evicted == (1798 - 128 + 1) // 32 * 32 - 32
    assert freed == evicted // 32


def test_a_prefix_hit_longer_than_the_pools_free_part_is_no_deadlock() -> None:
    """Only what the next rows see is taken out of the prefix cache."""
    simulator = Simulator(Setting(pool=20, block_size=32, chunk=512, batch=4))
    prompt = tokens(700, 3)
    for name in ("first", "second"):
        simulator.add(Plan(name, prompt, 600, Window(4, 128)))
        simulator.finish(1000)
    freed, evicted = simulator.reported["second"]
    assert freed < simulator.reported["first"][0]
    assert evicted == simulator.reported["first"][1]


def test_a_block_that_another_request_still_holds_is_not_reported_as_freed() -> None:
    """Nine blocks of the prompt are shared, and eight of them are hidden in the end."""
    simulator = Simulator(Setting(pool=200, block_size=4, chunk=64, batch=4))
    for name in ("first", "second"):
        simulator.add(Plan(name, tokens(90, 5), 40, Window(4, 36)))
        simulator.step()
    simulator.finish(200)
    (freed, evicted), (freed_too, evicted_too) = simulator.reported.values()
    assert evicted == evicted_too == 12 * 4
    assert freed + freed_too == 12 + 12 - 8


def test_a_request_without_a_window_keeps_all_its_blocks() -> None:
    simulator = Simulator(Setting(pool=200, block_size=4, chunk=64, batch=4))
    simulator.add(Plan("plain", tokens(400, 5), 300))
    simulator.finish(400)
    assert simulator.most_blocks == 100 and not simulator.reported


@pytest.mark.parametrize("size", [1, 2, 3, 16, 32])
@pytest.mark.parametrize("window", WINDOWS)
def test_the_bound_on_blocks_holds_for_every_row_and_chunk(window: Window, size: int) -> None:
    for row in range(200):
        for count in (1, 2, 5, 17, 64):
            held = -(-(row + count) // size) - len(window.hidden_blocks(row, size))
            assert held <= window.most_blocks(count, size)
            assert window.most_tokens(window.most_blocks(count, size), size) >= count


@pytest.mark.parametrize("size", [1, 2, 3, 16, 32])
@pytest.mark.parametrize("window", WINDOWS)
def test_hidden_blocks_are_whole_and_hidden_from_all_later_rows(window: Window, size: int) -> None:
    for row in range(150):
        hidden = window.hidden_blocks(row, size)
        for later in (row, row + 1, row + 40):
            seen = {
                k // size for k in range(later + 1) if k < window.sinks or k > later - window.window
            }
            assert not seen & set(hidden)
        if hidden:
            following = range(hidden.stop * size, (hidden.stop + 1) * size)
            assert any(k > row - window.window for k in following), "a whole block more is hidden"
