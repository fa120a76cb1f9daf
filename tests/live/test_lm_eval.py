"""lm-evaluation-harness against a live server, as docs/evaluation.md says it is run."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from live_server import LiveServer
from served_profiles import bundled_profile

from heed_server.scoring.data import task_file

TASKS = Path(__file__).parent / "lm_eval_tasks"
ITEMS = 8
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("lm_eval") is None,
    reason="lm-evaluation-harness is not installed: pip install lm-eval",
)


def harness(
    server: LiveServer, folder: Path, task: str, model: str, route: str, kind: str, *flags: str
) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """The results of a task, and its samples. kind: of the harness's models."""
    tasks = folder / "tasks"
    tasks.mkdir(exist_ok=True)
    for file in TASKS.glob("*.yaml"):
        data = task_file(file.stem.removeprefix("heed_"))
        (tasks / file.name).write_text(file.read_text().replace("HEED_TASK_FILE", str(data)))
    out = folder / model.replace("@", "-")
    arguments = f"model={model},base_url={server.url}{route},tokenizer={server.model_dir}"
    subprocess.run(
        [
            sys.executable, "-m", "lm_eval", "run", "--model", kind, "--model_args", arguments,
            "--tasks", task, "--include_path", str(tasks), "--apply_chat_template",
            "--limit", str(ITEMS), "--log_samples", "--output_path", str(out), *flags,
        ],
        check=True,
        # The data is a file of ours; what the harness caches goes with the test.
        env={**os.environ, "HF_HOME": str(folder), "HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1"},
    )  # fmt: skip
    (found,) = out.rglob("results_*.json")
    (samples,) = out.rglob("samples_*.jsonl")
    results: dict[str, Any] = json.loads(found.read_text())["results"][task]
    return results, [json.loads(line) for line in samples.read_text().splitlines()]


def test_a_profile_as_the_model_s_name_reaches_the_harness_s_log_likelihoods(
    server: LiveServer, tmp_path: Path
) -> None:
    with bundled_profile(server, "sentiment"):
        found = [
            harness(
                server, tmp_path, "heed_sentiment", model, "/v1/completions", "local-completions"
            )[1]
            for model in (server.model, f"{server.model}@sentiment")
        ]
    plain, edited = (
        [float(choice[0][0]) for sample in samples for choice in sample["resps"]]
        for samples in found
    )
    assert len(plain) == len(edited) == 2 * ITEMS
    assert sum(a != b for a, b in zip(plain, edited, strict=True)) > ITEMS


def test_interventions_reach_generations_as_generation_arguments(
    server: LiveServer, tmp_path: Path
) -> None:
    before = server.metric("heed_requests_total", method="zerotuning", outcome="applied")
    edits = {"interventions": [{"method": "zerotuning", "gamma": 2}]}
    results, _ = harness(
        server, tmp_path, "heed_copy", server.model, "/v1/chat/completions",
        "local-chat-completions", "--gen_kwargs", json.dumps(edits),
    )  # fmt: skip
    assert results["exact_match,none"] > 0
    after = server.metric("heed_requests_total", method="zerotuning", outcome="applied")
    assert after - before == ITEMS
