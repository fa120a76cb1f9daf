"""A whole list on one prompt: reports, defaults, composition, unsupported models."""

from dataclasses import replace
from typing import Any

import pytest
from intervention_views import MODEL, VISION, prompt

from heed_interventions import ImageSpan, InterventionError, Method, Resolution, parse, resolve
from heed_interventions.zerotuning import ZeroTuning

ZERO: dict[str, Any] = {"method": "zerotuning", "gamma": 2}
STREAM: dict[str, Any] = {"method": "streaming_llm", "window": 16}
LOCORE: dict[str, Any] = {"method": "locore"}
GAIN: dict[str, Any] = {"method": "head_gain", "gain": 2}
TAIL: dict[str, Any] = {"method": "locore", "include_prompt_tail": True}


def run(*raw: dict[str, Any], **options: Any) -> Resolution:
    return resolve(parse(list(raw)), MODEL, prompt(), **options)


def test_no_interventions_are_plain() -> None:
    assert run() == Resolution((), "shared", None, None, (), ())  # type: ignore[arg-type]


def test_a_report_says_what_was_resolved_in_the_order_of_the_request() -> None:
    resolution = run({**GAIN, "layers": [1], "heads": [0, 1]}, {**ZERO, "gamma": 1}, LOCORE)
    assert resolution.reports == (
        {
            "method": "head_gain",
            "status": "applied",
            "source": "request",
            "layer_count": 1,
            "head_count": 2,
            "cache": "salted",
        },
        {
            "method": "zerotuning",
            "status": "neutral",
            "source": "request",
            "layer_count": 4,
            "head_count": 32,
            "cache": "shared",
        },
        {
            "method": "locore",
            "status": "applied",
            "source": "request",
            "layer_count": 4,
            "head_count": 32,
            "cache": "shared",
        },
    )
    assert [edit.source for edit in resolution.edits] == [0, 2]
    assert [heads and heads.pair_count for heads in resolution.heads] == [2, 32, 32]


def test_a_full_report_lists_the_heads() -> None:
    resolution = run({**GAIN, "heads": {"1": [0, 3]}, "report": "full"})
    assert resolution.reports[0]["heads"] == {"1": [0, 3]}


def test_the_report_setting_changes_nothing_else() -> None:
    assert run({**ZERO, "report": "full"}).digest == run(ZERO).digest


def test_an_error_names_the_item_under_the_given_field() -> None:
    with pytest.raises(InterventionError) as caught:
        run(ZERO, {**GAIN, "layers": [9]}, path="edits")
    assert caught.value.param == "edits.1.layers.0"


def test_a_default_that_does_not_fit_is_skipped_with_a_reason() -> None:
    raw = [TAIL, {**GAIN, "gain": 0}, ZERO, {**GAIN, "layers": [9]}]
    resolution = run(*raw, sources=["default"] * 4)
    assert [report["status"] for report in resolution.reports] == [
        "skipped",
        "skipped",
        "applied",
        "skipped",
    ]
    first = resolution.reports[0]
    assert (first["source"], first["layer_count"], first["cache"]) == ("default", 0, "shared")
    assert "text only" in first["reason"]
    assert "privileged" in resolution.reports[1]["reason"]
    assert [edit.source for edit in resolution.edits] == [2]
    assert resolution.heads[0] is None


def test_defaults_give_way_to_the_request_in_a_conflict() -> None:
    resolution = run(STREAM, {**ZERO, "position": 5}, sources=["default", "request"])
    assert [report["status"] for report in resolution.reports] == ["skipped", "applied"]


def test_an_unsupported_model_refuses_all_but_neutral_interventions() -> None:
    model = replace(MODEL, unsupported="sliding-window layers are not supported yet")
    methods: list[Method] = parse([{**ZERO, "gamma": 1}])
    assert resolve(methods, model, prompt()).reports[0]["status"] == "neutral"
    with pytest.raises(InterventionError, match="sliding-window") as caught:
        resolve(parse([ZERO]), model, prompt())
    assert (caught.value.status, caught.value.reason) == (400, "unsupported")
    skipped = resolve(parse([ZERO]), model, prompt(), sources=["default"])
    assert skipped.reports[0]["status"] == "skipped"


@pytest.mark.parametrize("raw", [STREAM, LOCORE])
def test_what_has_no_meaning_twice_is_refused_twice(raw: dict[str, Any]) -> None:
    with pytest.raises(InterventionError, match="only once") as caught:
        run(raw, raw)
    assert (caught.value.reason, caught.value.status) == ("composition", 400)
    assert caught.value.param.startswith("interventions.1")


@pytest.mark.parametrize(
    "raw",
    [
        ZERO,
        GAIN,
        {"method": "attention_scale", "q_scale": 2},
        {"method": "emphasis", "spans": [{"text": "b"}]},
    ],
)
def test_what_multiplies_may_be_repeated(raw: dict[str, Any]) -> None:
    assert len(run(raw, raw).edits) == 2


@pytest.mark.parametrize("order", [1, -1])
def test_zerotuning_of_a_token_that_streaming_hides_is_refused(order: int) -> None:
    pair = [{**ZERO, "position": 4}, STREAM][::order]
    with pytest.raises(InterventionError, match="position 4") as caught:
        run(*pair)
    assert caught.value.reason == "composition"
    assert run({**ZERO, "position": 3}, STREAM).edits
    assert run({**ZERO, "position": 4}, {**STREAM, "sinks": 5}).edits


def test_a_neutral_intervention_has_no_conflicts() -> None:
    assert run({**ZERO, "position": 4, "gamma": 1}, STREAM).edits
    assert run({**ZERO, "position": 4}, {"method": "streaming_llm"}).edits


def test_all_other_pairs_may_stand_together() -> None:
    emphasis = {"method": "emphasis", "spans": [{"text": "b"}]}
    scale = {"method": "attention_scale", "q_scale": 2}
    assert len(run(ZERO, STREAM, emphasis, LOCORE, GAIN, scale).edits) == 6


def test_a_vision_method_works_beside_an_image() -> None:
    view = prompt(images=(ImageSpan(2, 5),))
    assert resolve(parse([TAIL]), VISION, view).reports[0]["status"] == "applied"


def test_methods_can_be_made_without_json() -> None:
    resolution = resolve([ZeroTuning(gamma=1.6, layers=[1, 2])], MODEL, prompt())
    assert resolution.reports[0]["layer_count"] == 2


@pytest.mark.parametrize("method", ["zerotuning", "streaming_llm", "locore"])
def test_a_model_without_attention_layers_refuses_in_its_own_words_and_lets_neutral_ones_pass(
    method: str,
) -> None:
    model = replace(MODEL, layers=0, query_heads=0, rotary=False, unsupported="it has no attention")
    edits = {
        "zerotuning": ({"gamma": 2}, {"gamma": 1}),
        "streaming_llm": ({"window": 16}, None),
        "locore": ({}, {"beta": 0}),
    }
    active, neutral = edits[method]
    with pytest.raises(InterventionError, match="it has no attention"):
        resolve(parse([{"method": method, **active}]), model, prompt())
    if neutral is not None:
        resolution = resolve(parse([{"method": method, **neutral}]), model, prompt())
        assert not resolution.edits and resolution.reports[0]["status"] == "neutral"
