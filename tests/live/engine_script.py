"""Runs an engine's experiments in a process of their own, because only its scheduler can tell what they ask."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from live_server import ENVIRONMENT

from heed_server.models import bundled_model


def run_engine(
    script: str, directory: Path, experiments: Sequence[str], schedules: int
) -> dict[str, Any]:
    """What the named experiments of a script in this folder found; no block is leaked after them."""
    model = bundled_model("heed-tiny")
    assert model is not None
    job = {"model": str(model.directory), "experiments": experiments, "schedules": schedules}
    (directory / "job.json").write_text(json.dumps(job))
    path = Path(__file__).with_name(script)
    done = subprocess.run(
        [sys.executable, str(path), str(directory / "job.json"), str(directory / "found.json")],
        env={**os.environ, **ENVIRONMENT, "VLLM_PLUGINS": "heed"},
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads((directory / "found.json").read_text())
    assert found["idle"]
    return found
