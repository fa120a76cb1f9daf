"""Vision methods: the edits they become, and what they ask of model and prompt."""

from dataclasses import replace
from typing import Any

import pytest
from intervention_views import EVERY_HEAD, IMAGE, MODEL, VISION, prompt

from heed_interventions import (
    METHODS,
    ImageSpan,
    InterventionError,
    ModelView,
    catalogue,
    method_schema,
    parse,
    resolve,
)
from heed_interventions.vision.sink_dimensions import sink_dimensions
from heed_kernels.checks import check_edit
from heed_kernels.edits import (
    OPEN,
    Edit,
    FlagKeys,
    FoundKeys,
    Gate,
    GazeShift,
    HeadChoice,
    HeadRanking,
    HeadSet,
    KeyBias,
    KeyRanges,
    KeyScale,
    MassTransfer,
    Rows,
)

EVERYWHERE = HeadSet(EVERY_HEAD)
LAYER_2 = HeadSet((0, 0, EVERY_HEAD[2], 0))
FROM_2 = HeadSet((0, 0, *EVERY_HEAD[2:]))
QUESTION = KeyRanges(((9, 19),))
VISUAL, SYSTEM = KeyRanges(((3, 9),)), KeyRanges(((0, 3),))
LAST = 19

EDITS: list[tuple[dict[str, object], list[Edit]]] = [
    ({"method": "pai"}, [KeyScale(FROM_2, Rows(LAST, OPEN), VISUAL, 1.0, 0.5, 0)]),
    (
        {"method": "vaf", "layers": "all"},
        [KeyScale(EVERYWHERE, Rows(9, OPEN), VISUAL, 1.15, 0.0, 0)],
    ),
    (
        {"method": "vaf", "layers": "all", "sup_para": 0.9},
        [
            KeyScale(EVERYWHERE, Rows(9, OPEN), VISUAL, 1.15, 0.0, 0),
            KeyScale(EVERYWHERE, Rows(9, OPEN), SYSTEM, 0.9, 0.0, 0),
        ],
    ),
    (
        {"method": "avar", "alpha_img": 0.5, "alpha_sys": 0.25, "rows": "generated"},
        [
            KeyScale(EVERYWHERE, Rows(20, OPEN), VISUAL, 1.5, 0.0, 0),
            KeyScale(EVERYWHERE, Rows(20, OPEN), SYSTEM, 0.75, 0.0, 0),
        ],
    ),
    (
        {"method": "avar", "alpha_img": 0.5},
        [KeyScale(EVERYWHERE, Rows(9, OPEN), VISUAL, 1.5, 0.0, 0)],
    ),
    (
        {"method": "adaptvis", "w": 0.5},
        [KeyScale(EVERYWHERE, Rows(LAST, 20), VISUAL, 0.5, 0.0, 0)],
    ),
    (
        {"method": "var"},
        [
            FlagKeys(LAYER_2, Rows(0, 20), (5, 77), 20.0, VISUAL, False, 0),
            MassTransfer(
                LAYER_2, Rows(9, OPEN), FoundKeys(), VISUAL, 0.6, Gate(VISUAL, VISUAL, 0.5, 0.2), 0
            ),
        ],
    ),
    (
        {"method": "var", "sink_dims": [9, 3], "include_text_sinks": False, "prefill": False},
        [
            FlagKeys(LAYER_2, Rows(0, 20), (3, 9), 20.0, VISUAL, True, 0),
            MassTransfer(
                LAYER_2, Rows(20, OPEN), FoundKeys(), VISUAL, 0.6, Gate(VISUAL, VISUAL, 0.5, 0.2), 0
            ),
        ],
    ),
    (
        {"method": "vhr", "mode": "masked", "select_fraction": 0.7},
        [HeadChoice(EVERYWHERE, Rows(LAST, OPEN), LAST, VISUAL, 5, 2.0, True, 0)],
    ),
    (
        {"method": "vhr", "layers": [2], "filter": False},
        [HeadChoice(LAYER_2, Rows(LAST, OPEN), LAST, VISUAL, 4, 2.0, False, 0, twin=True)],
    ),
    (
        {"method": "vhr", "mode": "masked", "rows": "all"},
        [HeadChoice(EVERYWHERE, Rows(0, OPEN), LAST, VISUAL, 4, 2.0, True, 0)],
    ),
    (
        {"method": "spin", "ratio": 0.29, "lambda": 0},
        [HeadRanking(EVERYWHERE, Rows(LAST, OPEN), VISUAL, 2, 0.0, 0)],
    ),
    (
        {"method": "gift", "saliency_layer": 1, "layers": [2]},
        [GazeShift(LAYER_2, Rows(LAST, OPEN), VISUAL, QUESTION, QUESTION, 1, 4, 5.0, 1.0, 0)],
    ),
    (
        {
            "method": "gift",
            "saliency_layer": -3,
            "layers": [2],
            "head_fraction": 0.25,
            "content_rows": [{"start": 7, "end": 11}, {"start": 14, "end": 15}],
        },
        [
            GazeShift(
                LAYER_2,
                Rows(LAST, OPEN),
                VISUAL,
                QUESTION,
                KeyRanges(((9, 11), (14, 15))),
                1,
                2,
                5.0,
                1.0,
                0,
            )
        ],
    ),
]
GIFT: dict[str, object] = {"method": "gift", "saliency_layer": 0, "layers": [1, 2]}
# Parameters that are not neutral; layers that the model of the tests has.
LEAST: dict[str, dict[str, Any]] = {
    "pai": {},
    "paint": {},
    "vaf": {"layers": "all"},
    "avar": {},
    "adaptvis": {"w": 2},
    "var": {},
    "vhr": {},
    "spin": {},
    "gift": {"saliency_layer": 0, "layers": [1, 2]},
}
each_method = pytest.mark.parametrize("name", LEAST)


@pytest.mark.parametrize(("raw", "edits"), EDITS)
def test_a_vision_method_becomes_the_edits_of_its_definition(
    raw: dict[str, object], edits: list[Edit]
) -> None:
    view = prompt(images=(IMAGE,))
    resolution = resolve(parse([raw]), VISION, view, allow_privileged=True)
    for edit in resolution.edits:
        check_edit(edit)
    assert list(resolution.edits) == edits
    assert resolution.reports[0]["image_keys"] == [[3, 9]]


def test_every_vision_method_is_here() -> None:
    assert set(LEAST) == {name for name, method in METHODS.items() if method.needs_image}


@each_method
@pytest.mark.parametrize(("model", "words"), [(MODEL, "takes text only"), (VISION, "has none")])
def test_a_vision_method_without_an_image_is_refused(
    name: str, model: ModelView, words: str
) -> None:
    with pytest.raises(InterventionError, match=words) as caught:
        resolve(parse([{"method": name, **LEAST[name]}]), model, prompt())
    assert caught.value.reason == "vision"
    assert caught.value.param == "interventions.0.method"


@pytest.mark.parametrize("name", [name for name in LEAST if name != "paint"])
def test_visual_keys_are_those_of_all_images_without_their_markers(name: str) -> None:
    images = (ImageSpan(2, 7, ((3, 5), (6, 7))), ImageSpan(8, 12))
    resolution = resolve(parse([{"method": name, **LEAST[name]}]), VISION, prompt(images=images))
    (report,) = resolution.reports
    assert report["image_keys"] == [[3, 5], [6, 7], [8, 12]]
    for edit in resolution.edits:
        if isinstance(edit, KeyScale):
            assert edit.keys == KeyRanges(((3, 5), (6, 7), (8, 12)))


@each_method
def test_more_pieces_of_images_than_the_server_holds_are_refused(name: str) -> None:
    pieces = tuple((k, k + 1) for k in range(0, 600, 2))
    view = prompt(700, images=(ImageSpan(0, 600, pieces),))
    with pytest.raises(InterventionError, match="300 pieces; at most 256") as caught:
        resolve(parse([{"method": name, **LEAST[name]}]), VISION, view)
    assert caught.value.reason == "vision"


@pytest.mark.parametrize(
    ("raw", "cache", "limit"),
    [
        ({"method": "pai"}, "shared", LAST),
        ({"method": "adaptvis", "w": 2}, "shared", LAST),
        ({"method": "vaf", "layers": "all"}, "salted", None),
        ({"method": "avar"}, "salted", None),
        ({"method": "avar", "rows": "last_and_generated"}, "shared", LAST),
        ({"method": "var"}, "salted", LAST + 1),
        ({"method": "var", "prefill": False}, "salted", LAST + 1),
        ({"method": "vhr", "mode": "masked"}, "shared", LAST),
        ({"method": "vhr", "rows": "all"}, "private", 0),
        ({"method": "spin"}, "shared", LAST),
        ({"method": "paint"}, "shared", LAST),
        ({"method": "gift", "saliency_layer": 0, "layers": [1]}, "private", 0),
    ],
)
def test_rows_after_the_prompt_s_end_leave_the_prompt_s_blocks_alone(
    raw: dict[str, object], cache: str, limit: int | None
) -> None:
    resolution = resolve(parse([raw]), VISION, prompt(images=(IMAGE,)))
    assert (resolution.cache, resolution.publication_limit) == (cache, limit)


def test_an_image_at_the_beginning_leaves_no_system_keys() -> None:
    raw = {"method": "avar", "alpha_sys": 0.5}
    view = prompt(images=(ImageSpan(0, 4),))
    (edit,) = resolve(parse([raw]), VISION, view, allow_privileged=True).edits
    assert isinstance(edit, KeyScale) and edit.keys == KeyRanges(((0, 4),))


@pytest.mark.parametrize(
    ("raw", "field"),
    [
        ({"method": "vaf", "layers": "all", "sup_para": 0.95}, "sup_para"),
        ({"method": "avar", "alpha_sys": 0.4}, "alpha_sys"),
    ],
)
def test_weakening_the_system_prompt_is_privileged(raw: dict[str, object], field: str) -> None:
    with pytest.raises(InterventionError) as caught:
        resolve(parse([raw]), VISION, prompt(images=(IMAGE,)))
    assert (caught.value.status, caught.value.param) == (403, f"interventions.0.{field}")


def test_spin_keeps_a_head_in_each_layer() -> None:
    for ratio in 0.01, 0.124:
        raw = {"method": "spin", "ratio": ratio, "lambda": 0}
        with pytest.raises(InterventionError, match="none of a layer's 8 heads") as caught:
            resolve(parse([raw]), VISION, prompt(images=(IMAGE,)), allow_privileged=True)
        assert (caught.value.status, caught.value.param) == (400, "interventions.0.ratio")
    raw = {"method": "spin", "ratio": 0.125, "lambda": 0}
    (edit,) = resolve(parse([raw]), VISION, prompt(images=(IMAGE,))).edits
    assert isinstance(edit, HeadRanking) and edit.kept == 1


def test_contrastive_decoding_is_refused_by_its_name() -> None:
    with pytest.raises(InterventionError, match="contrastive") as caught:
        resolve(parse([{"method": "pai", "gamma": 1.1}]), VISION, prompt(images=(IMAGE,)))
    assert (caught.value.param, caught.value.reason) == ("interventions.0.gamma", "unsupported")


def test_layers_of_a_larger_model_are_not_taken_for_this_one_s() -> None:
    with pytest.raises(InterventionError, match="say which `layers`") as caught:
        resolve(parse([{"method": "vaf"}]), VISION, prompt(images=(IMAGE,)))
    assert caught.value.param == "interventions.0.layers"


@pytest.mark.parametrize(
    ("image", "outside"),
    [(1, ((1, 3), (5, 20))), (2, ((1, 8), (9, 20))), ("all", ((1, 3), (5, 8), (9, 20)))],
)
def test_a_span_can_be_an_image(image: object, outside: tuple[tuple[int, int], ...]) -> None:
    raw = {"method": "emphasis", "spans": [{"image": image}]}
    view = prompt(images=(ImageSpan(2, 6, ((3, 5),)), ImageSpan(8, 9)))
    (edit,) = resolve(parse([raw]), VISION, view).edits
    assert isinstance(edit, KeyBias) and edit.keys == KeyRanges(outside)


@pytest.mark.parametrize(
    ("span", "reason", "field"),
    [
        ({"image": 2}, "span", "image"),
        ({"image": 0}, "out_of_bounds", "image"),
        ({"image": 1.5}, "wrong_type", "image"),
        ({"image": 1, "start": 2, "end": 4}, "exclusive", "image"),
    ],
)
def test_a_span_of_an_image_that_is_not_there_is_refused(
    span: dict[str, object], reason: str, field: str
) -> None:
    raw = [{"method": "emphasis", "spans": [span]}]
    with pytest.raises(InterventionError) as caught:
        resolve(parse(raw), VISION, prompt(images=(IMAGE,)))
    assert (caught.value.reason, caught.value.param) == (reason, f"interventions.0.spans.0.{field}")


@pytest.mark.parametrize("model", [MODEL, VISION])
def test_a_span_of_an_image_needs_one(model: ModelView) -> None:
    raw = [{"method": "emphasis", "spans": [{"image": 1}]}]
    with pytest.raises(InterventionError) as caught:
        resolve(parse(raw), model, prompt())
    assert caught.value.reason == "vision"
    assert caught.value.param == "interventions.0.spans.0.image"


def test_var_needs_the_dimensions_in_which_sinks_stand_out() -> None:
    model = replace(VISION, sink_dims=())
    with pytest.raises(InterventionError, match="are not known") as caught:
        resolve(parse([{"method": "var"}]), model, prompt(images=(IMAGE,)))
    assert caught.value.param == "interventions.0.sink_dims"
    raw = {"method": "var", "sink_dims": [128]}
    with pytest.raises(InterventionError, match="dimension 128 does not exist") as caught:
        resolve(parse([raw]), VISION, prompt(images=(IMAGE,)))
    assert caught.value.param == "interventions.0.sink_dims"


def test_known_models_have_their_dimensions() -> None:
    assert sink_dimensions("llama", 4096, 32, 32) == (1415, 2533)
    assert sink_dimensions("qwen2_vl_text", 3584, 28, 4) == (458, 2570)
    # Llama 3 has the shape of LLaMA-2-7B but for its KV heads.
    assert sink_dimensions("llama", 4096, 32, 8) == ()


def test_hidden_states_that_cannot_be_read_are_said_in_catalogue_and_refusal() -> None:
    model = replace(VISION, inputs_obstacle="they are compiled away")
    with pytest.raises(InterventionError, match="compiled away") as caught:
        resolve(parse([{"method": "var"}]), model, prompt(images=(IMAGE,)))
    assert (caught.value.param, caught.value.reason) == ("interventions.0.method", "unsupported")
    reasons = {e["method"]: e["reason"] for e in catalogue(model) if not e["available"]}
    assert reasons == {"var": "they are compiled away"}


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ({"method": "act", "layers": [1]}, {"method": "var"}),
        ({"method": "vhr", "mode": "masked"}, {"method": "spin"}),
        (GIFT, {"method": "spin"}),
        (GIFT, {"method": "vhr", "mode": "masked"}),
        (GIFT, {"method": "var"}),
        (GIFT, {"method": "act", "layers": [1]}),
        (GIFT, {"method": "head_gain", "gain": 2}),
        (GIFT, {"method": "streaming_llm", "window": 16}),
        (GIFT, {"method": "knorm", "keep": 0.5}),
        ({"method": "streaming_llm", "window": 16}, {"method": "var"}),
        ({"method": "streaming_llm", "window": 16}, {"method": "vhr", "mode": "masked"}),
        ({"method": "streaming_llm", "window": 16}, {"method": "spin"}),
        ({"method": "knorm", "keep": 0.5}, {"method": "pai"}),
        ({"method": "knorm", "keep": 0.5}, {"method": "var"}),
        ({"method": "knorm", "keep": 0.5}, {"method": "paint"}),
        ({"method": "knorm", "keep": 0.5}, {"method": "spin"}),
        ({"method": "knorm", "keep": 0.5}, {"method": "vhr", "mode": "masked"}),
    ],
)
def test_pairs_without_a_meaning_are_refused_in_either_order(
    one: dict[str, object], other: dict[str, object]
) -> None:
    for pair in ([one, other], [other, one]):
        with pytest.raises(InterventionError) as caught:
            resolve(parse(pair), VISION, prompt(images=(IMAGE,)))
        assert (caught.value.reason, caught.value.param) == ("composition", "interventions.1")


def test_what_is_named_like_a_word_of_python_is_read_and_refused_by_that_name() -> None:
    assert METHODS["spin"].fields()["lambda"].default == 0.1
    assert "lambda" in method_schema(METHODS["spin"])["properties"]
    for raw, reason in (
        ({"lambda": 2}, "out_of_bounds"),
        ({"lambda": "x"}, "wrong_type"),
        ({"lambda_": 0.5}, "unknown_field"),
    ):
        with pytest.raises(InterventionError) as caught:
            parse([{"method": "spin", **raw}])
        assert caught.value.reason == reason
        assert caught.value.param == f"interventions.0.{next(iter(raw))}"


@pytest.mark.parametrize(
    ("layer", "words"), [(1, "come after it"), (3, "come after it"), (4, "does not exist")]
)
def test_gift_finds_its_saliency_below_the_layers_that_it_enhances(layer: int, words: str) -> None:
    raw = {"method": "gift", "saliency_layer": layer, "layers": [1, 2]}
    with pytest.raises(InterventionError, match=words) as caught:
        resolve(parse([raw]), VISION, prompt(images=(IMAGE,)))
    assert (caught.value.reason, caught.value.param) == ("layer", "interventions.0.saliency_layer")


def test_spans_of_gift_are_named_by_their_own_field() -> None:
    raw = {**GIFT, "content_rows": [{"text": "zebra"}]}
    with pytest.raises(InterventionError) as caught:
        resolve(parse([raw]), VISION, prompt(images=(IMAGE,)))
    assert caught.value.param == "interventions.0.content_rows.0.text"
    raw = {**GIFT, "content_rows": "some"}
    with pytest.raises(InterventionError) as caught:
        parse([raw])
    assert caught.value.param == "interventions.0.content_rows"
