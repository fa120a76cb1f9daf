"""The script for a lent GPU: it runs without vLLM, goes on where it was, and writes tables and plots."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"
WITHOUT_VLLM = """
import runpy, sys
sys.modules["vllm"] = None
sys.argv = sys.argv[1:]
sys.path.insert(0, {folder!r})
runpy.run_path({folder!r} + "/kernel_gpu.py", run_name="__main__")
"""


def run(out, *arguments):
    """Exit code and what it said."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}
    command = [sys.executable, "-W", "ignore", "-c", WITHOUT_VLLM.format(folder=str(BENCHMARKS))]
    command += ["kernel_gpu.py", "--toy", "--out", str(out), *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout + done.stderr


def parts(out):
    return json.loads((out / "kernel_gpu.json").read_text())["parts"]


def test_a_run_that_was_cut_off_goes_on_where_it_was(tmp_path):
    assert run(tmp_path, "--part", "machine", "graphs", "--seconds", "0")[0] == 3
    code, said = run(tmp_path, "--part", "machine")
    assert code == 0, said
    (row,) = parts(tmp_path)["machine"]
    code, said = run(tmp_path, "--part", "machine")
    assert code == 0 and parts(tmp_path) == {"machine": [row]}, said
    assert "GB_per_s" in (tmp_path / "kernel_gpu.md").read_text()


@pytest.mark.slow
def test_every_part_runs_at_toy_sizes_without_vllm(tmp_path):
    code, said = run(tmp_path)
    assert code == 0, said
    made = parts(tmp_path)
    assert len(made) == 11 and all(made.values())
    yardsticks = {row["yardstick"] for row in made["decode"] + made["prefill"]}
    assert yardsticks == {"plain Triton kernel (no split of the keys)"}


def test_tables_ratios_and_plots_come_from_the_rows(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from kernel_results import CONTEXTS, Results

    results = Results(tmp_path, {"device": "a GPU"})
    for context in CONTEXTS:
        for edit, ratio in (("bias", 1.0), ("act", 1.04), ("var", 1.5)):
            label = {"requests": 4, "context": context, "head_dim": 128, "group": 4, "edit": edit}
            results.add("decode", label, {"ratio": ratio, "edited_ms": 2.0})
    label = {"context": 512, "head_dim": 128, "group": 4, "edit": "statistics"}
    results.add("prefill", label, {"error": "out of memory"})
    assert not results.has("prefill", label) and len(results.failed()) == 1
    results.add("prefill", label, {"ratio": 1.2, "passed": True})
    assert results.has("prefill", label) and results.failed() == []
    results.write()
    again = Results(tmp_path, {"device": "a GPU"})
    assert again.parts == results.parts
    text = (tmp_path / "kernel_gpu.md").read_text()
    assert "decode: 6 of 9 within 1.05 of the yardstick's time; median 1.040" in text
    assert "prefill statistics: 1 of 1 within 1.35" in text
    assert (tmp_path / "kernel_gpu_decode.svg").read_text().count("<polyline") > 3
    with pytest.raises(SystemExit, match="has results of"):
        Results(tmp_path, {"device": "another GPU"})
