"""Prompts that one step computes whole: nobody starves, and every row comes in the step it needs."""

from __future__ import annotations

import random

import pytest
from tests.server.schedule_simulator import Plan, Simulator
from tests.server.simulated_scheduler import Setting
from tests.server.test_kv_release import WINDOWS, tokens
from tests.slow_cases import gated

from heed_kernels.segments import Segments
from heed_server.engine.scheduling.rows_together import MOST_PASSES

SCHEDULES, IN_THE_GATE = range(160), range(40)


def plan(name: str, prompt: int, answer: int, segments: Segments | None = None) -> Plan:
    return Plan(name, tokens(prompt + answer, sum(name.encode())), prompt, segments=segments)


def whole(name: str, prompt: int, answer: int = 5, running: bool = False) -> Plan:
    return plan(name, prompt, answer, Segments(prompt, True, running))


def steps_until_begun(simulator: Simulator, name: str, most: int = 200) -> int:
    """Steps until the first rows of `name` are scheduled."""
    for step in range(most):
        simulator.step()
        request = simulator.scheduler.requests.get(name)
        if request is None or request.num_computed_tokens:
            return step + 1
    raise AssertionError(f"{name} did not begin in {most} steps")


def random_plan(chance: random.Random, setting: Setting, number: int) -> Plan:
    room = setting.pool * setting.block_size - 1
    kind = chance.choice(["plain", "plain", "streaming", "whole", "whole", "causal"])
    longest = min(room, 300)
    prompt = chance.randint(1, max(1, min(longest - 1, setting.chunk if kind == "whole" else 200)))
    length = chance.randint(prompt + 1, max(prompt + 1, min(longest, prompt + 60)))
    made = Plan(f"r{number}", tokens(length, number), prompt)
    if kind == "streaming":
        window = chance.choice(WINDOWS)
        if window.most_blocks(2, setting.block_size) <= setting.pool:
            made.window = window
    elif kind != "plain":
        made.segments = Segments(prompt, kind == "whole", chance.random() < 0.4)
        made.chooses = kind == "whole" and not made.segments.running and chance.random() < 0.5
    if setting.encoder and prompt > 12:
        starts = chance.sample(range(0, prompt - 9, 9), chance.randint(0, min(3, prompt // 9 - 1)))
        made.images = tuple((start, 9) for start in sorted(starts))
    return made


@pytest.mark.parametrize("seed", gated(SCHEDULES, IN_THE_GATE))
def test_random_schedules_compute_whole_prompts_in_one_step_and_end(seed: int) -> None:
    chance = random.Random(seed)
    size = chance.choice([1, 4, 16])
    setting = Setting(
        pool=-(-chance.randint(80, 320) // size),
        block_size=size,
        chunk=chance.choice([16, 40, 120, 300]),
        batch=chance.choice([1, 3, 6, 16]),
        prefix_caching=chance.random() < 0.75,
        reserve_full_prompt=chance.random() < 0.75,
        watermark=chance.choice([0.0, 0.0, 0.05]),
        run_ahead=chance.random() < 0.4,
        encoder=27 if seed % 2 else 0,
    )
    simulator = Simulator(setting)
    waiting = [random_plan(chance, setting, i) for i in range(chance.randint(2, 12))]
    while waiting:
        if chance.random() < 0.4:
            simulator.add(waiting.pop())
        if chance.random() < 0.04 and simulator.scheduler.requests:
            simulator.abort(chance.choice(sorted(simulator.scheduler.requests)))
        if chance.random() < 0.02 and not simulator.under_way:
            simulator.preempt_all()
        simulator.step()
    simulator.finish(steps=20_000)


def test_a_prompt_that_does_not_fit_the_rest_of_a_step_is_passed_over_by_those_behind_it() -> None:
    simulator = Simulator(Setting(pool=400, chunk=64, batch=8))
    simulator.add(plan("first", 30, 5))
    simulator.add(whole("whole", 60))
    simulator.add(plan("short", 10, 5))
    simulator.step()
    assert {r.request_id for r in simulator.scheduler.running} == {"first", "short"}
    # Two rows of the others leave room for 62.
    assert steps_until_begun(simulator, "whole") == 1
    simulator.finish(50)


def test_a_step_is_reserved_for_it_after_a_few_passes_whatever_else_arrives() -> None:
    """Every step brings more prompt than a step holds, before and after the whole one."""
    simulator = Simulator(Setting(pool=4000, chunk=64, batch=32))
    for i in range(6):
        simulator.add(plan(f"before {i}", 200, 5))
    simulator.step()
    simulator.add(whole("whole", 64))
    for i in range(400):
        simulator.add(plan(f"after {i}", 30, 2))
    # Those before it come first; each takes a bit more than three steps.
    steps = steps_until_begun(simulator, "whole")
    assert steps <= 6 * 200 // 64 + MOST_PASSES + 6


def test_a_prompt_whose_images_find_the_encoder_full_waits_for_all_of_them() -> None:
    """What the encoder made of an image is kept until all of the image's rows are computed."""
    simulator = Simulator(Setting(pool=400, chunk=40, batch=8, encoder=20))
    first, second = plan("first", 52, 5), whole("whole", 20)
    first.images, second.images, second.chooses = ((30, 20),), ((6, 10),), True
    simulator.add(first)
    simulator.add(second)
    simulator.step()
    assert steps_until_begun(simulator, "whole") == 2
    simulator.finish(50)


def test_a_running_prefill_makes_way_for_one_step_only() -> None:
    simulator = Simulator(Setting(pool=4000, chunk=64, batch=8))
    simulator.scheduler.scheduler_config.long_prefill_token_threshold = 40
    simulator.add(plan("endless", 6000, 5))
    simulator.step()
    simulator.add(whole("whole", 64, answer=30))
    assert steps_until_begun(simulator, "whole") == MOST_PASSES + 1
    before = simulator.scheduler.requests["endless"].num_computed_tokens
    simulator.step()
    assert simulator.scheduler.requests["endless"].num_computed_tokens - before == 40


def test_decoding_requests_wait_one_step_for_a_prompt_as_long_as_a_step() -> None:
    simulator = Simulator(Setting(pool=4000, chunk=16, batch=16))
    for i in range(8):
        simulator.add(plan(f"r{i}", 1, 100))
    simulator.step()
    simulator.step()
    simulator.add(whole("whole", 16))
    assert steps_until_begun(simulator, "whole") == MOST_PASSES + 1
    rows = {r.request_id: r.num_computed_tokens for r in simulator.scheduler.running}
    simulator.step()
    after = {r.request_id: r.num_computed_tokens for r in simulator.scheduler.running}
    assert all(after[name] - rows[name] == 1 for name in rows)
    simulator.finish(300)


def test_many_whole_prompts_never_make_decoding_requests_wait_two_steps_running() -> None:
    simulator = Simulator(Setting(pool=4000, chunk=16, batch=16))
    decoding = [f"decoding {i}" for i in range(4)]
    for name in decoding:
        simulator.add(plan(name, 1, 200))
    simulator.step()
    simulator.step()
    waiting = [f"whole {i}" for i in range(20)]
    for name in waiting:
        simulator.add(whole(name, 16))
    scheduler, begun, stalled = simulator.scheduler, [], dict.fromkeys(decoding, 0)
    while len(begun) < len(waiting):
        before = {name: scheduler.requests[name].num_computed_tokens for name in decoding}
        simulator.step()
        for name, row in before.items():
            waits = scheduler.requests[name].num_computed_tokens == row
            stalled[name] = stalled[name] + 1 if waits else 0
            assert stalled[name] <= 1
        begun += [
            name
            for name in waiting
            if name not in begun
            and (name not in scheduler.requests or scheduler.requests[name].num_computed_tokens)
        ]
    assert begun == waiting
    simulator.finish(300)


def test_small_requests_behind_it_do_not_take_the_blocks_it_waits_for() -> None:
    """The pool holds the whole one only when most of it is free."""
    simulator = Simulator(Setting(pool=40, block_size=4, chunk=122, batch=16))
    for i in range(5):
        simulator.add(plan(f"before {i}", 20, 8))
    simulator.step()
    simulator.add(whole("whole", 120))
    for i in range(200):
        simulator.add(plan(f"after {i}", 20, 8))
    assert steps_until_begun(simulator, "whole") <= 20


def test_two_whole_prompts_each_get_a_step() -> None:
    simulator = Simulator(Setting(pool=400, chunk=64, batch=8))
    simulator.add(whole("one", 60))
    simulator.add(whole("other", 50))
    simulator.step()
    assert [r.request_id for r in simulator.scheduler.running] == ["one"]
    assert steps_until_begun(simulator, "other") == 1
    simulator.finish(50)


def test_a_limit_on_long_prefills_does_not_cut_a_whole_prompt() -> None:
    simulator = Simulator(Setting(pool=400, chunk=64, batch=8))
    simulator.scheduler.scheduler_config.long_prefill_token_threshold = 10
    simulator.add(plan("plain", 40, 5))
    simulator.add(whole("whole", 50))
    simulator.finish(60)


def test_a_preempted_request_gets_its_prompt_in_one_step_again() -> None:
    """Five that together outgrow the pool; `check_segment` looks at every step."""
    simulator = Simulator(Setting(pool=30, block_size=4, chunk=40, batch=6))
    for i in range(5):
        simulator.add(whole(f"r{i}", 20 + i, answer=40, running=i % 2 == 0))
    simulator.finish(600)
    assert simulator.preemptions > 0


def test_plain_requests_are_scheduled_as_ever() -> None:
    """With a causal neighbour, which never asks for more than others do."""
    steps = []
    for neighbour in (False, True):
        simulator = Simulator(Setting(pool=400, chunk=64, batch=8))
        simulator.add(plan("plain", 150, 20))
        if neighbour:
            simulator.add(plan("causal", 100, 5, Segments(100, False, False)))
        count = 0
        while "plain" in simulator.scheduler.requests:
            simulator.step()
            count += 1
        steps.append(count)
        simulator.finish(100)
    assert steps[0] == steps[1]
