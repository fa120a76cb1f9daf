"""What each method becomes: edits, neutral parameters, privilege."""

import math
from dataclasses import replace

import pytest
from intervention_views import EVERY_HEAD, IMAGE, MODEL, VISION, prompt

from heed_interventions import METHODS, ImageSpan, InterventionError, ModelView, parse, resolve
from heed_kernels.checks import check_edit
from heed_kernels.edits import (
    ALL_KEYS,
    OPEN,
    Edit,
    HeadGain,
    HeadSet,
    KeyBias,
    KeyRanges,
    KeyScale,
    Rows,
    TrailingKeys,
    VisibleKeys,
)

EVERYWHERE = HeadSet(EVERY_HEAD)
SPAN = {"start": 5, "end": 9}

EDITS: list[tuple[dict[str, object], Edit]] = [
    (
        {"method": "zerotuning", "gamma": 1.6, "position": 2},
        KeyBias(EVERYWHERE, Rows(), KeyRanges(((2, 3),)), math.log(1.6), 0),
    ),
    ({"method": "head_gain", "gain": 0}, HeadGain(EVERYWHERE, Rows(), 0.0, 0)),
    ({"method": "attention_scale", "q_scale": 0}, KeyScale(EVERYWHERE, Rows(), ALL_KEYS, 0, 0, 0)),
    (
        {"method": "emphasis", "spans": [SPAN], "alpha": 0.5},
        KeyBias(EVERYWHERE, Rows(), KeyRanges(((1, 5), (9, 20))), math.log(0.5), 0),
    ),
    (
        {"method": "emphasis", "spans": [SPAN], "alpha": 0.5, "protect_positions": [0, 19]},
        KeyBias(EVERYWHERE, Rows(), KeyRanges(((1, 5), (9, 19))), math.log(0.5), 0),
    ),
    (
        {"method": "emphasis", "spans": [SPAN, {"start": 0, "end": 6}], "protect_positions": []},
        KeyBias(EVERYWHERE, Rows(), KeyRanges(((9, 20),)), math.log(0.01), 0),
    ),
    (
        {"method": "locore"},
        KeyBias(EVERYWHERE, Rows(20, OPEN), TrailingKeys(20, 16), math.log(1.15), 0),
    ),
    ({"method": "streaming_llm", "window": 16}, VisibleKeys(4, 16, True, 0)),
    (
        {"method": "streaming_llm", "window": 16, "positions": "original", "sinks": 0},
        VisibleKeys(0, 16, False, 0),
    ),
]


@pytest.mark.parametrize(("raw", "edit"), EDITS)
def test_a_method_becomes_the_edit_of_its_definition(raw: dict[str, object], edit: Edit) -> None:
    (found,) = resolve(parse([raw]), MODEL, prompt(), allow_privileged=True).edits
    check_edit(found)
    if isinstance(edit, KeyBias) and isinstance(found, KeyBias):
        assert found.bias == pytest.approx(edit.bias, rel=1e-15)
        found = replace(found, bias=edit.bias)
    assert found == edit


def test_locore_with_the_prompts_tail_begins_after_the_last_image() -> None:
    raw = [{"method": "locore", "include_prompt_tail": True}]
    view = prompt(images=(ImageSpan(2, 9),))
    (edit,) = resolve(parse(raw), VISION, view).edits
    assert isinstance(edit, KeyBias)
    assert (edit.rows, edit.keys) == (Rows(20, OPEN), TrailingKeys(9, 16))
    for model in (MODEL, VISION):
        with pytest.raises(InterventionError) as caught:
            resolve(parse(raw), model, prompt())
        assert caught.value.reason == "vision"
        assert caught.value.param == "interventions.0.include_prompt_tail"


NEUTRAL: list[dict[str, object]] = [
    {"method": "zerotuning", "gamma": 1},
    {"method": "act", "beta": 1},
    {"method": "head_gain", "gain": 1},
    {"method": "attention_scale", "q_scale": 1},
    {"method": "emphasis", "spans": [SPAN], "alpha": 1},
    {"method": "locore", "beta": 0},
    {"method": "streaming_llm", "sinks": 4, "window": 508},
    {"method": "streaming_llm"},
    {"method": "pai", "alpha": 0},
    {"method": "paint", "alpha": 0, "beta": 0},
    {"method": "paint", "local_ratio": 0, "beta": 0},
    {"method": "vaf", "enh_para": 1, "layers": "all"},
    {"method": "avar", "alpha_img": 0},
    {"method": "adaptvis", "w": 1},
    {"method": "var", "move_fraction": 0},
    {"method": "vhr", "alpha": 1, "mode": "masked"},
    {"method": "spin", "lambda": 1},
    {"method": "gift", "alpha": 0, "saliency_layer": 0, "layers": [1]},
    *({"method": name, "keep": 1} for name, method in METHODS.items() if method.evicts),
]


@pytest.mark.parametrize("raw", NEUTRAL)
def test_neutral_parameters_give_no_edit(raw: dict[str, object]) -> None:
    resolution = resolve(parse([raw]), VISION, prompt(images=(IMAGE,)))
    assert resolution.edits == ()
    assert (resolution.cache, resolution.digest, resolution.publication_limit) == (
        "shared",
        None,
        None,
    )
    assert resolution.reports[0]["status"] == "neutral"


def test_a_neutral_intervention_is_known_for_every_method() -> None:
    assert {raw["method"] for raw in NEUTRAL} == set(METHODS)


def test_a_window_that_hides_the_last_possible_row_s_first_key_is_not_neutral() -> None:
    raw = {"method": "streaming_llm", "sinks": 4, "window": 507}
    assert resolve(parse([raw]), MODEL, prompt()).edits


def test_spans_over_the_whole_prompt_leave_nothing_to_edit() -> None:
    raw = {"method": "emphasis", "spans": [{"start": 1, "end": 20}]}
    resolution = resolve(parse([raw]), MODEL, prompt())
    assert resolution.edits == ()
    assert resolution.reports[0]["status"] == "neutral"
    assert "nothing to edit" in resolution.reports[0]["reason"]


@pytest.mark.parametrize(
    ("raw", "param"),
    [
        ({"method": "head_gain", "gain": 0.99}, "gain"),
        ({"method": "head_gain", "gain": -1}, "gain"),
        ({"method": "attention_scale", "q_scale": 0}, "q_scale"),
    ],
)
def test_weakening_heads_is_privileged(raw: dict[str, object], param: str) -> None:
    with pytest.raises(InterventionError) as caught:
        resolve(parse([raw]), MODEL, prompt())
    assert (caught.value.status, caught.value.reason) == (403, "privileged")
    assert caught.value.param == f"interventions.0.{param}"
    assert resolve(parse([raw]), MODEL, prompt(), allow_privileged=True).edits
    raised = {**raw, param: 1.5}
    assert resolve(parse([raised]), MODEL, prompt()).edits


def test_a_window_beyond_the_context_is_refused_when_the_user_wrote_it() -> None:
    with pytest.raises(InterventionError, match="context of 512") as caught:
        resolve(parse([{"method": "streaming_llm", "window": 513}]), MODEL, prompt())
    assert (caught.value.param, caught.value.reason) == ("interventions.0.window", "context")


def test_the_default_window_is_clipped_to_the_context() -> None:
    (report,) = resolve(parse([{"method": "streaming_llm"}]), MODEL, prompt()).reports
    assert report["window"] == 512


def test_rolling_positions_need_rotary_embeddings() -> None:
    model = replace(MODEL, rotary=False)
    raw: dict[str, object] = {"method": "streaming_llm", "window": 16}
    with pytest.raises(InterventionError, match="original") as caught:
        resolve(parse([raw]), model, prompt())
    assert caught.value.param == "interventions.0.positions"
    assert resolve(parse([{**raw, "positions": "original"}]), model, prompt()).edits


def test_a_protected_position_beyond_the_prompt_is_refused() -> None:
    raw = {"method": "emphasis", "spans": [SPAN], "protect_positions": [0, 20]}
    with pytest.raises(InterventionError, match="20 tokens") as caught:
        resolve(parse([raw]), MODEL, prompt())
    assert caught.value.param == "interventions.0.protect_positions.1"


def test_more_separate_key_ranges_than_the_server_holds_are_refused() -> None:
    model: ModelView = replace(MODEL, max_key_ranges=3)
    spans = [{"start": i, "end": i + 1} for i in range(2, 10, 2)]
    with pytest.raises(InterventionError, match="at most 3") as caught:
        resolve(parse([{"method": "emphasis", "spans": spans}]), model, prompt())
    assert caught.value.reason == "span"
