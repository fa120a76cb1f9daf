"""The seams in vLLM: the installed one has them as they were when Heed was written against it."""

import json
import re
from pathlib import Path

import pytest
from scripts import seams

SOURCE = """
from .parts import Base, part
class Thing(Base):
    def run(self, step, *, last=False):
        "Says what it does."
        return step
def made(one): return one
"""
PARTS = """
def part(): return 1
class Base:
    limit: int = 3
    def close(self): return None
"""


@pytest.fixture
def other(tmp_path: Path) -> seams.Vllm:
    (tmp_path / "__init__.py").write_text("")
    (tmp_path / "thing.py").write_text(SOURCE)
    (tmp_path / "parts.py").write_text(PARTS)
    return seams.Vllm(tmp_path)


def test_the_installed_vllm_has_every_seam_as_it_was_written_down() -> None:
    found = seams.seams(seams.Vllm(seams.installed()))
    assert list(seams.differences(json.loads(seams.WRITTEN.read_text()), found)) == []


def test_no_seam_is_written_down_as_gone() -> None:
    written: seams.Seams = json.loads(seams.WRITTEN.read_text())
    gone = [
        f"{file}: {t}" for file, known in written.items() for t in known if known[t] == seams.GONE
    ]
    assert gone == []


def test_every_file_that_imports_vllm_is_among_the_seams() -> None:
    written = json.loads(seams.WRITTEN.read_text())
    for path in seams.HEED.rglob("*.py"):
        if re.search(r"^\s*from vllm", path.read_text(), re.MULTILINE):
            assert path.relative_to(seams.ROOT).as_posix() in written


def test_the_page_on_compatibility_names_every_file_of_the_engine_that_touches_vllm() -> None:
    page = (seams.ROOT / "docs" / "compatibility.md").read_text()
    written = json.loads(seams.WRITTEN.read_text())
    files = [Path(file).name for file in written if "/engine/" in file or "/api/" in file]
    assert [name for name in files if f"`{name}`" not in page] == []


@pytest.mark.parametrize(
    ("target", "known"),
    [
        ("vllm.thing:Thing", "class"),
        ("vllm.thing:Thing.run", "(self, step, *, last=False) "),
        ("vllm.thing:Thing.close", "(self) "),
        ("vllm.thing:Thing.limit", "value"),
        ("vllm.thing:part", "() "),
        ("vllm.thing:Thing.stop", seams.GONE),
        ("vllm.thing:other", seams.GONE),
        ("vllm.other:Thing", seams.GONE),
    ],
)
def test_names_are_found_through_imports_and_base_classes(
    other: seams.Vllm, target: str, known: str
) -> None:
    assert seams._describe(other, target).startswith(known)


def test_what_has_changed_is_named(other: seams.Vllm, tmp_path: Path) -> None:
    targets = ["vllm.thing:Thing.run", "vllm.thing:made", "vllm.thing:part"]
    before = {"file": {target: seams._describe(other, target) for target in targets}}
    changed = SOURCE.replace("step, *", "plan, *").replace("return one", "return 2")
    (tmp_path / "thing.py").write_text(changed.replace('"Says what it does."', '"In other words."'))
    (tmp_path / "parts.py").write_text(PARTS.replace("def part", "def piece"))
    now = seams.Vllm(tmp_path)
    after = {"file": {target: seams._describe(now, target) for target in targets}}
    assert list(seams.differences(before, after)) == [
        "file: vllm.thing:Thing.run: (self, step, *, last=False) became (self, plan, *, last=False)",
        "file: vllm.thing:made: other code",
        "file: vllm.thing:part: gone",
    ]


def test_a_docstring_is_no_change(other: seams.Vllm, tmp_path: Path) -> None:
    before = seams._describe(other, "vllm.thing:Thing.run")
    (tmp_path / "thing.py").write_text(SOURCE.replace("Says what it does", "In other words"))
    assert seams._describe(seams.Vllm(tmp_path), "vllm.thing:Thing.run") == before
