"""The eviction methods: budgets, protected tokens, neutral requests, and what they stand beside."""

from dataclasses import replace
from typing import Any

import pytest
from evictors import EVICTORS, IN_DECODE, WINDOWED, each_method, run
from intervention_views import MODEL, prompt

from heed_interventions import METHODS, InterventionError, ModelView, parse, resolve
from heed_interventions.eviction.budget import EvictionMethod
from heed_kernels.checks import check_edit
from heed_kernels.edits import OPEN, Rows
from heed_kernels.evict import (
    ColumnScore,
    DifferenceScore,
    Evict,
    ExpectedScore,
    HeadShare,
    KindShare,
    NormScore,
    QueryShare,
    Score,
    Share,
    WindowScore,
)


def evict(name: str, length: int = 400, model: ModelView = MODEL, **fields: Any) -> Evict:
    edit = run(name, length, model, **fields)[1]
    assert edit is not None
    return edit


def refused(**fields: Any) -> InterventionError:
    with pytest.raises(InterventionError) as caught:
        resolve(parse([fields]), MODEL, prompt(400))
    assert caught.value.status == 400
    return caught.value


def test_all_ten_are_there() -> None:
    assert sorted(EVICTORS) == sorted(
        "snapkv h2o tova knorm keydiff pyramidkv adakv expected_attention task_kv tappa".split()
    )


SCORES: dict[str, tuple[Score, type[Share] | None]] = {
    "snapkv": (WindowScore(32, 5, "mean"), None),
    "h2o": (ColumnScore(), None),
    "tova": (WindowScore(1, heads="layer"), None),
    "knorm": (NormScore(), None),
    "keydiff": (DifferenceScore(), None),
    "pyramidkv": (WindowScore(32, 5, "mean"), None),
    "adakv": (WindowScore(32, 7, "max"), HeadShare),
    "expected_attention": (ExpectedScore(512, 4, 0.02, True), None),
    "task_kv": (WindowScore(32, 7, "mean"), KindShare),
    "tappa": (WindowScore(32, 5, "mean", variance=200), QueryShare),
}


@each_method
def test_a_method_becomes_one_eviction_with_the_scores_of_its_definition(name: str) -> None:
    resolution, edit = run(name, keep=0.8)
    assert edit is not None
    check_edit(edit)
    score, share = SCORES[name]
    assert edit.score == score
    assert type(edit.share) is (type(None) if share is None else share)
    assert sum(edit.counts) == 320 * MODEL.layers
    assert edit.rows == Rows(400, OPEN)
    assert edit.again == (name in IN_DECODE)
    assert edit.every_row == (name in ("h2o", "expected_attention"))
    assert edit.together == (32 if name in WINDOWED else 1)
    assert max(edit.counts) <= edit.most <= 400
    (report,) = resolution.reports
    assert (report["status"], report["cache"], report["budget"]) == ("applied", "shared", 320)


@each_method
def test_an_evicting_request_shares_the_prompts_blocks_with_plain_ones(name: str) -> None:
    resolution, _ = run(name, keep=0.8)
    assert (resolution.cache, resolution.digest, resolution.publication_limit) == (
        "shared",
        None,
        400,
    )


@each_method
def test_a_share_is_rounded_down_and_a_budget_is_taken_as_it_is(name: str) -> None:
    assert sum(evict(name, 399, keep=0.8).counts) == 319 * MODEL.layers
    assert sum(evict(name, budget=317).counts) == 317 * MODEL.layers


def test_a_share_is_the_decimal_fraction_that_was_written() -> None:
    for hundredths in range(1, 100):
        for length in (100, 700, 1000):
            edit = evict("knorm", length, keep=hundredths / 100)
            assert edit.counts[0] == hundredths * length // 100
    budget = METHODS["knorm"].model_validate({"method": "knorm", "keep": 1e-6})
    assert isinstance(budget, EvictionMethod)
    assert budget.resolved(3_000_000).count == 3


@each_method
def test_a_share_keeps_at_least_one_token_and_the_protected_ones(name: str) -> None:
    edit = evict(name, keep=1e-6, sinks=3, recent=0)
    window = METHODS[name].model_fields["window"].default if name in WINDOWED else 0
    assert set(edit.counts) == {max(1, 3 + window)}
    none = evict(name, keep=1e-6, sinks=0, recent=0, **({"window": 2} if window else {}))
    assert set(none.counts) == {2 if window else 1}


OWN_RECENT = {"h2o": 150, "task_kv": 256, "snapkv": 32, "pyramidkv": 32, "adakv": 32, "tappa": 32}


@each_method
def test_protected_tokens_are_the_methods_own_or_the_requests(name: str) -> None:
    edit = evict(name, budget=300)
    sinks = {"expected_attention": 4, "task_kv": 16}.get(name, 0)
    assert (edit.sinks, edit.recent) == (sinks, OWN_RECENT.get(name, 0))
    edit = evict(name, budget=300, sinks=7, recent=70)
    assert (edit.sinks, edit.recent) == (7, 70)
    edit = evict(name, budget=300, recent=0)
    assert edit.recent == (32 if name in WINDOWED else 0)


@each_method
def test_both_or_neither_of_budget_and_keep_is_refused(name: str) -> None:
    both, neither = refused(method=name, budget=300, keep=0.5), refused(method=name)
    assert (both.param, both.reason) == ("interventions.0.keep", "exclusive")
    assert (neither.param, neither.reason) == ("interventions.0.budget", "missing_field")
    assert "`budget`" in both.message and "`keep`" in neither.message
    assert refused(method=name, budget=None, keep=None).reason == "missing_field"
    assert evict(name, budget=None, keep=0.8)


@each_method
@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"budget": 0}, "budget"),
        ({"budget": 2.5}, "budget"),
        ({"budget": 2**40}, "budget"),
        ({"keep": 0}, "keep"),
        ({"keep": 1.01}, "keep"),
        ({"keep": "half"}, "keep"),
        ({"keep": 0.5, "sinks": -1}, "sinks"),
        ({"keep": 0.5, "sinks": 257}, "sinks"),
        ({"keep": 0.5, "recent": -1}, "recent"),
    ],
)
def test_a_bad_value_is_refused_by_its_name(name: str, fields: dict[str, Any], param: str) -> None:
    assert refused(method=name, **fields).param == f"interventions.0.{param}"


@each_method
def test_a_budget_that_cannot_hold_the_protected_tokens_is_refused(name: str) -> None:
    window = 32 if name in WINDOWED else 0
    least = 6 + max(90, window)
    error = refused(method=name, budget=least - 1, sinks=6, recent=90)
    assert (error.param, error.reason) == ("interventions.0.budget", "out_of_bounds")
    assert "6 first and 90 last" in error.message and str(least - 1) in error.message
    assert evict(name, budget=least, sinks=6, recent=90)
    if window:
        assert refused(method=name, budget=35, sinks=4, recent=0).param == "interventions.0.budget"


@each_method
def test_keeping_all_is_neutral_and_says_so(name: str) -> None:
    for length, fields in ((400, {"keep": 1}), (400, {"budget": 512}), (1, {"keep": 1.0})):
        resolution, edit = run(name, length, **fields)
        (report,) = resolution.reports
        assert edit is None
        assert (report["status"], report["cache"]) == ("neutral", "shared")
        assert "keys are kept" in report["reason"] or "longer than the prompt" in report["reason"]


@each_method
def test_a_budget_of_the_prompts_length_is_neutral_unless_the_answer_can_exceed_it(
    name: str,
) -> None:
    for budget in (400, 450):
        resolution, edit = run(name, budget=budget)
        assert (edit is not None) == (name in IN_DECODE)
        if edit is None:
            assert str(budget) in resolution.reports[0]["reason"]
    if name in IN_DECODE:
        assert run(name, budget=400, decode=False)[1] is None
        # A share of the prompt that is all of it is taken at its word.
        assert run(name, 20, keep=0.5, recent=19, sinks=1)[1] is None


@pytest.mark.parametrize("name", WINDOWED)
def test_a_window_longer_than_the_prompt_is_neutral_and_says_so(name: str) -> None:
    resolution, edit = run(name, 31, keep=0.5, recent=0, sinks=0)
    assert edit is None
    assert "window of 32" in resolution.reports[0]["reason"]
    assert resolution.reports[0]["status"] == "neutral"


@pytest.mark.parametrize("name", WINDOWED)
@pytest.mark.parametrize(
    ("field", "values"),
    [("window", [0, 257]), ("kernel", [0, 2, 65]), ("pooling", ["mean", 5])],
)
def test_fields_of_the_window_are_bounded(name: str, field: str, values: list[Any]) -> None:
    for value in values:
        error = refused(method=name, keep=0.5, **{field: value})
        assert error.param == f"interventions.0.{field}"


@pytest.mark.parametrize("name", WINDOWED)
def test_a_window_that_no_step_can_hold_is_refused(name: str) -> None:
    model = replace(MODEL, longest_step=64)
    assert evict(name, model=model, keep=0.8, window=64)
    with pytest.raises(InterventionError, match="at most 64") as caught:
        run(name, model=model, keep=0.8, window=65)
    assert (caught.value.param, caught.value.reason) == ("interventions.0.window", "context")


@each_method
def test_a_server_that_cannot_evict_says_why_and_takes_neutral_requests(name: str) -> None:
    model = replace(MODEL, eviction_obstacle="the V2 runner does not evict yet")
    with pytest.raises(InterventionError, match="V2 runner") as caught:
        run(name, model=model, keep=0.5)
    assert caught.value.reason == "unsupported"
    assert run(name, model=model, keep=1)[0].reports[0]["status"] == "neutral"


def test_budgets_of_layers_fall_in_a_line_and_add_up_with_pyramidkv() -> None:
    model = replace(MODEL, layers=7)
    edit = evict("pyramidkv", 500, model, budget=100)
    assert list(edit.counts) == sorted(edit.counts, reverse=True)
    assert sum(edit.counts) == 700
    assert edit.counts[0] == 32 + 2 * 68 - 68 // 20
    assert edit.counts[-1] == 32 + 68 // 20
    assert evict("pyramidkv", 500, model, budget=100, beta=1).counts == (100,) * 7
    # The first layers cannot keep more than there is.
    steep = evict("pyramidkv", 200, model, budget=130)
    assert (steep.counts[0], sum(steep.counts)) == (200, 910)
    # The code's rule for short prompts: all layers the same.
    assert evict("pyramidkv", 160, model, budget=130).counts == (130,) * 7
    assert evict("pyramidkv", 500, replace(MODEL, layers=1), budget=100).counts == (100,)
    # 11 keys by 1.1 are 10 ones, also in binary.
    assert evict("pyramidkv", 500, model, budget=43, beta=1.1).counts[-1] == 32 + 10


@pytest.mark.parametrize(("floor", "most"), [(1, 100), (0.5, 134), (0, 168)])
def test_no_head_keeps_more_than_the_bound_of_adakv(floor: float, most: int) -> None:
    # Two KV heads share 2 * 68 keys: all of them may go to one.
    found = evict("adakv", budget=100, floor=floor).most
    assert most <= found <= most + 1


def test_far_heads_fall_from_beta_to_m_with_task_kv() -> None:
    model = replace(MODEL, query_heads=32, kv_heads=32, layers=5)
    share = evict("task_kv", model=model, budget=390, m=4).share
    assert isinstance(share, KindShare)
    assert share.far == (8, 7, 6, 5, 4)
    # 0.29 of 100 heads are 29, and a little less in binary.
    for hundredths in range(101):
        wide = replace(MODEL, query_heads=100, kv_heads=100, layers=2)
        share = evict("task_kv", model=wide, budget=390, beta=hundredths / 100, m=0).share
        assert isinstance(share, KindShare)
        assert share.far == (hundredths, 0)
    share = evict("task_kv", budget=390).share
    assert isinstance(share, KindShare)
    assert share.far == (0, 0, 0, 0)  # two KV heads: only the nearest is chosen
    assert refused(method="task_kv", budget=390, m=3).param == "interventions.0.m"


def test_chosen_heads_of_task_kv_keep_all_only_where_the_budget_allows() -> None:
    fields = {"sinks": 4, "recent": 40}
    assert evict("task_kv", budget=300, **fields).most == 400
    assert evict("task_kv", budget=222, **fields).most == 400
    assert evict("task_kv", budget=221, **fields).most == 2 * 221 - 44
    assert evict("task_kv", budget=44, **fields).most == 44


def test_one_layer_may_take_the_budgets_of_all_with_tappa() -> None:
    assert evict("tappa", budget=100).most == 32 + 4 * 68
    assert evict("tappa", budget=300).most == 400


def test_expected_attention_needs_rotary_positions() -> None:
    with pytest.raises(InterventionError, match="rotary") as caught:
        run("expected_attention", model=replace(MODEL, rotary=False), keep=0.5)
    assert caught.value.reason == "unsupported"


# What stands beside an eviction.
