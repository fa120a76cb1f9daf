"""The catalogue, the schemas, and what it takes to add a method."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from intervention_views import MODEL, VISION

import heed_interventions
from heed_interventions import METHODS, catalogue, field_schema, method_schema

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
