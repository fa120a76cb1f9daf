"""Pages that name the tests behind their claims name tests that exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from heed_interventions import METHODS
from heed_interventions.method import Method

ROOT = Path(__file__).resolve().parents[2]
REFERENCE = re.compile(r"`((?:tests/[\w/]+\.py)?)(?:::(test_\w+))?`")


@pytest.mark.parametrize("page", ["security.md", "operations.md", "compatibility.md"])
def test_every_test_that_a_page_names_is_there(page: str) -> None:
    named = 0
    file = ""
    for path, test in REFERENCE.findall((ROOT / "docs" / page).read_text()):
        file = path or file
        if not (path or test):
            continue
        named += 1
        assert (ROOT / file).is_file(), f"{page} names {file}"
        if test:
            text = (ROOT / file).read_text()
            assert f"def {test}(" in text, f"{page} names {test} of {file}"
    assert named


def test_every_command_of_the_page_on_operations_is_in_its_table_of_what_runs_them() -> None:
    text = (ROOT / "docs" / "operations.md").read_text()
    page, _, table = text.partition("## What runs the commands of this page")
    blocks = re.findall(r"^    (\S.*)$", page, re.MULTILINE)
    inline = re.findall(r"`((?:python|docker|helm|serve run|pip install) [^`]+)`", page)
    assert len(blocks) >= 5 and len(inline) >= 3
    # The first words of a command, up to what differs from one use to the next.
    named = [each.split(" … ")[0] for each in re.findall(r"`([^`]+)`", table)]
    for command in blocks + inline:
        assert any(command.startswith(name) for name in named), command


def test_the_threat_model_has_every_method_and_those_that_can_be_privileged() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    _, _, section = page.partition("1. **Privileged parameters**")
    section, _, _ = section.partition("### A policy")
    privileged, _, rest = section.partition("\n2. ")
    can_be = {name for name, method in METHODS.items() if method.can_be_privileged}
    assert set(re.findall(r"`(\w+)`", privileged)) & set(METHODS) == can_be
    _, _, others = rest.partition("Not privileged")
    assert set(METHODS) - set(re.findall(r"`(\w+)`", others)) == set()
    asks = Method.privileged_parameter
    assert {
        name for name, method in METHODS.items() if method.privileged_parameter is not asks
    } == (can_be)
