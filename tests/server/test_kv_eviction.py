"""Survivors of an eviction get blocks of their own, the rest goes back to the pool, and nothing is lost."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
from tests.server.schedule_simulator import Plan, Simulator
from tests.server.simulated_scheduler import Setting
from tests.server.test_kv_release import WINDOWS, random_setting, tokens
from tests.slow_cases import gated

from heed_kernels.edits import OPEN, Rows
from heed_kernels.evict import ColumnScore, Evict, NormScore, WindowScore
from heed_kernels.segments import Segments
from heed_server.engine.payload import Payload, pack
from heed_server.engine.scheduling.eviction_events import EvictionPolicy, eviction_in

SCHEDULES, IN_THE_GATE = range(260), range(80)


def evict(
    prompt: int, keep: int, *, again: bool = False, together: int = 1, every_row: bool = False
) -> Evict:
    return Evict(
        score=ColumnScore() if every_row else WindowScore(together) if not again else NormScore(),
        share=None,
        counts=(keep,),
        most=keep,
        sinks=0,
        recent=0,
        again=again,
        together=together,
        every_row=every_row,
        rows=Rows(prompt, OPEN),
        source=0,
    )


def policy(edit: Evict) -> EvictionPolicy:
    found = eviction_in(pack(Payload("r", 1, edit.rows.start, edit.rows.start, (edit,))))
    assert found is not None
    return found


def random_edit(chance: random.Random, setting: Setting, prompt: int, again: bool) -> Evict:
    """Heads and layers that share a budget out may keep all that there is."""
    edit = evict(
        prompt,
        chance.choice([1, chance.randint(1, prompt), chance.randint(1, prompt + 40)]),
        again=again,
        together=min(prompt, chance.choice([1, 2, setting.chunk // 2 + 1, setting.chunk])),
        every_row=chance.random() < 0.2,
    )
    (count,) = edit.counts
    most = chance.choice([0, chance.randint(1, prompt), prompt, prompt + chance.randint(1, 50)])
    return replace(edit, most=max(count, most))


def random_plan(chance: random.Random, setting: Setting, number: int) -> Plan:
    """Some share their first tokens, or their whole prompt as choices of one request do; some stream, and
    some seek keys, beside an eviction or without."""
    size = setting.block_size
    room = setting.pool * size
    prompt = chance.randint(1, min(room - size, 400))
    kind = chance.choice(["plain", "streaming", "segments", "once", "again", "shared", "shared"])
    edit = None
    if kind in ("once", "again", "shared"):
        edit = random_edit(chance, setting, prompt, kind == "again")
    answer = chance.randint(1, 120)
    while edit is not None and policy(edit).most_blocks(prompt + answer + 1, size) > setting.pool:
        answer -= 1
    if edit is None:
        answer = min(answer, room - 1 - prompt)
    seed, shared = (0, 0) if kind == "shared" else (number, chance.choice([0, 30, 90, 300]))
    text = tokens(prompt + max(1, answer), seed, min(prompt, shared))
    plan = Plan(f"r{number}", text, prompt, evict=edit)
    if kind == "streaming":
        window = chance.choice(WINDOWS)
        if window.most_blocks(2, size) <= setting.pool:
            plan.window = window
    elif kind == "segments" or (edit is not None and chance.random() < 0.3):
        ahead = prompt <= setting.chunk and chance.random() < 0.5
        if ahead or edit is None or edit.together == 1:
            plan.segments = Segments(prompt, ahead, edit is None and chance.random() < 0.3)
    return plan


def simulate(seed: int) -> Simulator:
    chance = random.Random(seed)
    simulator = Simulator(random_setting(chance))
    simulator.chance.seed(seed)
    waiting = [random_plan(chance, simulator.setting, i) for i in range(chance.randint(2, 9))]
    if (
        max(len(plan.tokens) for plan in waiting)
        < simulator.setting.pool * simulator.setting.block_size
    ):
        # A worker that could not carry the event out says so by saying nothing.
        simulator.nothing_evicted = chance.choice([0, 0.2])
    while waiting:
        if chance.random() < 0.3:
            simulator.add(waiting.pop())
        if chance.random() < 0.04 and simulator.scheduler.requests:
            simulator.abort(chance.choice(sorted(simulator.scheduler.requests)))
        if chance.random() < 0.01 and not simulator.under_way:
            simulator.preempt_all()
        simulator.step()
    simulator.finish(steps=20_000)
    return simulator


@pytest.fixture(scope="module")
def done() -> list[Simulator]:
    """Random schedules that have run."""
    return []


@pytest.mark.parametrize("seed", gated(SCHEDULES, IN_THE_GATE))
def test_random_schedules_lose_no_block_and_overwrite_none_that_is_read(
    seed: int, done: list[Simulator]
) -> None:
    done.append(simulate(seed))


def test_the_random_schedules_hold_what_they_are_for(done: list[Simulator]) -> None:
    """Preemptions, events, freed blocks, and targets among the request's own blocks."""
    if len(done) < len(IN_THE_GATE):
        pytest.skip("only some of the schedules have run")
    preemptions = sum(simulator.preemptions for simulator in done)
    events = sum(simulator.events for simulator in done)
    in_place = sum(simulator.in_place for simulator in done)
    freed = sum(max(blocks, 0) for each in done for blocks, _ in each.reported.values())
    assert preemptions > 20 and events > 200 and freed > 300 and in_place > 50


def plans(count: int, prompt: int, answer: int, keep: int | None, **more: Any) -> list[Plan]:
    edit = None if keep is None else evict(prompt, keep, **more)
    return [Plan(f"r{i}", tokens(prompt + answer, i), prompt, evict=edit) for i in range(count)]


def run(setting: Setting, requests: Sequence[Plan]) -> Simulator:
    simulator = Simulator(setting)
    for plan in requests:
        simulator.add(plan)
    simulator.finish(5000)
    return simulator


def test_a_pool_that_holds_three_plain_requests_decodes_six_that_keep_a_quarter() -> None:
    """Blocks of 32, chunks of 128, 800 + 120 tokens, the last 32 prompt rows together."""
    setting = Setting(pool=3 * 29, block_size=32, chunk=128, batch=16)
    plain = run(setting, plans(6, 800, 120, None))
    evicting = run(setting, plans(6, 800, 120, 200, together=32))
    assert plain.most_running - bool(plain.preemptions) <= 3
    assert evicting.most_running == 6
    assert evicting.preemptions == 0


def test_what_is_freed_is_the_prompt_less_the_survivors() -> None:
    """800 tokens are 25 blocks, and 200 survivors need 7."""
    setting = Setting(pool=100, block_size=32, chunk=128, batch=4)
    simulator = run(setting, plans(1, 800, 40, 200))
    assert simulator.reported["r0"] == (25 - simulator_blocks(simulator, 200), 0)


def simulator_blocks(simulator: Simulator, keep: int) -> int:
    kept = len(simulator.rows["r0"].survivors)
    assert kept <= keep
    return -(-kept // simulator.setting.block_size)


def test_the_prompt_stays_in_the_prefix_cache_where_the_pool_has_room() -> None:
    simulator = Simulator(Setting(pool=100, block_size=32, chunk=1024, batch=4))
    (first,) = plans(1, 800, 40, 200)
    simulator.add(first)
    simulator.finish(100)
    assert simulator.in_place == 0
    simulator.add(replace(first, name="plain", evict=None))
    output = simulator.scheduler.schedule()
    assert output.scheduled_new_reqs[0].num_computed_tokens == 768
    simulator.run(output)
    simulator.finish(100)


def test_own_blocks_take_the_survivors_where_the_pool_is_short() -> None:
    """25 of 26 blocks are the prompt: six of its first seven become targets."""
    simulator = run(Setting(pool=26, block_size=32, chunk=128, batch=4), plans(1, 800, 40, 200))
    assert simulator.in_place == 6


def test_choices_of_one_prompt_evict_each_for_itself() -> None:
    setting = Setting(pool=60, block_size=32, chunk=128, batch=4)
    prompt = tokens(800, 7)
    choices = [
        Plan(f"{i}_r", [*prompt, *tokens(30, i)], 800, evict=evict(800, 200)) for i in range(3)
    ]
    simulator = run(setting, choices)
    assert simulator.events >= 3
    # The prompt's blocks are given back once, and each choice has taken some.
    freed = [simulator.reported.get(plan.name, (0, 0))[0] for plan in choices]
    assert sum(freed) <= 25


def test_a_prompt_row_is_read_out_of_the_prefix_cache_only_before_the_rows_that_are_scored() -> (
    None
):
    simulator = Simulator(Setting(pool=100, block_size=32, chunk=1024, batch=4))
    prompt = tokens(830, 3)
    simulator.add(Plan("plain", prompt, 800))
    simulator.finish(100)
    simulator.add(Plan("window", prompt, 800, evict=evict(800, 200, together=40)))
    simulator.add(Plan("all", prompt, 800, evict=evict(800, 200, every_row=True)))
    output = simulator.scheduler.schedule()
    found = {new.req_id: new.num_computed_tokens for new in output.scheduled_new_reqs}
    assert found == {"window": 736, "all": 0}
    simulator.run(output)
    simulator.finish(200)


def test_what_a_step_has_evicted_says_nothing_of_the_same_request_started_again() -> None:
    """It is preempted while the step is under way, and has come to its event again when that has run."""
    simulator = Simulator(Setting(pool=100, chunk=64, batch=4, run_ahead=True))
    simulator.add(*plans(1, 40, 30, 8))
    simulator.step()
    simulator.preempt_all()
    before = simulator.under_way.popleft()
    simulator.under_way.append(simulator.scheduler.schedule())
    simulator.run(before)
    assert simulator.scheduler._evicting["r0"].event is not None
    simulator.rows["r0"].sampled = 0  # the token was dropped
    simulator.finish(200)
    assert simulator.reported["r0"][0] > 0


@pytest.mark.parametrize("ahead", [1, 5, 15])
@pytest.mark.parametrize("prompt", [16, 18, 40])
def test_the_last_prompt_rows_get_room_beside_running_requests(prompt: int, ahead: int) -> None:
    """All 16 tokens of a step, which running requests would otherwise take a part of for ever."""
    simulator = Simulator(Setting(pool=1500, block_size=4, chunk=16, batch=16))
    for plan in plans(ahead, 4, 300, None):
        simulator.add(plan)
    for _ in range(ahead):
        simulator.step()
    simulator.add(Plan("last", tokens(prompt + 2, 99), prompt, evict=evict(prompt, 4, together=16)))
    for _ in range(6 + prompt - 16):
        simulator.step()
    assert "last" not in simulator.scheduler.requests
    simulator.finish(500)


@pytest.mark.parametrize("run_ahead", [False, True])
@pytest.mark.parametrize("size", [1, 4, 32])
def test_a_request_that_goes_on_evicting_holds_its_budget_and_a_block(
    size: int, run_ahead: bool
) -> None:
    setting = Setting(pool=-(-700 // size), block_size=size, chunk=64, batch=4, run_ahead=run_ahead)
    simulator = Simulator(setting)
    for plan in plans(1, 100, 500, 64, again=True):
        simulator.add(plan)
    while simulator.scheduler.requests:
        simulator.step()
        request = simulator.scheduler.requests.get("r0")
        if request is not None and request.num_computed_tokens > 110:
            used = setting.pool - simulator.pool.get_num_free_blocks()
            assert used <= -(-64 // size) + 2
    simulator.finish(10)


@pytest.mark.parametrize("size", [1, 2, 4, 16])
@pytest.mark.parametrize("together", [1, 3, 10])
@pytest.mark.parametrize("again", [False, True])
def test_steps_end_at_events_and_take_the_last_prompt_rows_together(
    size: int, together: int, again: bool
) -> None:
    prompt = 21
    rules = policy(evict(prompt, 5, again=again, together=together))
    for computed in range(40):
        if prompt - together < computed < prompt:
            continue
        for count in range(rules.rows_together(computed), 30):
            cut = rules.chunk(computed, count, size)
            end = computed + cut
            assert 1 <= cut <= count
            assert not computed < prompt < end
            assert not prompt - together < end < prompt
            if again and computed >= prompt:
                assert end <= (computed // size + 1) * size


@pytest.mark.parametrize("run_ahead", [False, True])
@pytest.mark.parametrize("answer", [1, 2, 3])
def test_what_the_last_steps_free_is_told_and_nothing_is_freed_for_nobody(
    answer: int, run_ahead: bool
) -> None:
    """The row of the last token is never computed: with two, one row reads what is left."""
    setting = Setting(pool=100, block_size=32, chunk=1024, batch=4, run_ahead=run_ahead)
    simulator = run(setting, plans(1, 800, answer, 200))
    assert simulator.events == (answer > 1)
    assert ("r0" in simulator.reported) == (answer > 1)


@pytest.mark.parametrize(("answer", "events"), [(33, 1), (34, 2)])
def test_no_event_is_behind_the_last_row(answer: int, events: int) -> None:
    """After 96 tokens, and after 128 where a row comes after them."""
    setting = Setting(pool=100, block_size=32, chunk=1024, batch=4)
    assert run(setting, plans(1, 96, answer, 64, again=True)).events == events


def test_a_request_that_is_stopped_by_its_first_token_tells_what_it_freed() -> None:
    simulator = Simulator(Setting(pool=100, block_size=32, chunk=1024, batch=4))
    (plan,) = plans(1, 800, 40, 200)
    simulator.add(plan)
    simulator.step()
    simulator.abort("r0")
    assert not simulator.reported
    simulator.step()  # an engine makes one more, to tell the workers that it has ended
    assert simulator.reported["r0"][0] >= 25 - 7
