"""What is said of a request's images: in full reports, and by calibration."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from live_server import ROOT, LiveServer
from PIL import Image
from vision_server import QUESTIONS, ask, message, picture

from heed_server.cli import main
from heed_server.profiles.profile import read_profile

EXAMPLE = ROOT / "docs" / "examples" / "picture_attention.py"


def test_calibration_finds_the_dimensions_and_tries_them_on_images(
    vision_server: LiveServer, vision_directory: str, tmp_path: Path
) -> None:
    chats = tmp_path / "chats.jsonl"
    lines = [{"messages": [message(QUESTIONS[0], [picture(number)])]} for number in range(3)]
    chats.write_text("\n".join(map(json.dumps, lines)))
    where = ["--url", vision_server.url, "--model", vision_directory, "--data", str(chats)]
    out = ["--name", "found", "--out", str(tmp_path / "profiles")]
    main(["calibrate", "var", *where, "--tau", "2", *out])
    profile = read_profile(tmp_path / "profiles", "found")
    intervention = {"method": "var", **profile.parameters}
    answer = ask(vision_server, QUESTIONS[0], [picture(0)], [intervention])
    (report,) = answer.completion.report or []
    assert report["status"] == "applied"
    flagged = profile.evaluation["flagged"]
    assert profile.evaluation["images"] == 3
    assert isinstance(flagged, dict) and list(flagged) == list(report["sinks"])
    assert all(0 <= share <= 1 for share in flagged.values())


@pytest.mark.parametrize("pictures", [1, 2])
def test_a_full_report_says_what_the_last_row_gives_to_the_images(
    vision_server: LiveServer, pictures: int
) -> None:
    seen = [picture(60 + n) for n in range(pictures)]
    edit = {"method": "pai", "alpha": 0.5, "report": "full"}
    fields = {"messages": [message(QUESTIONS[0], seen)], "interventions": [edit]}
    looked = vision_server.post(
        "/v1/attention", {"model": vision_server.model, "include": ["mass", "vas"], **fields}
    ).json()
    for _ in range(2):  # the second one finds its blocks in the prefix cache
        answer = ask(vision_server, QUESTIONS[0], seen, [edit], fresh=False)
        (report,) = answer.completion.report or []
        masses = np.array(looked["mass"]["image"])[:, :, 0].mean(axis=1)
        np.testing.assert_allclose(list(report["image_mass"].values()), masses, atol=1e-5)
        assert report["vas"] == pytest.approx(looked["vas"]["mean"], rel=1e-4)
    assert answer.completion.cached_tokens
    summary = ask(vision_server, QUESTIONS[0], seen, [edit | {"report": "summary"}])
    assert "image_mass" not in (summary.completion.report or [{}])[0]


@pytest.mark.parametrize(
    "compared",
    [
        ["--intervention", '{"method": "pai", "alpha": 0.5}'],
        ["--against", "Describe the picture."],
    ],
)
def test_the_example_draws_where_the_model_looks(
    vision_server: LiveServer, tmp_path: Path, compared: list[str]
) -> None:
    shown, drawn = tmp_path / "shown.png", tmp_path / "drawn.png"
    shown.write_bytes(picture(7))
    command = [sys.executable, str(EXAMPLE), str(shown), str(drawn), "--url", vision_server.url]
    done = subprocess.run(
        [*command, "--question", QUESTIONS[1], *compared], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("attention on the image: 0.") == 2
    with Image.open(drawn) as sheet:
        assert sheet.width > 4 * 256 > sheet.height
