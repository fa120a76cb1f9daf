"""What a body of `POST /v1/attention` comes to on a prompt, and what is refused, by field."""

import json
from dataclasses import replace
from typing import Any

import pytest
from pydantic import ValidationError

from heed_interventions.views import ImageSpan, ModelView, PromptView
from heed_server.api.errors import RefusedError
from heed_server.attention import routes
from heed_server.attention.asked import MOST_VALUES, Asked, asked_for, check_body
from heed_server.attention.body import AttentionBody

MODEL = ModelView(layers=4, query_heads=6, kv_heads=2, head_dim=8, max_length=2048)
LENGTH = 20


def body(**fields: Any) -> AttentionBody:
    return AttentionBody.model_validate({"prompt": "a", **fields})


def asked(length: int = LENGTH, prompt: int | None = None, **fields: Any) -> Asked:
    view = PromptView(length)
    return asked_for(body(**fields), MODEL, view, length if prompt is None else prompt)


def test_by_default_all_heads_are_looked_at_in_the_last_row() -> None:
    inspection = asked().inspection
    assert inspection.layers == (0, 1, 2, 3) and inspection.heads == (0, 1, 2, 3, 4, 5)
    assert inspection.rows == (19,) and inspection.response == LENGTH
    assert inspection.quantities == ("columns", "mass", "weights")
    assert inspection.values == 24 * (LENGTH + LENGTH + 1)


def test_ids_are_absolute_and_ascending() -> None:
    inspection = asked(layers=[-1, 0], heads=[5, 1], rows=[-1, 3, 3, -20]).inspection
    assert inspection.layers == (0, 3) and inspection.heads == (1, 5)
    assert inspection.rows == (0, 3, 19)


def test_heads_by_layer_are_taken_together() -> None:
    inspection = asked(heads={"1": [4], "-1": [0, 2]}).inspection
    assert inspection.layers == (1, 3) and inspection.heads == (0, 2, 4)


def test_spans_are_measured_beside_position_0() -> None:
    made = asked(spans=[{"start": 2, "end": 5}, {"start": 4, "end": 9}])
    assert made.spans == ((2, 5), (4, 9))
    assert made.inspection.key_sets == (((0, 1),), ((2, 5),), ((4, 9),))


def test_a_continuation_is_where_the_response_begins() -> None:
    inspection = asked(prompt=15, continuation=[1] * 5, include=["waad", "fai"]).inspection
    assert inspection.response == 15 and inspection.quantities == ("ahead", "distance")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"layers": [4]}, "layers.0"),
        ({"heads": [0, 6]}, "heads.1"),
        ({"heads": {"9": [0]}}, "heads.9"),
        ({"rows": [0, 20]}, "rows.1"),
        ({"rows": [-21]}, "rows.0"),
        ({"spans": [{"start": 3, "end": 21}]}, "spans.0.end"),
        ({"spans": [{"text": "b"}]}, "spans.0.text"),
        ({"include": ["q_similarity"]}, "rows"),
    ],
)
def test_what_is_not_there_is_refused_by_its_path(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(RefusedError) as refusal:
        asked(**fields)
    assert (refusal.value.parameter, refusal.value.status) == (param, 400)


def test_answers_are_bounded_and_the_refusal_says_by_how_much() -> None:
    wide = {"rows": "all", "include": ["attention"]}
    with pytest.raises(RefusedError, match=f"960000.*{MOST_VALUES['json']}"):
        asked(200, **wide)
    assert asked(200, **wide, encoding="base64").inspection.values == 24 * 200 * 200
    with pytest.raises(RefusedError, match=str(MOST_VALUES["base64"])) as refusal:
        asked(2000, **wide, encoding="base64")
    assert refusal.value.parameter == "include"


@pytest.mark.parametrize(
    ("fields", "param", "message"),
    [
        ({"include": ["mass", "vas"]}, "include.1", "image"),
        ({"include": ["vhd"]}, "include.0", "image"),
        ({"include": ["waad"]}, "include.0", "continuation"),
    ],
)
def test_measures_that_need_more_are_refused(
    fields: dict[str, Any], param: str, message: str
) -> None:
    with pytest.raises(RefusedError, match=message) as refusal:
        check_body(body(**fields), MODEL)
    assert refusal.value.parameter == param


def test_images_are_measured_together_behind_the_spans() -> None:
    images = (ImageSpan(3, 7, ((4, 6),)), ImageSpan(9, 12, ((9, 12),)))
    made = asked_for(
        body(include=["mass", "vas"], spans=[{"start": 0, "end": 2}]),
        replace(MODEL, vision=True), PromptView(LENGTH, images=images), LENGTH,
    )  # fmt: skip
    assert made.inspection.key_sets == (((0, 1),), ((0, 2),), ((4, 6), (9, 12)), ((0, 3),))
    assert (made.image, made.system) == (2, 3)


@pytest.mark.parametrize("measure", ["vas", "vhd"])
def test_measures_of_an_image_are_refused_for_a_prompt_without_one(measure: str) -> None:
    with pytest.raises(RefusedError, match="has none") as refusal:
        asked_for(
            body(include=["mass", measure]), replace(MODEL, vision=True), PromptView(LENGTH), LENGTH
        )  # fmt: skip
    assert refusal.value.parameter == "include.1"


def test_vhd_says_which_tokens_the_other_run_does_without() -> None:
    vision = replace(MODEL, vision=True)
    images = (ImageSpan(3, 7, ((4, 6),)), ImageSpan(9, 12, ((9, 12),)))
    view = PromptView(LENGTH, images=images)
    inspection = asked_for(body(include=["vhd"]), vision, view, LENGTH).inspection
    assert inspection.without == ((4, 6), (9, 12)) and inspection.quantities == ("apart",)
    assert inspection.values == 24
    assert asked_for(body(include=["vas"]), vision, view, LENGTH).inspection.without == ()
    whole = PromptView(LENGTH, images=(ImageSpan(0, LENGTH, ((0, LENGTH),)),))
    with pytest.raises(RefusedError, match="empty here"):
        asked_for(body(include=["vhd"]), vision, whole, LENGTH)
    alone = replace(vision, companion_obstacle="there is one run here")
    with pytest.raises(RefusedError, match="one run here") as refusal:
        check_body(body(include=["vhd"]), alone)
    assert refusal.value.parameter == "include.0"


def test_models_that_cannot_be_looked_into_are_refused() -> None:
    view = ModelView(layers=4, query_heads=6, kv_heads=2, head_dim=8, max_length=64)
    with pytest.raises(RefusedError, match="sliding windows"):
        check_body(body(), replace(view, unsupported="sliding windows"))


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": None}, None),
        ({"messages": [{"role": "user", "content": "b"}]}, None),
        ({"rows": []}, "rows"),
        ({"rows": [1.5]}, "rows.0"),
        ({"epsilon": 1}, "epsilon"),
        ({"layers": "some"}, "layers"),
        ({"layers": ["a"]}, "layers.0"),
        ({"heads": []}, "heads"),
        ({"include": ["attentions"]}, "include.0"),
        ({"include": []}, "include"),
        ({"encoding": "pickle"}, "encoding"),
        ({"spans": [{"start": 1}]}, "spans.0.end"),
        ({"prompt": ["a", "b"]}, "prompt.0"),
        ({"prompt": 3}, "prompt"),
        ({"continuation": []}, "continuation"),
        ({"top_k": 3}, "top_k"),
    ],
)
def test_a_body_that_does_not_fit_is_refused_by_its_path(
    fields: dict[str, Any], param: str | None
) -> None:
    with pytest.raises(ValidationError) as error:
        body(**fields)
    refusal = routes.refusal(error.value.errors()[0])
    assert refusal.status_code == 400
    assert json.loads(bytes(refusal.body))["error"]["param"] == param
