"""Counts kept beside the prefix cache: a hit goes as far as somebody has counted, and no further."""

from __future__ import annotations

import random

import pytest
from tests.server.schedule_simulator import Plan, Simulator
from tests.server.simulated_keys import first_rows
from tests.server.simulated_scheduler import Setting
from tests.server.test_kv_release import tokens
from tests.slow_cases import gated
from vllm.v1.outputs import ModelRunnerOutput

from heed_kernels.edits import OPEN
from heed_kernels.segments import Segments
from heed_server.engine.messages import FAILED
from heed_server.engine.scheduling import kept_counts
from heed_server.engine.scheduling.hidden_blocks import Window


def causal(name: str, prompt: int, shared: int, answer: int = 5, running: bool = False) -> Plan:
    all_tokens = tokens(prompt + answer, sum(name.encode()), shared)
    return Plan(name, all_tokens, prompt, None, Segments(prompt, False, running))


def first_row(simulator: Simulator, plan: Plan) -> int:
    """Where the request begins to compute; it then runs to its end."""
    simulator.add(plan)
    output = simulator.scheduler.schedule()
    (new,) = output.scheduled_new_reqs
    simulator.run(output)
    simulator.finish(400)
    return int(new.num_computed_tokens)


def test_a_second_prompt_begins_at_the_last_segment_that_it_shares() -> None:
    simulator = Simulator(Setting(pool=400, block_size=16, chunk=64))
    assert first_row(simulator, causal("first", 300, 280)) == 0
    for name, prompt, shared, expected in [
        ("same rows", 290, 280, 256),
        ("running", 290, 280, 256),
        ("fewer rows", 200, 200, 128),
        ("a short prompt", 60, 60, 32),
        ("too short", 31, 31, 0),
        ("another beginning", 200, 0, 0),
    ]:
        plan = causal(name, prompt, shared, running=name == "running")
        assert first_row(simulator, plan) == expected, name


def test_a_segment_that_ends_inside_a_block_is_not_kept() -> None:
    simulator = Simulator(Setting(pool=40, block_size=48, chunk=64))
    first_row(simulator, causal("first", 300, 280))
    assert first_row(simulator, causal("second", 300, 280)) == 0


def test_counts_over_rows_that_may_not_be_published_are_nobody_elses() -> None:
    """The last row of the first prompt has an edit that it would not have in a longer one."""
    simulator = Simulator(Setting(pool=400, block_size=16, chunk=64))
    first = causal("first", 64, 64)
    first.limit = 63
    first_row(simulator, first)
    assert first_row(simulator, causal("longer", 100, 100)) == 32
    assert first_row(simulator, causal("longer again", 100, 100)) == 64


def test_what_is_kept_is_bounded_and_the_oldest_goes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kept_counts, "MOST_BYTES", 8 * (32 + 64 + 32))
    simulator = Simulator(Setting(pool=400, block_size=16, chunk=64))
    first_row(simulator, causal("first", 127, 127))
    assert [size // 8 for size in simulator.scheduler._kept.values()] == [32, 64]
    first_row(simulator, causal("other", 127, 0))
    assert sum(simulator.scheduler._kept.values()) <= kept_counts.MOST_BYTES
    assert len(simulator.counted) == len(simulator.scheduler._kept)
    assert first_row(simulator, causal("first again", 127, 127)) in (0, 32)


def test_what_a_worker_has_not_kept_is_not_gone_on_from() -> None:
    simulator = Simulator(Setting(pool=400, block_size=16, chunk=64))
    first_row(simulator, causal("first", 300, 280))
    scheduler = simulator.scheduler
    before = dict(scheduler._kept)
    lost = [key for key, size in before.items() if size == 8 * 256]
    answer = ModelRunnerOutput(req_ids=[], req_id_to_index={}, sampled_token_ids=[])
    setattr(answer, kept_counts.NOT_KEPT, lost)
    scheduler.update_from_output(scheduler.schedule(), answer)
    del simulator.counted[lost[0]]
    assert scheduler._kept_bytes == sum(scheduler._kept.values()) == 8 * (32 + 64 + 128)
    assert first_row(simulator, causal("second", 290, 280)) == 128
    assert first_row(simulator, causal("third", 290, 280)) == 256


@pytest.mark.parametrize("segments", [True, False], ids=["act", "streaming"])
def test_what_a_worker_could_not_edit_is_nobody_elses(segments: bool) -> None:
    """An equal request computes its rows itself, and what it computes is found as ever."""
    simulator = Simulator(Setting(pool=400, block_size=16, chunk=64))

    def plan(name: str) -> Plan:
        made = causal(name, 300, 280)
        if not segments:
            made.segments, made.window = None, Window(4, 2000)
        return made

    simulator.add(plan("failing"))
    simulator.step()
    assert any(block.block_hash for block in simulator.pool.blocks)
    simulator.failing = {"failing"}
    while not simulator.idle:
        simulator.step()
        assert not any(block.block_hash for block in simulator.pool.blocks)
    assert not simulator.scheduler._withheld
    assert first_row(simulator, plan("second")) == 0
    assert first_row(simulator, plan("third")) >= 256


def test_who_began_on_blocks_of_a_request_that_fails_in_the_same_step_publishes_nothing_either() -> (
    None
):
    simulator = Simulator(Setting(pool=400, block_size=16, chunk=600))
    scheduler = simulator.scheduler
    for name, shared in (("failing", 280), ("sharing", 280), ("other", 0)):
        plan = causal(name, 300, shared)
        plan.segments, plan.window = None, Window(4, 2000)
        simulator.add(plan)
    output = scheduler.schedule()
    assert first_rows(output) == {"failing": 0, "sharing": 272, "other": 0}
    names = list(output.num_scheduled_tokens)
    answer = ModelRunnerOutput(
        req_ids=names,
        req_id_to_index={name: i for i, name in enumerate(names)},
        sampled_token_ids=[[7], [7], []],
    )
    setattr(answer, FAILED, ["failing"])
    scheduler.update_from_output(output, answer)
    assert scheduler._withheld == {"failing", "sharing"}
    published = {block.block_id for block in simulator.pool.blocks if block.block_hash}
    others = {block.block_id for block in simulator.manager.req_to_blocks["other"]}
    assert published and published <= others


@pytest.mark.parametrize(("until", "kept"), [(OPEN, [32, 64]), (64, [32])])
def test_nothing_is_kept_where_no_segment_begins(until: int, kept: list[int]) -> None:
    """A request preempted behind its prompt would go on from there, and not know what was found before."""
    simulator = Simulator(Setting(pool=400, block_size=16, chunk=64))
    plan = causal("prompt of 64", 64, 64)
    plan.segments = Segments(64, False, False, until)
    first_row(simulator, plan)
    assert [size // 8 for size in simulator.scheduler._kept.values()] == kept


@pytest.mark.parametrize("seed", gated(range(60), range(20)))
def test_random_schedules_go_on_from_the_very_rows_that_were_counted(
    seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`carry_out` looks at every hit. Also under preemption, aborts, and a small store."""
    chance = random.Random(seed)
    monkeypatch.setattr(kept_counts, "MOST_BYTES", 8 * chance.choice([100, 400, 10_000]))
    size = chance.choice([1, 4, 16])
    setting = Setting(
        pool=400 // size,
        block_size=size,
        chunk=chance.choice([16, 64, 300]),
        batch=6,
        run_ahead=chance.random() < 0.4,
    )
    simulator = Simulator(setting)
    for i in range(10):
        shared = chance.choice([40, 130, 300])
        prompt = chance.randint(20, 300)
        plan = causal(f"r{i}", prompt, min(shared, prompt), 40, running=chance.random() < 0.4)
        if chance.random() < 0.2:
            plan.segments = None
        elif chance.random() < 0.3:
            plan.segments = Segments(prompt, False, False, until=prompt)
        simulator.add(plan)
        for _ in range(chance.randint(0, 25)):
            simulator.step()
        if chance.random() < 0.1 and not simulator.under_way:
            simulator.preempt_all()
    simulator.finish(20_000)


def test_the_random_schedules_hold_what_they_are_for() -> None:
    resumed = 0
    for seed in range(10):
        simulator = Simulator(Setting(pool=100, block_size=4, chunk=64, batch=6))
        for i in range(6):
            simulator.add(causal(f"{seed} {i}", 150 + i, 140, 30))
        simulator.finish(5000)
        resumed += simulator.resumed
    assert resumed > 10
