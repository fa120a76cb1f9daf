"""The pages of the documentation: they hold together in the repository, and make a site."""

from __future__ import annotations

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import docs_pages
import pytest
import yaml
from from_schemas import reference

from heed_interventions import METHODS, ModelView, catalogue

ROOT = docs_pages.ROOT
REFERENCE = reference.pages(catalogue(ModelView(2, 4, 2, 8, 64)))
PAGES = [
    *("README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md"),
    *docs_pages.documents(),
    *(path.relative_to(ROOT).as_posix() for path in (ROOT / "clients").rglob("*.md")),
]
SITE = [*map(docs_pages.site_path, docs_pages.documents()), *docs_pages.pages_from_elsewhere()]
each_page = pytest.mark.parametrize("page", PAGES)


def navigation() -> list[str]:
    nav = yaml.safe_load((ROOT / "mkdocs.yml").read_text())["nav"]
    return list(docs_pages.listed(docs_pages.expanded(nav, [*SITE, *REFERENCE])))


def test_the_navigation_has_every_page_once_and_nothing_else() -> None:
    listed = navigation()
    documents = {docs_pages.site_path(page) for page in docs_pages.documents()}
    assert sorted(listed) == sorted(set(listed))
    assert documents | set(REFERENCE) | {"index.md"} <= set(listed)
    assert set(listed) <= {*SITE, *REFERENCE}


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_its_page_and_that_of_its_parameters(method: str) -> None:
    listed = navigation()
    assert f"methods/{method}.md" in listed and f"reference/{method}.md" in listed
    schema = {entry["method"]: entry for entry in catalogue(ModelView(2, 4, 2, 8, 64))}[method]
    for field in schema["parameters"]["properties"]:
        assert f"| `{field}` |" in REFERENCE[f"reference/{method}.md"]


@each_page
def test_every_link_leads_somewhere(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    missing = [link for link in docs_pages.links(text, page) if not (ROOT / link).exists()]
    assert missing == []


@pytest.mark.parametrize(
    ("text", "page", "expected"),
    [
        ("[a](docs/api.md#requests)", "README.md", "[a](api.md#requests)"),
        ("[a](../SECURITY.md)", "docs/security.md", "[a](repository/SECURITY.md)"),
        ("[a](../../README.md)", "clients/python/README.md", "[a](../../../index.md)"),
        ("[`a`](scripts/seams.py)", "README.md", "[`a`](repository/scripts/seams.py.md)"),
        ("[`a`](scripts)", "README.md", "`a`"),
        ("`[a](scripts)` [b](#c)", "README.md", "`[a](scripts)` [b](#c)"),
        ("```\n[a](scripts)\n```\n", "README.md", "```\n[a](scripts)\n```\n"),
        ("[a](https://b.c/docs/api.md)", "README.md", "[a](https://b.c/docs/api.md)"),
    ],
)
def test_links_become_those_of_the_site(text: str, page: str, expected: str) -> None:
    assert docs_pages.for_site(text, page) == expected


@pytest.mark.slow
def test_the_site_is_built_without_a_warning_and_loads_nothing_from_elsewhere(
    tmp_path: Path,
) -> None:
    if importlib.util.find_spec("material") is None:
        pytest.skip("MkDocs Material is not installed; `make docs` installs it")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "reference" / "act" / "index.html").exists()
    loaded = re.compile(r"""<(?:script|link|img)[^>]*?(?:src|href)=["']?(?:https?:)?//[^"'>]+""")
    for page in tmp_path.rglob("*.html"):
        assert loaded.findall(page.read_text()) == [], page
