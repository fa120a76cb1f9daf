"""The sinks of a model: mean attention by key, against its definition and on the bundled model."""

import json
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from heed_server.calibrate.heat_map import heat_map
from heed_server.cli import main


def test_the_heat_map_is_a_picture_with_a_cell_for_each_value() -> None:
    values = np.full((2, 3, 4), 0.25)
    values[0, 0, 0] = 0
    tree = ElementTree.fromstring(heat_map(values))
    assert len(tree.findall(".//{http://www.w3.org/2000/svg}title")) == 23


def test_the_bundled_models_sinks_are_those_of_its_card(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    main(["calibrate", "sinks", "--limit", "20", "--tokens", "64", "--out", str(tmp_path)])
    found = json.loads((tmp_path / "sinks.json").read_text())
    first = np.array(found["column_mean"])[:, :, 0]
    assert first.shape == (6, 6) and 10 <= (first > 0.3).sum() <= 24
    assert found["sink"][0] > 10 * max(found["sink"][1:])
    assert "key 0 has a mean weight above 0.3" in capsys.readouterr().out
    assert (tmp_path / "sinks.svg").read_text().startswith("<svg")


def test_more_tokens_than_the_model_has_positions_are_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        main(["calibrate", "sinks", "--tokens", "2049", "--out", str(tmp_path)])
    assert "has 2048 positions" in capsys.readouterr().err
