"""Catalogue, clients, documentation and playground are made from one schema: a new method is a line in the registry."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import docs_pages
import pytest
import yaml
from from_schemas import python_client, reference, typescript
from tests.dummy_method import Dummy

from heed_interventions import METHODS, ModelView, catalogue, field_schema, method_schema, parse

PLAYGROUND = docs_pages.ROOT / "server" / "heed_server" / "playground"
MODEL = ModelView(layers=2, query_heads=4, kv_heads=2, head_dim=8, max_length=64)
OWN_FIELDS = ("strength", "colour", "loud", "note", "order", "layers", "heads")


@pytest.fixture(autouse=True)
def with_a_method_more(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(METHODS, "dummy", Dummy)


def test_requests_take_it_and_the_catalogue_and_the_openapi_document_have_it() -> None:
    (parsed,) = parse([{"method": "dummy", "strength": 0.5}])
    assert isinstance(parsed, Dummy)
    entry = {entry["method"]: entry for entry in catalogue(MODEL)}["dummy"]
    assert entry["available"] and set(OWN_FIELDS) < set(entry["parameters"]["properties"])
    assert entry["parameters"] in field_schema()["items"]["oneOf"]


def test_the_python_client_gets_a_builder(tmp_path: Path) -> None:
    path = tmp_path / "methods_with_dummy.py"
    path.write_text(python_client.render(map(method_schema, METHODS.values())))
    found = importlib.util.spec_from_file_location(path.stem, path)
    assert found is not None and found.loader is not None
    made = importlib.util.module_from_spec(found)
    found.loader.exec_module(made)
    built = made.Dummy(strength=0.5, heads=[1])
    assert built.body() == {"method": "dummy", "strength": 0.5, "heads": [1]}
    with pytest.raises(ValueError, match="strength"):
        made.Dummy(strength=4)


def test_the_types_for_typescript_get_an_interface() -> None:
    made = typescript.render(map(method_schema, METHODS.values()))
    assert "\n  | Dummy;\n" in made
    (body,) = re.findall(r"export interface Dummy extends Shared {\n(.*?)\n}", made, re.DOTALL)
    assert re.findall(r"^  (\w+)\??: .*;$", body, re.MULTILINE) == ["method", *OWN_FIELDS]
    assert "  strength: number;" in body and '  colour?: "red" | "green";' in body


def test_the_documentation_gets_a_page_of_its_parameters() -> None:
    pages = reference.pages(catalogue(MODEL))
    page = pages["reference/dummy.md"]
    assert all(f"| `{field}` |" in page for field in OWN_FIELDS)
    assert (
        "| `strength` | a number at least -3, at most 3 | required | How much of nothing. |" in page
    )
    assert "(dummy.md)" in pages["reference/index.md"]
    nav = yaml.safe_load((docs_pages.ROOT / "mkdocs.yml").read_text())["nav"]
    assert "reference/dummy.md" in docs_pages.listed(docs_pages.expanded(nav, list(pages)))


def test_the_playground_knows_no_method_by_name() -> None:
    """So it has what the catalogue has; `tests/browser/test_form.py` sends a request with this one."""
    names = re.compile(rf"""['"`>](?:{"|".join(METHODS)})['"`<]""")
    files = [*PLAYGROUND.glob("*.js"), *PLAYGROUND.glob("*.html")]
    assert [(path.name, found) for path in files for found in names.findall(path.read_text())] == []
