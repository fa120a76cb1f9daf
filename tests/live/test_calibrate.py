"""A small calibration from its command to a profile that the same server then serves."""

from __future__ import annotations

import json
import os
import shutil
import signal
import time
from pathlib import Path
from typing import Any

import psutil
import pytest
from live_server import LiveServer

from heed_server.cli import main
from heed_server.scoring.data import task_file

SMALL = ["--task", "sentiment", "--limit", "16", "--objective", "likelihood", "--seed", "3"]


def calibrate(server: LiveServer, out: Path, *arguments: str) -> dict[str, Any]:
    name = arguments[arguments.index("--name") + 1]
    main(["calibrate", *arguments, "--url", server.url, "--out", str(out)])
    profile: dict[str, Any] = json.loads((out / name / "profile.json").read_text())
    return profile


def test_a_calibration_writes_a_profile_that_the_server_serves(
    server: LiveServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if server.pid is None:
        pytest.skip("the running server is somebody else's")
    root = Path(server.flags[server.flags.index("--profiles") + 1])
    profile = calibrate(server, root, "zerotuning", *SMALL, "--name", "calibrated")
    said = capsys.readouterr()
    assert "| profile | " in said.out and "held out, sentiment: 24 of 24 runs" in said.err
    how = profile["calibration"]
    assert (how["items"], how["limit"], how["held_out"]) == ({"sentiment": 8}, 16, 0.5)
    assert how["data"]["sentiment"].startswith("sha256:") and how["vllm"].startswith("0.32.0")
    assert how["dtype"] in ("float32", "bfloat16") and isinstance(how["warnings"], list)
    assert profile["evaluation"]["sentiment"]["items"] == 8
    assert "(scaled up)" in said.out
    os.kill(server.pid, signal.SIGHUP)
    deadline = time.monotonic() + 20
    names: list[str] = []
    while f"{server.model}@calibrated" not in names and time.monotonic() < deadline:
        names = [card["id"] for card in server.client.get("/v1/models").json()["data"]]
    answer = server.chat("Review: The plot was clever.", model=f"{server.model}@calibrated")
    report = answer.json()["interventions"][0]
    heads = profile["parameters"]["heads"]
    assert report["status"] == "applied" and report["profile"] == "calibrated"
    assert report["head_count"] == sum(map(len, heads.values()))
    shutil.rmtree(root / "calibrated")


def test_a_calibration_that_is_repeated_measures_nothing_twice(
    server: LiveServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ("head_gain", *SMALL, "--gain", "1.5", "--level", "0.6", "--name", "map")
    first = calibrate(server, tmp_path, *arguments)
    before = server.metric("vllm:prompt_tokens_total")
    capsys.readouterr()
    second = calibrate(server, tmp_path, *arguments, "--replace")
    assert "all from the journal" in capsys.readouterr().out
    assert server.metric("vllm:prompt_tokens_total") == before
    assert first == second
    gains = first["calibration"]["sweep"]["gains"]
    assert len(gains) == 6
    assert json.loads((tmp_path / "map.map.json").read_text())["gains"] == gains
    assert (tmp_path / "map.map.svg").read_text().startswith("<svg")


def test_a_map_is_kept_where_no_head_helps(server: LiveServer, tmp_path: Path) -> None:
    command = ["calibrate", "head_gain", *SMALL, "--layers", "2", "--gain", "1.00001"]
    with pytest.raises(SystemExit):
        main([*command, "--name", "none", "--url", server.url, "--out", str(tmp_path)])
    assert not (tmp_path / "none").exists()
    found = json.loads((tmp_path / "none.map.json").read_text())
    assert found["layers"] == [2] and found["parameters"] == {"gain": 1.00001}
    assert found["gains"] == [[0.0] * 6] and (tmp_path / "none.map.svg").is_file()


def test_act_is_calibrated_with_what_the_command_says(
    server: LiveServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = calibrate(
        server, tmp_path, "act", "--task", "sentiment", "--limit", "20", "--layers", "0,5",
        "--objective", "likelihood", "--level", "0.6", "--stats", "causal", "--decode", "off",
        "--tau", "0.05", "--name", "causal",
    )  # fmt: skip
    parameters = profile["parameters"]
    assert set(parameters.pop("heads")) <= {"0", "5"}
    assert parameters == {
        "beta": 0.4, "tau": 0.05, "stats": "causal", "decode": "off", "protect": "first_flagged",
        "max_sinks": 64, "min_rows": 1,
    }  # fmt: skip
    how = profile["calibration"]
    assert how["layers"] == [0, 5] and how["items"] == {"sentiment": 10}
    assert [len(row) for row in how["sweep"]["gains"]] == [6, 6]
    assert any(gain for row in how["sweep"]["gains"] for gain in row)
    assert "one head at a time: 130 of 130 runs" in capsys.readouterr().err


def test_zerotuning_needs_no_labels(server: LiveServer, tmp_path: Path) -> None:
    labelled = task_file("sentiment").read_text().splitlines()[:20]
    items = [json.loads(line) for line in labelled]
    data = tmp_path / "unlabelled.jsonl"
    data.write_text("".join(json.dumps({"messages": i["messages"]}) + "\n" for i in items))
    profile = calibrate(
        server, tmp_path, "zerotuning", "--unsupervised", "--data", str(data), "--layers", "4,5",
        "--gammas", "0.3,3", "--name", "surest",
    )  # fmt: skip
    how = profile["calibration"]
    assert (how["objective"], how["scored"]) == ("entropy", "entropy")
    assert set(how["grid"]) == {"plain", f"{profile['parameters']['gamma']:g}"}
    assert set(profile["parameters"]["heads"]) <= {"4", "5"}
    measured = profile["evaluation"]["unlabelled"]["settings"]["profile"]
    assert list(measured) == ["entropy"]


def test_a_calibration_that_the_server_refuses_says_why(
    server: LiveServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["calibrate", "head_gain", *SMALL, "--gain", "0.5", "--name", "weak"]
    with pytest.raises(SystemExit) as exit_:
        main([*command, "--url", server.url, "--out", str(tmp_path)])
    assert exit_.value.code == 1
    assert "--allow-privileged-interventions" in capsys.readouterr().err
    assert not (tmp_path / "weak").exists()


def test_emphasis_is_calibrated_on_the_items_own_spans(server: LiveServer, tmp_path: Path) -> None:
    profile = calibrate(
        server, tmp_path, "emphasis", "--task", "emphasis", "--limit", "6", "--alpha", "0.1",
        "--objective", "likelihood", "--name", "spans",
    )  # fmt: skip
    assert "spans" not in profile["parameters"]
    assert sum(map(len, profile["parameters"]["heads"].values())) == 15


@pytest.mark.slow
def test_without_a_url_a_server_is_started_and_ended(tmp_path: Path) -> None:
    before = set(psutil.Process().children(recursive=True))
    main(
        [
            "calibrate", "emphasis", "--task", "emphasis", "--limit", "4", "--layers", "5",
            "--alpha", "0.1", "--objective", "likelihood", "--name", "own", "--out", str(tmp_path),
        ]
    )  # fmt: skip
    profile = json.loads((tmp_path / "own" / "profile.json").read_text())
    assert profile["model"]["id"] == "heed-tiny"
    assert set(profile["parameters"]["heads"]) == {"5"}
    assert profile["evaluation"]["emphasis"]["items"] == 2
    assert set(psutil.Process().children(recursive=True)) <= before
