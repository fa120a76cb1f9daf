"""Rules about the repository itself: what its files promise each other."""

from __future__ import annotations

import importlib
import importlib.metadata
import re
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PACKAGE_ROOTS = [ROOT / name for name in PROJECT["tool"]["setuptools"]["packages"]["find"]["where"]]
NOT_OURS = {"build", "dist", "node_modules", "__pycache__"}
HIDDEN_BUT_OURS = {".ci", ".github"}
TEXT_LIMIT = 1_000_000  # bytes; larger files are data

# Files of code that may be longer than LONGEST_FILE lines, each with the reason.
LONGEST_FILE = 400
LONG_FILES: dict[str, str] = {
    "clients/python/heed_client/methods.py": "made from the methods' schemas by `make client`",
}

# Patterns, written so that this file does not match itself.
FORBIDDEN = {
    "a path of one machine": re.compile(
        r"/wor[k]/(?:main|shared|\.library)\b|/tmp/[w]/|/root/\.pyenv|/opt/(?:wheels|pypi)\b"
    ),
    "the host of a package registry": re.compile(
        r"\b(?:pypi\.org|pythonhosted\.org|download\.pytorch\.org|registry\.npmjs\.org"
        r"|deb\.debian\.org|proxy\.golang\.org|wheels\.vllm\.ai)\b"
    ),
}


def files(folder: Path = ROOT) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.name in NOT_OURS or path.suffix == ".egg-info" or path.is_symlink():
            continue
        if path.is_dir():
            if not path.name.startswith(".") or path.name in HIDDEN_BUT_OURS:
                yield from files(path)
        elif not path.name.endswith((".lock", ".log")):
            yield path


def relative(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def make(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = ["make", "--no-print-directory", *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)


def targets_in_help() -> list[str]:
    return re.findall(r"^  ([a-z-]+) +\S", make("help").stdout, re.MULTILINE)


def test_every_target_in_help_exists_and_every_target_is_in_help() -> None:
    shown = targets_in_help()
    assert {"help", "install", "serve", "test", "lint", "bench"} <= set(shown)
    for target in shown:
        plan = make("--dry-run", target)
        assert plan.returncode == 0, plan.stderr
    phony = re.search(r"^\.PHONY: (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    assert sorted(phony[1].split()) == sorted(shown)


def test_serve_hands_the_process_over_so_that_a_signal_reaches_the_server() -> None:
    lines = make("--dry-run", "serve", "PORT=9001", "MODEL=some/model", "ARGS=--seed 1").stdout
    served = [line for line in lines.splitlines() if "heed serve" in line]
    assert len(served) == 1
    assert served[0].startswith("exec ")
    assert served[0].endswith("heed serve some/model --host 127.0.0.1 --port 9001 --seed 1")


def entry_points() -> list[str]:
    groups = PROJECT["project"]["entry-points"].values()
    return [
        *PROJECT["project"]["scripts"].values(),
        *(v for group in groups for v in group.values()),
    ]


@pytest.mark.parametrize("target", entry_points())
def test_every_entry_point_in_pyproject_resolves(target: str) -> None:
    module, _, attribute = target.partition(":")
    assert callable(getattr(importlib.import_module(module), attribute))


def test_the_installed_distribution_offers_what_pyproject_says() -> None:
    installed = importlib.metadata.distribution("heed-server").entry_points
    assert sorted(point.value for point in installed) == sorted(entry_points())


def test_the_version_stands_in_one_place() -> None:
    version = importlib.import_module("heed_server.version").__version__
    assert importlib.metadata.version("heed-server") == version
    assert "version" not in PROJECT["project"]
    code = [path for root in PACKAGE_ROOTS for path in files(root) if path.suffix == ".py"]
    holders = [relative(path) for path in code if f'"{version}"' in path.read_text()]
    assert holders == ["server/heed_server/version.py"]
    assert f"## {version}" in (ROOT / "CHANGELOG.md").read_text()


def test_every_folder_with_code_is_a_package_and_so_ends_up_in_the_wheel() -> None:
    code = [path for root in PACKAGE_ROOTS for path in files(root) if path.suffix == ".py"]
    folders = {path.parent for path in code} - set(PACKAGE_ROOTS)
    assert sorted(relative(f) for f in folders if not (f / "__init__.py").exists()) == []


def test_no_file_names_a_path_of_one_machine_or_the_host_of_a_registry() -> None:
    found = []
    for path in files():
        if path.stat().st_size > TEXT_LIMIT:
            continue
        text = path.read_bytes().decode(errors="ignore")
        for what, pattern in FORBIDDEN.items():
            found += [f"{relative(path)}: {match[0]} ({what})" for match in pattern.finditer(text)]
    assert found == []


def test_no_file_of_code_is_long_without_a_reason() -> None:
    lengths = {
        relative(path): len(path.read_text().splitlines())
        for path in files()
        if path.suffix in (".py", ".js", ".css")
    }
    long = {name: length for name, length in lengths.items() if length > LONGEST_FILE}
    assert {name: length for name, length in long.items() if name not in LONG_FILES} == {}
    assert sorted(set(LONG_FILES) - set(long)) == [], "listed as long and not long any more"


@pytest.mark.parametrize("name", ["LICENSE", "CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"])
def test_the_papers_are_there(name: str) -> None:
    assert (ROOT / name).stat().st_size > 500


def test_the_gate_is_make_test() -> None:
    gate = ROOT / ".ci" / "run"
    assert gate.stat().st_mode & 0o111
    assert re.search(r"^exec make .*\btest$", gate.read_text(), re.MULTILINE)
