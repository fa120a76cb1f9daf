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
    script: str, directory: Path, experiments: Sequence[str], schedules: int = 0, ranks: int = 1
) -> dict[str, Any]:
    """What the named experiments of a script in this folder found; no block is leaked after them.

    schedules: how many random ones. ranks: tensor-parallel workers, each on a core of its own.
    """
    model = bundled_model("heed-tiny")
    assert model is not None
    job = {
        "model": str(model.directory),
        "experiments": experiments,
        "schedules": schedules,
        "ranks": ranks,
    }
    environment = {**os.environ, **ENVIRONMENT, "VLLM_PLUGINS": "heed"}
    if ranks > 1:
        cores = sorted(os.sched_getaffinity(0))
        environment["VLLM_CPU_OMP_THREADS_BIND"] = "|".join(
            str(cores[rank % len(cores)]) for rank in range(ranks)
        )
    (directory / "job.json").write_text(json.dumps(job))
    path = Path(__file__).with_name(script)
    done = subprocess.run(
        [sys.executable, str(path), str(directory / "job.json"), str(directory / "found.json")],
        env=environment,
        capture_output=True,
        text=True,
        timeout=580,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    found: dict[str, Any] = json.loads((directory / "found.json").read_text())
    assert found["idle"]
    return found
