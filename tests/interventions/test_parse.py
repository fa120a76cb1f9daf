"""The field `interventions` as a client wrote it: what is taken, and how the rest is refused."""

import json
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from heed_interventions import METHODS, REASONS, InterventionError, Method, parse

HUGE = 10**5000

BAD: list[tuple[str, object, str, str]] = [
    ("no list", {"method": "locore"}, "interventions", "wrong_type"),
    ("null", None, "interventions", "wrong_type"),
    ("nine", [{"method": "locore"}] * 9, "interventions", "too_many"),
    ("no object", ["locore"], "interventions.0", "wrong_type"),
    ("no method", [{"beta": 0.1}], "interventions.0.method", "missing_field"),
    ("method of another type", [{"method": 7}], "interventions.0.method", "wrong_type"),
    ("unknown method", [{"method": "zero"}], "interventions.0.method", "unknown_method"),
    ("unknown field", [{"method": "locore", "betta": 1}], "interventions.0.betta", "unknown_field"),
    ("missing field", [{"method": "zerotuning"}], "interventions.0.gamma", "missing_field"),
]


def zerotuning(**fields: object) -> list[object]:
    return [{"method": "zerotuning", "gamma": 2, **fields}]


def emphasis(*spans: object, **fields: object) -> list[object]:
    return [{"method": "emphasis", "spans": list(spans), **fields}]


BAD += [
    ("text for a number", zerotuning(gamma="2"), "interventions.0.gamma", "wrong_type"),
    ("bool for a number", zerotuning(gamma=True), "interventions.0.gamma", "wrong_type"),
    ("null for a number", zerotuning(gamma=None), "interventions.0.gamma", "wrong_type"),
    ("NaN", zerotuning(gamma=math.nan), "interventions.0.gamma", "out_of_bounds"),
    ("infinity", zerotuning(gamma=math.inf), "interventions.0.gamma", "out_of_bounds"),
    ("huge", zerotuning(gamma=HUGE), "interventions.0.gamma", "out_of_bounds"),
    ("zero gamma", zerotuning(gamma=0), "interventions.0.gamma", "out_of_bounds"),
    ("gamma above 10", zerotuning(gamma=10.01), "interventions.0.gamma", "out_of_bounds"),
    ("position 8", zerotuning(position=8), "interventions.0.position", "out_of_bounds"),
    ("huge position", zerotuning(position=HUGE), "interventions.0.position", "out_of_bounds"),
    ("bool position", zerotuning(position=False), "interventions.0.position", "wrong_type"),
    ("half a position", zerotuning(position=0.5), "interventions.0.position", "wrong_type"),
    ("layers as text", zerotuning(layers="1,2"), "interventions.0.layers", "wrong_type"),
    ("layers as a number", zerotuning(layers=1), "interventions.0.layers", "wrong_type"),
    ("layers null", zerotuning(layers=None), "interventions.0.layers", "wrong_type"),
    ("no layers", zerotuning(layers=[]), "interventions.0.layers", "out_of_bounds"),
    ("a layer as text", zerotuning(layers=[0, "1"]), "interventions.0.layers.1", "wrong_type"),
    ("a huge layer", zerotuning(layers=[HUGE]), "interventions.0.layers.0", "out_of_bounds"),
    ("no heads", zerotuning(heads=[]), "interventions.0.heads", "out_of_bounds"),
    ("no heads by layer", zerotuning(heads={}), "interventions.0.heads", "out_of_bounds"),
    ("none in a layer", zerotuning(heads={"1": []}), "interventions.0.heads.1", "out_of_bounds"),
    ("a layer by name", zerotuning(heads={"one": [1]}), "interventions.0.heads.one", "layer"),
    ("both", zerotuning(heads={"1": [1]}, layers=[1]), "interventions.0.layers", "exclusive"),
    (
        "both, all",
        zerotuning(heads={"1": [1]}, layers="all"),
        "interventions.0.layers",
        "exclusive",
    ),
    ("no spans", emphasis(), "interventions.0.spans", "out_of_bounds"),
    ("span as text", emphasis("a"), "interventions.0.spans.0", "wrong_type"),
    ("empty span", emphasis({}), "interventions.0.spans.0", "wrong_type"),
    ("empty text", emphasis({"text": ""}), "interventions.0.spans.0.text", "out_of_bounds"),
    (
        "occurrence 0",
        emphasis({"text": "a", "occurrence": 0}),
        "interventions.0.spans.0.occurrence",
        "out_of_bounds",
    ),
    (
        "text and start",
        emphasis({"text": "a", "start": 1}),
        "interventions.0.spans.0.start",
        "exclusive",
    ),
    ("no end", emphasis({"start": 1}), "interventions.0.spans.0.end", "missing_field"),
    ("text twice", emphasis({"text": "a", "x": 1}), "interventions.0.spans.0.x", "unknown_field"),
    ("rows", emphasis({"text": "a"}, rows="some"), "interventions.0.rows", "out_of_bounds"),
    (
        "window 15",
        [{"method": "streaming_llm", "window": 15}],
        "interventions.0.window",
        "out_of_bounds",
    ),
    ("gain", [{"method": "head_gain", "gain": -2.1}], "interventions.0.gain", "out_of_bounds"),
    ("no gain", [{"method": "head_gain"}], "interventions.0.gain", "missing_field"),
    ("the second", [{"method": "locore"}, {}], "interventions.1.method", "missing_field"),
]


@pytest.mark.parametrize(("raw", "param", "reason"), [b[1:] for b in BAD], ids=[b[0] for b in BAD])
def test_bad_input_is_refused_with_its_path_and_a_reason(
    raw: object, param: str, reason: str
) -> None:
    with pytest.raises(InterventionError) as caught:
        parse(raw)
    assert (caught.value.param, caught.value.reason) == (param, reason)
    assert caught.value.status == 400
    assert len(caught.value.message) < 500


def test_an_unknown_method_is_answered_with_those_that_exist() -> None:
    with pytest.raises(InterventionError, match="zerotuning") as caught:
        parse([{"method": "zerotunning"}])
    assert all(name in caught.value.message for name in METHODS)
    assert "did you mean zerotuning?" in caught.value.message


def test_an_unknown_field_is_answered_with_those_that_exist() -> None:
    with pytest.raises(InterventionError, match="gamma, position, layers, heads"):
        parse(zerotuning(gama=1))


def test_a_value_out_of_bounds_is_answered_with_what_is_allowed() -> None:
    with pytest.raises(InterventionError, match="above 0 and at most 10, not 11"):
        parse(zerotuning(gamma=11))


def test_defaults_are_those_of_the_contract() -> None:
    (locore,) = parse([{"method": "locore"}])
    (streaming,) = parse([{"method": "streaming_llm"}])
    (emphasised,) = parse(emphasis({"text": "a"}))
    assert locore.model_dump() == {
        "method": "locore",
        "profile": None,
        "report": "summary",
        "beta": 0.15,
        "window": 16,
        "include_prompt_tail": False,
        "layers": "all",
    }
    assert streaming.model_dump(exclude={"profile", "report"}) == {
        "method": "streaming_llm",
        "sinks": 4,
        "window": 1020,
        "positions": "rolling",
    }
    values = emphasised.model_dump()
    assert (values["alpha"], values["protect_positions"], values["rows"]) == (0.01, [0], "all")


def test_an_integer_will_do_for_a_number_and_layers_may_repeat() -> None:
    (method,) = parse(zerotuning(layers=[1, 1, -1], report="full"))
    assert method.model_dump()["gamma"] == 2.0


# A refusal takes milliseconds. Work that is quadratic in the megabytes takes hours, so the bound leaves
# room for any machine.
@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    "raw",
    [
        [{"method": "x" * 5_000_000}],
        [{"method": "zerotuning", "y" * 5_000_000: 1}],
        [{"method": "zerotuning", "gamma": "z" * 5_000_000}],
        emphasis({"text": "z" * 5_000_000}),
        zerotuning(layers=[0] * 1_000_000),
        zerotuning(heads={"h" * 1_000_000: [1]}),
        zerotuning(**{f"field{i}": 0 for i in range(100_000)}),
        [{"method": "\ud800"}],
        [{"method": "zerotuning", "\ud800": 1}],
        emphasis({"text": "\udc80"}),
    ],
    ids=range(10),
)
def test_megabytes_and_broken_text_are_refused_quickly_and_not_echoed(raw: object) -> None:
    with pytest.raises(InterventionError) as caught:
        parse(raw)
    assert len(caught.value.message) < 1000
    assert len(caught.value.param) < 200
    (caught.value.message + caught.value.param).encode()


@pytest.mark.parametrize("place", ["list", "item", "method", "gamma", "layers", "heads", "spans"])
def test_deep_nesting_is_refused_at_every_place(place: str) -> None:
    deep: Any = []
    for _ in range(100_000):
        deep = [deep] if place != "heads" else {"1": deep}
    raw: dict[str, object] = {
        "list": deep,
        "item": [deep],
        "method": [{"method": deep}],
        "spans": emphasis(deep),
    }
    with pytest.raises(InterventionError) as caught:
        parse(raw.get(place, zerotuning(**{place: deep})))
    assert len(caught.value.message) < 500


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["all", "prompt", "after_image", 10**4000, -(10**400), 0, 1, 1.0, "1", "\ud800"]
    )
)
fields = sorted({field for method in METHODS.values() for field in method.fields()})
marks = ["text", "start", "end", "occurrence", "image", "1", "-1", "<list>", "[key]", "ctx"]
words = st.sampled_from([*METHODS, *fields, *marks])
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(words | st.text(max_size=4), inner, max_size=5)
    ),
    max_leaves=12,
)
items = st.builds(
    lambda name, fields: {"method": name, **fields},
    st.sampled_from([*METHODS, "act2"]),
    st.dictionaries(words, values, max_size=5),
)


@settings(max_examples=300)
@given(st.lists(items, max_size=9) | values)
def test_any_json_gives_methods_or_one_error_for_the_client(raw: object) -> None:
    methods, error = attempt(raw)
    if error is None:
        assert all(isinstance(method, Method) for method in methods)
        written = [
            {**method.model_dump(exclude_unset=True), "method": method.method} for method in methods
        ]
        assert parse(written) == methods
        return
    assert error.status == 400
    assert error.reason in REASONS
    assert error.param.startswith("interventions")
    json.dumps([error.message, error.param], ensure_ascii=False).encode()


def attempt(raw: object) -> tuple[list[Method], InterventionError | None]:
    try:
        return parse(raw), None
    except InterventionError as error:
        return [], error
