"""Whether this tree can be released: versions agree, what is built is whole, and it serves when installed.

    python scripts/release_check.py              (or: make release-check)
    python scripts/release_check.py --no-install    without the clean environment (seconds)
    python scripts/release_check.py --write      note the versions that served in deploy/constraints-cpu.txt

Builds the sdist, the wheel from it, and installs that with the extra `cpu` into an environment with nothing
else in it, in the versions that pip finds today, not in those noted. EXTRAS names another extra.
"""

from __future__ import annotations

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from clean_install import FailedError, make_environment, run, say, serve_and_ask

ROOT = Path(__file__).resolve().parent.parent
PACKAGES = {
    "server": "heed_server",
    "interventions": "heed_interventions",
    "kernels": "heed_kernels",
}
NOT_CODE = ("tests/", "benchmarks/", "training/", "docs/", "deploy/", "scripts/")
CONSTRAINTS = ROOT / "deploy" / "constraints-cpu.txt"
CONSTRAINTS_HEAD = """\
# Versions of all that `heed-server[cpu]` needs, as they last served; `scripts/release_check.py --write` notes them.
# The Dockerfile installs these.
"""
BUILD_SDIST = (
    "import sys; from setuptools import build_meta as b; print(b.build_sdist(sys.argv[1]))"
)


def version() -> str:
    text = (ROOT / "server/heed_server/version.py").read_text()
    found = re.search(r'^__version__ = "(.+)"$', text, re.MULTILINE)
    assert found is not None
    return found[1]


def check_versions(expected: str) -> None:
    """The version that others repeat is the one of `version.py`."""
    repeated = {
        "deploy/helm/heed/Chart.yaml": rf"^appVersion: {re.escape(expected)}$",
        "deploy/production-stack.yaml": rf"^ +tag: {re.escape(expected)}$",
        "Dockerfile": rf'image\.version="{re.escape(expected)}"',
        "CHANGELOG.md": rf"^## {re.escape(expected)} \(",
    }
    for name, pattern in repeated.items():
        if not re.search(pattern, (ROOT / name).read_text(), re.MULTILINE):
            raise FailedError(f"{name} does not name version {expected}")


def tracked() -> set[str]:
    """Every file of the three packages that git knows, by its path in the wheel."""
    listed = run(["git", "ls-files", *PACKAGES], ROOT).splitlines()
    return {
        name.partition("/")[2]
        for name in listed
        if name.partition("/")[2].startswith(f"{PACKAGES[name.partition('/')[0]]}/")
    }


def check_wheel(wheel: Path, expected: set[str]) -> None:
    """The wheel holds all of `expected`, the licence and the entry points, and nothing that is not code."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        entry_points = next(name for name in names if name.endswith("/entry_points.txt"))
        points = archive.read(entry_points).decode()
    missing = sorted(expected - names)
    if missing:
        raise FailedError(f"the wheel lacks {', '.join(missing[:10])}")
    surplus = sorted(name for name in names if name.startswith(NOT_CODE))
    if surplus:
        raise FailedError(f"the wheel holds {', '.join(surplus[:10])}")
    for group in ("console_scripts", "vllm.general_plugins", "vllm.endpoint_plugins"):
        if f"[{group}]" not in points:
            raise FailedError(f"the wheel has no entry points for {group}")
    if not any(name.endswith("licenses/LICENSE") for name in names):
        raise FailedError("the wheel has no licence")


def build(folder: Path) -> Path:
    """The wheel, made from the sdist, as an installer of the sdist would make it."""
    # What is committed, in a place of its own: building leaves its notes beside the sources.
    source = folder / "source"
    run(["git", "archive", "--format=tar", f"--output={folder / 'source.tar'}", "HEAD"], ROOT)
    shutil.unpack_archive(folder / "source.tar", source)
    sdist = run([sys.executable, "-c", BUILD_SDIST, folder], source).splitlines()[-1]
    say(f"{sdist}: {(folder / sdist).stat().st_size / 2**20:.1f} MiB")
    command: list[str | Path] = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--no-deps",
        "--disable-pip-version-check",
    ]
    run([*command, "--wheel-dir", str(folder), str(folder / sdist)], folder)
    (wheel,) = folder.glob("*.whl")
    say(f"{wheel.name}: {wheel.stat().st_size / 2**20:.1f} MiB")
    return wheel


def check_installed(wheel: Path, folder: Path, extras: str) -> str:
    """Installed alone, the wheel's `heed` names its version and its models, and serves.

    Returns what is installed beside it, as pip's constraints.
    """
    venv = folder / "venv"
    environment = make_environment(venv)
    python = venv / "bin" / "python"
    say(f"installing it with [{extras}] into an environment of its own")
    run([python, "-m", "pip", "install", f"{wheel}[{extras}]"], folder, environment)
    repair: list[str | Path] = [python, ROOT / "scripts" / "setup_environment.py", "--repair"]
    say(run(repair, folder, environment).strip() or "nothing to repair")
    heed = str(venv / "bin" / "heed")
    if run([heed, "--version"], folder, environment).split()[-1] != version():
        raise FailedError("the installed heed names another version")
    if "heed-tiny" not in run([heed, "models"], folder, environment):
        raise FailedError("the installed heed has no bundled model")
    serve_and_ask([heed, "serve"], folder, environment)
    say("installed, it serves, edits and stops")
    frozen = run([python, "-m", "pip", "freeze"], folder, environment).splitlines()
    return "".join(f"{line}\n" for line in frozen if " @ " not in line)


def main() -> int:
    parser = argparse.ArgumentParser(description="Check that this tree can be released.")
    parser.add_argument("--no-install", action="store_true")
    parser.add_argument("--write", action="store_true")
    options = parser.parse_args()
    try:
        check_versions(version())
        dirty = subprocess.run(
            ["git", "status", "--porcelain", *PACKAGES],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        if dirty:
            say(f"not committed, and so not a release:\n{dirty}")
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            wheel = build(folder)
            check_wheel(wheel, tracked())
            if not options.no_install:
                frozen = check_installed(wheel, folder, os.environ.get("EXTRAS") or "cpu")
                if options.write:
                    CONSTRAINTS.write_text(CONSTRAINTS_HEAD + frozen)
    except FailedError as error:
        say(str(error))
        return 1
    say(f"{version()} can be released")
    return 0


if __name__ == "__main__":
    sys.exit(main())
