"""Run the Dockerfile's install commands in a clean virtual environment, and its entry point.

    python scripts/check_dockerfile.py             the CPU variant, as its comment says how to build it
    python scripts/check_dockerfile.py --plan      only say what would run

For machines without a Docker daemon. COPY fills a temporary folder, RUN commands that use Python are run
there as they stand, the entry point serves and the health check is asked. What needs root (apt-get, useradd)
and the base image itself are not run, and the output says so.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from clean_install import FailedError, make_environment, run, say, serve_and_ask

ROOT = Path(__file__).resolve().parent.parent
CPU_ARGUMENTS = {"EXTRAS": "cpu"}
NEEDS_ROOT = re.compile(r"\b(apt-get|useradd|chown)\b")


class Instruction(NamedTuple):
    name: str
    rest: str


def instructions(text: str) -> Iterator[Instruction]:
    """A Dockerfile's instructions, continued lines joined, comments left out."""
    lines = [line for line in text.splitlines() if not line.lstrip().startswith("#")]
    for line in re.sub(r"\\\n", " ", "\n".join(lines)).splitlines():
        name, _, rest = line.strip().partition(" ")
        if name:
            yield Instruction(name, rest.strip())


def copy(rest: str, target: Path) -> None:
    """COPY: files by their names, folders by what is in them."""
    *sources, destination = rest.split()
    for source in sources:
        path = ROOT / source
        if path.is_dir():
            ignored = shutil.ignore_patterns("__pycache__", "*.egg-info")
            shutil.copytree(path, target / destination, ignore=ignored)
        else:
            folder = target / destination
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(path, folder)


def check(found: list[Instruction], folder: Path) -> None:
    """Carry out what can be carried out. Raises `FailedError`."""
    environment = make_environment(folder / "venv") | CPU_ARGUMENTS
    build = folder / "build"
    build.mkdir()
    for name, rest in found:
        if name == "COPY":
            copy(rest, build)
        elif name == "RUN" and not NEEDS_ROOT.search(rest):
            # The build cleans up after itself at a fixed place, which is ours here.
            command = rest.replace("/opt/heed", str(build))
            say(f"RUN {command}")
            run(["/bin/bash", "-euo", "pipefail", "-c", command], build, environment)
    entry_point = next(json.loads(rest) for name, rest in found if name == "ENTRYPOINT")
    say(f"ENTRYPOINT {shlex.join(entry_point)}")
    serve_and_ask(entry_point, folder, environment)


def main() -> int:
    parser = argparse.ArgumentParser(description="Run the Dockerfile's install commands.")
    parser.add_argument("--plan", action="store_true")
    options = parser.parse_args()
    found = list(instructions((ROOT / "Dockerfile").read_text()))
    for name, rest in found:
        if name == "FROM" or (name == "RUN" and NEEDS_ROOT.search(rest)):
            say(f"not run: {name} {rest[:100]}")
    if options.plan:
        for name, rest in found:
            if name in ("COPY", "ENTRYPOINT") or (name == "RUN" and not NEEDS_ROOT.search(rest)):
                say(f"would run: {name} {rest}")
        return 0
    try:
        with tempfile.TemporaryDirectory() as name:
            check(found, Path(name))
    except FailedError as error:
        say(str(error))
        return 1
    say("the Dockerfile's install commands work in a clean environment, and its entry point serves")
    return 0


if __name__ == "__main__":
    sys.exit(main())
