"""The set-up script: what it repairs, when it does nothing, and what it does after a mishap."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
PYTHON = Path("/env/bin/python")


def load_setup() -> ModuleType:
    name = "heed_setup_environment"
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / "setup_environment.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


setup = load_setup()


class FakeMachine:
    """Answers the commands of `repair` as a machine with these packages would."""

    def __init__(self, broken: dict[str, str], missing: Sequence[str] = ()) -> None:
        self.broken = broken
        self.missing = missing
        self.uninstalled: list[str] = []
        self.refuses_to_uninstall = False

    def __call__(self, command: Sequence[str]) -> subprocess.CompletedProcess[str]:
        assert command[0] == str(PYTHON)
        package = command[-1]
        if "uninstall" in command:
            self.uninstalled.append(package)
            status = 1 if self.refuses_to_uninstall else 0
            return subprocess.CompletedProcess(command, status, "", "no such permission\n")
        if package in self.missing:
            return subprocess.CompletedProcess(command, setup.NOT_INSTALLED, "", "")
        if package in self.broken:
            trace = f"Traceback (most recent call last):\n  …\n{self.broken[package]}\n"
            return subprocess.CompletedProcess(
                command, 1, "", trace if self.broken[package] else ""
            )
        return subprocess.CompletedProcess(command, 0, "", "")


def test_repair_uninstalls_exactly_what_is_installed_and_does_not_import() -> None:
    machine = FakeMachine(
        broken={"torchvision": "RuntimeError: operator torchvision::nms does not exist"},
        missing=["torchcodec"],
    )
    repairs = setup.repair(PYTHON, machine)
    assert machine.uninstalled == ["torchvision"]
    assert repairs == [("torchvision", "RuntimeError: operator torchvision::nms does not exist")]


def test_repair_leaves_a_sound_environment_alone() -> None:
    machine = FakeMachine(broken={})
    assert setup.repair(PYTHON, machine) == []
    assert machine.uninstalled == []


def test_repair_handles_all_three_and_an_import_that_dies_without_a_word() -> None:
    machine = FakeMachine(broken=dict.fromkeys(setup.REPAIRED, ""))
    repairs = setup.repair(PYTHON, machine)
    assert machine.uninstalled == ["torchvision", "torchaudio", "torchcodec"]
    assert {repair.reason for repair in repairs} == {"exit status 1"}


def test_repair_says_so_when_it_cannot_uninstall() -> None:
    machine = FakeMachine(broken={"torchaudio": "OSError: no library"})
    machine.refuses_to_uninstall = True
    with pytest.raises(setup.SetupError, match="torchaudio"):
        setup.repair(PYTHON, machine)


@pytest.mark.parametrize(
    ("module", "status"),
    [("json", 0), ("heed_no_such_module", setup.NOT_INSTALLED), ("antigravity_broken", 1)],
)
def test_the_probe_tells_sound_missing_and_broken_apart(
    tmp_path: Path, module: str, status: int
) -> None:
    (tmp_path / "antigravity_broken.py").write_text("raise OSError('no library')\n")
    command = [sys.executable, "-c", setup.PROBE, module]
    probe = subprocess.run(
        command, capture_output=True, env={"PYTHONPATH": str(tmp_path)}, check=False
    )
    assert probe.returncode == status


class Recorded:
    """An environment whose slow steps are replaced by notes in a list."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[str] = []
        self.interrupt_install = False
        self.environment = setup.Environment(folder, "cpu,dev")
        monkeypatch.setattr(self.environment, "create", self.create)
        monkeypatch.setattr(self.environment, "install", self.install)
        monkeypatch.setattr(setup, "repair", lambda python: [])

    def create(self) -> None:
        self.steps.append("create")
        self.environment.python.parent.mkdir(parents=True, exist_ok=True)
        self.environment.python.touch()

    def install(self) -> None:
        self.steps.append("install")
        if self.interrupt_install:
            raise KeyboardInterrupt

    def build(self) -> None:
        with self.environment.locked() as mark:
            self.environment.build(mark)


def test_a_finished_environment_is_ready_until_its_inputs_change(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = Recorded(tmp_path / "env", monkeypatch)
    assert not recorded.environment.is_ready()
    recorded.build()
    assert recorded.environment.is_ready()
    assert not setup.Environment(tmp_path / "env", "cuda,dev").is_ready()


def test_an_interrupted_first_installation_starts_again_from_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = Recorded(tmp_path / "env", monkeypatch)
    recorded.interrupt_install = True
    with pytest.raises(KeyboardInterrupt):
        recorded.build()
    assert not recorded.environment.is_ready()
    recorded.interrupt_install = False
    recorded.build()
    assert recorded.steps == ["create", "install"] * 2
    assert recorded.environment.is_ready()


def test_a_change_of_inputs_updates_in_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorded = Recorded(tmp_path / "env", monkeypatch)
    recorded.build()
    recorded.environment.stamp.write_text("of other inputs")
    recorded.build()
    assert recorded.steps == ["create", "install", "install"]


def test_a_folder_that_is_no_environment_is_never_cleared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("…")
    recorded = Recorded(tmp_path / "letters", monkeypatch)
    with pytest.raises(setup.SetupError, match="no virtual environment"):
        recorded.build()
    assert recorded.steps == []
    assert (tmp_path / "letters" / "dear.txt").exists()


def test_only_one_set_up_of_a_folder_runs_at_a_time(tmp_path: Path) -> None:
    environment = setup.Environment(tmp_path / "env", "cpu,dev")
    attempt = "import fcntl, sys\nfcntl.flock(open(sys.argv[1]), fcntl.LOCK_EX | fcntl.LOCK_NB)\n"
    command = [sys.executable, "-c", attempt, str(environment.lock)]
    with environment.locked():
        assert subprocess.run(command, capture_output=True, check=False).returncode != 0
    assert subprocess.run(command, capture_output=True, check=False).returncode == 0
