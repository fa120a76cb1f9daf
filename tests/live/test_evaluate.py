"""Small evaluations from their command to tables, a document and a plot."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from live_server import LiveServer
from vision_server import data_uri, picture

from heed_server.cli import main

TUNED = 'tuned=[{"method": "zerotuning", "gamma": 3}]'


def evaluate(server: LiveServer, out: Path, *arguments: str) -> dict[str, Any]:
    main(["eval", *arguments, "--url", server.url, "--json", str(out)])
    found: dict[str, Any] = json.loads(out.read_text())
    return found


def test_an_evaluation_compares_settings_with_plain_answers(
    server: LiveServer, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plot = tmp_path / "found.svg"
    found = evaluate(
        server, tmp_path / "found.json", "--task", "sentiment", "--task", "recall",
        "--limit", "12", "--interventions", TUNED, "--plot", str(plot),
        "--interventions", '[{"method": "zerotuning", "gamma": 1}]',
    )  # fmt: skip
    said = capsys.readouterr()
    assert "| sentiment | 12 | choices | tuned | " in said.out
    assert "recall: 36 of 36 runs" in said.err
    assert plot.read_text().startswith("<svg")
    tasks = found["tasks"]
    assert (tasks["sentiment"]["scored"], tasks["recall"]["scored"]) == ("choices", "text")
    assert list(found["settings"]) == ["none", "tuned", "zerotuning gamma=1"]
    for task in tasks.values():
        neutral = task["settings"]["zerotuning gamma=1"]["measures"]
        assert all(each["difference"] == [0, 0, 0] for each in neutral.values())
    tuned = tasks["sentiment"]["settings"]["tuned"]["measures"]["likelihood"]
    assert tuned["difference"][0] != 0
    assert found["serving"]["vllm"].startswith("0.32.0") and len(found["items"]["recall"]) == 12


def test_an_evaluation_that_the_server_refuses_names_the_setting(
    server: LiveServer, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as left:
        main(["eval", "--task", "sentiment", "--limit", "1", "--url", server.url,
              "--interventions", 'far=[{"method": "zerotuning", "gamma": 3, "layers": [99]}]'])  # fmt: skip
    assert left.value.code == 1
    said = capsys.readouterr().err
    assert "heed: far: POST /v1/completions was answered with 400" in said and "layers" in said


@pytest.mark.parametrize("score", ["choices", "text"])
def test_an_evaluation_shows_the_images_of_its_items(
    vision_server: LiveServer, tmp_path: Path, score: str
) -> None:
    data = tmp_path / "colour.jsonl"
    choices = ["yes", "no", "dark green"]
    lines = [
        {"question": "Is there a star?", "image": data_uri(picture(number)), "choices": choices[:many],
         "answer": "yes"}
        for number, many in enumerate([2, 2, 3])
    ]  # fmt: skip
    data.write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = evaluate(
        vision_server, tmp_path / "found.json", "--data", str(data), "--score", score,
        "--max-tokens", "4", "--interventions", 'seen=[{"method": "avar", "alpha_img": 0.5}]',
    )  # fmt: skip
    task = found["tasks"]["colour"]
    assert task["items"] == 3 and task["scored"] == score
    if score == "choices":
        changed = task["settings"]["seen"]["measures"]["likelihood"]["difference"]
        assert changed[0] != 0
