"""The catalogue, the schemas, and what it takes to add a method."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from intervention_views import IMAGE, MODEL, VISION, prompt

import heed_interventions
from heed_interventions import (
    METHODS,
    InterventionError,
    catalogue,
    field_schema,
    method_schema,
    parse,
    resolve,
)

ROOT = Path(heed_interventions.__file__).parents[1]
each_method = pytest.mark.parametrize("name", list(METHODS))


def test_the_catalogue_has_one_entry_per_method_with_the_keys_of_the_contract() -> None:
    entries = catalogue(VISION)
    assert [entry["method"] for entry in entries] == list(METHODS)
    for entry in entries:
        assert list(entry) == [
            "method",
            "title",
            "summary",
            "paper",
            "parameters",
            "cache",
            "available",
            "reason",
            "support",
            "privileged",
        ]
        assert (entry["available"], entry["reason"]) == (True, None)
    json.dumps(entries)


def test_a_text_model_has_all_but_the_methods_that_need_an_image() -> None:
    for entry in catalogue(MODEL):
        assert entry["available"] is not METHODS[entry["method"]].needs_image
        assert entry["available"] or "takes text only" in entry["reason"]


def test_an_unsupported_model_has_no_method_and_says_why() -> None:
    model = replace(MODEL, unsupported="no such backend")
    assert {(e["available"], e["reason"]) for e in catalogue(model)} == {(False, "no such backend")}


@each_method
def test_a_schema_is_self_contained_and_closed(name: str) -> None:
    schema = method_schema(METHODS[name])
    assert "$ref" not in json.dumps(schema)
    assert schema["additionalProperties"] is False
    assert schema["properties"]["method"]["const"] == name
    assert "method" in schema["required"]


def test_bounds_and_defaults_stand_in_the_schema() -> None:
    gamma = method_schema(METHODS["zerotuning"])["properties"]["gamma"]
    assert (gamma["exclusiveMinimum"], gamma["maximum"]) == (0, 10)
    window = method_schema(METHODS["streaming_llm"])["properties"]["window"]
    assert (window["default"], window["minimum"]) == (1020, 16)


def test_the_field_is_a_list_of_one_of_the_methods() -> None:
    schema = field_schema()
    assert schema["maxItems"] == 8
    names = [item["properties"]["method"]["const"] for item in schema["items"]["oneOf"]]
    assert names == list(METHODS)


@each_method
def test_a_method_has_a_file_and_a_page_that_names_its_parameters(name: str) -> None:
    method = METHODS[name]
    assert method.__module__.rpartition(".")[2] == name
    page = (ROOT.parent / "docs" / "methods" / f"{name}.md").read_text()
    # A profile is the same for every method: docs/api.md tells of it.
    fields = set(method.fields()) - {"profile"}
    missing = [field for field in sorted(fields) if f"`{field}`" not in page]
    assert missing == []
    assert method.paper.removeprefix("arXiv:") in page


def test_the_package_imports_no_vllm_torch_or_http() -> None:
    imported = {
        line.split()[1].partition(".")[0]
        for file in (ROOT / "heed_interventions").glob("**/*.py")
        for line in file.read_text().splitlines()
        if line.startswith(("import ", "from "))
    }
    assert not imported & {"vllm", "torch", "fastapi", "starlette", "httpx", "transformers"}


@each_method
def test_fields_that_exclude_each_other_can_be_left_out_and_not_written_together(name: str) -> None:
    method = METHODS[name]
    assert all(method.fields()[field].default is None for field in method.exclusive)
    if method.exclusive:
        item = {"method": name, **dict.fromkeys(method.exclusive, 1)}
        with pytest.raises(InterventionError, match="must be left out beside") as caught:
            parse([item])
        assert caught.value.param == f"interventions.0.{method.exclusive[1]}"


@each_method
def test_stand_ins_for_what_is_of_a_prompt_are_of_required_fields_and_can_be_used(
    name: str,
) -> None:
    method = METHODS[name]
    assert all(method.fields()[field].is_required() for field in method.of_the_prompt)
    if method.of_the_prompt:
        assert parse([{"method": name, **method.of_the_prompt}])


OWN: dict[str, dict[str, Any]] = {
    "zerotuning": {"gamma": 2},
    "emphasis": {"spans": [{"start": 0, "end": 1}]},
    "streaming_llm": {"window": 16},
    "head_gain": {"gain": 2},
    "attention_scale": {"q_scale": 2},
    "adaptvis": {"w": 2},
    "gift": {"saliency_layer": 0, "layers": [1, 2]},
}
"""Parameters with which a method without others does something."""

OBSTACLES = {
    "unsupported": set(METHODS),
    "inputs_obstacle": {name for name, method in METHODS.items() if method.reads_inputs},
    "tower_obstacle": {name for name, method in METHODS.items() if method.reads_tower},
    "eviction_obstacle": {name for name, method in METHODS.items() if method.evicts},
}


@pytest.mark.parametrize("obstacle", OBSTACLES)
def test_the_catalogue_says_of_a_model_what_requests_are_told(obstacle: str) -> None:
    model = replace(VISION, **{obstacle: "there is something in the way"})
    refused = {entry["method"]: entry["reason"] for entry in catalogue(model) if entry["reason"]}
    assert refused == dict.fromkeys(OBSTACLES[obstacle], "there is something in the way")
    for name in refused:
        own = {"keep": 0.5} if METHODS[name].evicts else OWN.get(name, {})
        with pytest.raises(InterventionError, match="there is something in the way") as caught:
            resolve(parse([{"method": name, **own}]), model, prompt(images=(IMAGE,)))
        assert caught.value.reason == "unsupported"
