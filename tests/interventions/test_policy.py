"""An operator's policy: what it refuses, with which status and path, and which policies are refused."""

from typing import Any

import pytest
from intervention_views import MODEL, prompt

from heed_interventions import METHODS, InterventionError, Resolution, catalogue, parse, resolve
from heed_interventions.policy import EVERYTHING, Policy, PolicyError, parse_policy

ZERO: dict[str, Any] = {"method": "zerotuning", "gamma": 1.5}
GAIN: dict[str, Any] = {"method": "head_gain", "gain": 2}
STREAM: dict[str, Any] = {"method": "streaming_llm", "window": 16}
POLICY: dict[str, Any] = {
    "methods": {
        "zerotuning": {"gamma": {"minimum": 0.5, "maximum": 2}},
        "streaming_llm": {"positions": {"enum": ["original"]}},
        "locore": {"include_prompt_tail": {"enum": [False]}},
        "act": {"tau": {"minimum": 0.1}},
        "emphasis": {},
    }
}


def run(policy: dict[str, Any], *items: dict[str, Any], **options: Any) -> Resolution:
    return resolve(parse(list(items)), MODEL, prompt(), policy=parse_policy(policy), **options)


def refusal(policy: dict[str, Any], *items: dict[str, Any]) -> InterventionError:
    with pytest.raises(InterventionError) as caught:
        run(policy, *items)
    assert (caught.value.status, caught.value.reason) == (403, "policy")
    return caught.value


def test_a_method_that_is_not_listed_is_refused_by_name() -> None:
    error = refusal(POLICY, ZERO, GAIN)
    assert error.param == "interventions.1.method"
    assert "head_gain" in error.message and "zerotuning, streaming_llm" in error.message


def test_neutral_parameters_do_not_make_a_method_allowed() -> None:
    assert refusal(POLICY, {**GAIN, "gain": 1}).param == "interventions.0.method"


@pytest.mark.parametrize(
    ("item", "param", "words"),
    [
        ({**ZERO, "gamma": 2.5}, "gamma", "at least 0.5 and at most 2"),
        ({**ZERO, "gamma": 0.4}, "gamma", "at least 0.5 and at most 2"),
        (STREAM, "positions", "one of 'original'"),
        ({"method": "locore", "include_prompt_tail": True}, "include_prompt_tail", "one of false"),
        ({"method": "act", "tau": 0.05}, "tau", "at least 0.1"),
        ({"method": "act"}, "tau", "not null"),
    ],
    ids=["above", "below", "the method's own default", "a flag", "too small", "left to the method"],
)
def test_a_value_out_of_the_policys_bounds_is_refused_with_its_path(
    item: dict[str, Any], param: str, words: str
) -> None:
    error = refusal(POLICY, item)
    assert error.param == f"interventions.0.{param}"
    assert words in error.message


def test_what_is_within_the_bounds_goes_on() -> None:
    assert run(POLICY, ZERO, {**STREAM, "positions": "original"}).edits
    assert run(POLICY, {**ZERO, "gamma": 2}).edits


def test_the_methods_own_bounds_still_hold() -> None:
    wide = {"methods": {"zerotuning": {"gamma": {"maximum": 1000}}}}
    with pytest.raises(InterventionError) as caught:
        run(wide, {**ZERO, "gamma": 11})
    assert caught.value.reason == "out_of_bounds"


def test_a_policy_gives_no_privileges() -> None:
    allowed = {"methods": {"head_gain": {}}}
    with pytest.raises(InterventionError) as caught:
        run(allowed, {**GAIN, "gain": 0})
    assert (caught.value.status, caught.value.reason) == (403, "privileged")
    assert run(allowed, {**GAIN, "gain": 0}, allow_privileged=True).edits


def test_without_methods_all_are_allowed_and_with_none_no_one_is() -> None:
    assert run({}, ZERO, GAIN).edits
    assert refusal({"methods": {}}, ZERO).message.endswith("it allows none")


def test_a_default_against_the_policy_is_left_out_and_says_why() -> None:
    resolution = run(POLICY, GAIN, ZERO, sources=["default", "default"])
    assert [report["status"] for report in resolution.reports] == ["skipped", "applied"]
    assert "policy" in resolution.reports[0]["reason"]


def test_protected_tokens_are_never_weakened() -> None:
    protect = {"protect_prefix_tokens": 6}
    error = refusal(protect, GAIN, ZERO)
    assert error.param == "interventions.1"
    assert "the first 6 tokens" in error.message
    spans = [{"start": 0, "end": 6}, {"start": 9, "end": 12}]
    assert run(protect, GAIN, {"method": "emphasis", "spans": spans}).edits
    hint = refusal(protect, {"method": "emphasis", "spans": spans[1:]}).message
    assert '{"start": 0, "end": 6}' in hint


def test_a_default_that_would_weaken_protected_tokens_leaves_no_edit_behind() -> None:
    resolution = run({"protect_prefix_tokens": 2}, ZERO, sources=["default"])
    assert resolution.edits == ()
    assert resolution.reports[0]["status"] == "skipped"


def test_neutral_interventions_weaken_nothing() -> None:
    assert run({"protect_prefix_tokens": 9}, {**ZERO, "gamma": 1}).edits == ()


def test_a_prompt_shorter_than_the_protected_prefix_is_protected_whole() -> None:
    spans = [{"start": 0, "end": 20}]
    assert run({"protect_prefix_tokens": 99}, {"method": "emphasis", "spans": spans}).reports
    assert "the first 20 tokens" in refusal({"protect_prefix_tokens": 99}, ZERO).message


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ([], "dictionary"),
        ({"method": {}}, "method: "),
        ({"methods": ["zerotuning"]}, "methods: "),
        ({"methods": {"zerotunning": {}}}, "no method 'zerotunning'"),
        ({"methods": {"zerotuning": {"gama": {"maximum": 2}}}}, "methods.zerotuning.gama"),
        ({"methods": {"zerotuning": {"gamma": {}}}}, "methods.zerotuning.gamma"),
        ({"methods": {"zerotuning": {"gamma": {"max": 2}}}}, "methods.zerotuning.gamma.max"),
        ({"methods": {"zerotuning": {"gamma": {"maximum": "2"}}}}, "gamma.maximum"),
        ({"methods": {"zerotuning": {"gamma": {"maximum": float("nan")}}}}, "gamma.maximum"),
        ({"methods": {"zerotuning": {"gamma": {"minimum": 3, "maximum": 2}}}}, "no number is"),
        ({"methods": {"zerotuning": {"gamma": {"enum": ["a"]}}}}, "a number has no enum"),
        ({"methods": {"zerotuning": {"gamma": {"enum": ["a"], "maximum": 2}}}}, "or else an enum"),
        ({"methods": {"zerotuning": {"layers": {"maximum": 2}}}}, "methods.zerotuning.layers"),
        ({"methods": {"act": {"decode": {"maximum": 2}}}}, "needs an enum"),
        ({"methods": {"act": {"decode": {"enum": ["of"]}}}}, "never 'of'"),
        ({"methods": {"act": {"decode": {"enum": []}}}}, "methods.act.decode.enum"),
        ({"methods": {"locore": {"include_prompt_tail": {"enum": ["x"]}}}}, "never 'x'"),
        ({"protect_prefix_tokens": -1}, "protect_prefix_tokens"),
        ({"protect_prefix_tokens": True}, "protect_prefix_tokens"),
    ],
    ids=str,
)
def test_a_policy_that_means_nothing_is_refused_with_the_path_in_it(raw: Any, words: str) -> None:
    with pytest.raises(PolicyError) as caught:
        parse_policy(raw)
    assert words in str(caught.value)


def test_every_number_and_word_of_every_method_can_be_bounded() -> None:
    for name, method in METHODS.items():
        schema = method.model_json_schema()["properties"]
        for field in sorted(set(schema) - {"method", "profile", "layers", "heads"}):
            parts = schema[field].get("anyOf", [schema[field]])
            kinds = {part.get("type") for part in parts} - {"null"}
            if kinds <= {"integer", "number"}:
                bounds: dict[str, Any] = {"maximum": 3}
            elif "enum" in parts[0]:
                bounds = {"enum": parts[0]["enum"][:1]}
            else:
                continue
            assert parse_policy({"methods": {name: {field: bounds}}}).bounds(name)


def test_the_catalogue_says_what_the_policy_leaves() -> None:
    policy = parse_policy(POLICY)
    entries = {entry["method"]: policy.narrowed(entry) for entry in catalogue(MODEL)}
    assert not entries["head_gain"]["available"] and "policy" in entries["head_gain"]["reason"]
    gamma = entries["zerotuning"]["parameters"]["properties"]["gamma"]
    assert gamma["allOf"] == [{"minimum": 0.5, "maximum": 2}] and gamma["maximum"] == 10
    assert entries["emphasis"]["available"]


def test_no_policy_changes_nothing() -> None:
    entries = catalogue(MODEL)
    assert [EVERYTHING.narrowed(entry) for entry in entries] == entries
    assert parse_policy({}) == EVERYTHING == Policy()
