"""The types for TypeScript: what they say, and that they compile."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from from_schemas import typescript
from from_schemas.reading import class_name

from heed_client import Report
from heed_interventions import METHODS, method_schema

FOLDER = typescript.TARGET.parent
STRICT = [
    *("--noEmit", "--strict", "--noUncheckedIndexedAccess", "--exactOptionalPropertyTypes"),
    *("--target", "es2022", "--module", "nodenext", "--moduleResolution", "nodenext"),
]


def interface(name: str) -> str:
    text = typescript.TARGET.read_text()
    found = re.search(rf"^export interface {name}\b.*?{{\n(.*?)^}}", text, re.DOTALL | re.MULTILINE)
    assert found is not None, name
    return found[1]


def fields(name: str) -> set[str]:
    return set(re.findall(r"^  (\w+)\??:", interface(name), re.MULTILINE))


@pytest.mark.parametrize("name", METHODS)
def test_an_interface_has_the_fields_of_the_schema(name: str) -> None:
    schema = method_schema(METHODS[name])
    own = interface(class_name(schema["title"]))
    assert fields(class_name(schema["title"])) | fields("Shared") == set(schema["properties"])
    required = set(re.findall(r"^  (\w+):", own, re.MULTILINE))
    assert required == set(schema["required"])


def test_a_report_has_the_fields_of_the_python_client_s() -> None:
    assert fields("Report") == set(Report.model_fields)


def compiled(folder: Path, files: Sequence[str]) -> str:
    """What the compiler says; `HEED_TEST_NODE_MODULES` names where TypeScript and openai are installed."""
    modules = os.environ.get("HEED_TEST_NODE_MODULES")
    found = Path(modules) / ".bin" / "tsc" if modules else shutil.which("tsc")
    if not found or not Path(found).exists():
        pytest.skip("there is no TypeScript: npm install typescript openai")
    if modules:
        (folder / "node_modules").symlink_to(Path(modules).resolve())
    (folder / "package.json").write_text('{"type": "module"}')
    command = [str(found), *STRICT, *files]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_they_allow_what_a_server_takes_and_refuse_what_it_does_not(tmp_path: Path) -> None:
    shutil.copy(typescript.TARGET, tmp_path)
    source = Path(__file__).with_name("types.ts").read_text()
    (tmp_path / "types.ts").write_text(source.replace('"./heed"', '"./heed.js"'))
    assert compiled(tmp_path, ["types.ts"]) == ""


def test_the_example_of_the_page_compiles(tmp_path: Path) -> None:
    modules = os.environ.get("HEED_TEST_NODE_MODULES")
    if not modules or not (Path(modules) / "openai").exists():
        pytest.skip("there is no openai package for Node: npm install typescript openai")
    shutil.copy(typescript.TARGET, tmp_path)
    (example,) = re.findall(r"```ts\n(.*?)```", (FOLDER / "README.md").read_text(), re.DOTALL)
    (tmp_path / "example.ts").write_text(example.replace('"./heed"', '"./heed.js"'))
    assert compiled(tmp_path, ["example.ts"]) == ""
