"""The CHAIR-like and POPE-like measures, by hand; the evaluation sets, their sizes and balance."""

import base64
import io
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from heed_server.scoring.data import read_items

pytest.importorskip("torch")
pytest.importorskip("transformers")

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "training"))

from heed_tiny_vision import evaluation_sets, questions, scenes  # noqa: E402
from heed_tiny_vision.hallucination import chair, pope  # noqa: E402
from heed_tiny_vision.pictures import render  # noqa: E402


def test_chair_counts_absent_kinds_once_a_caption():
    said = ["I see a red star and two blue moons.", "I see a cup, a cup. I also see a key.", ""]
    found = chair(said, [["star"], ["cup", "key"], ["fish"]])
    assert found["chair_s"]["percent"] == 33.3
    assert found["chair_i"]["percent"] == 25.0  # the moon, of star, moon, cup and key
    assert found["recall"]["percent"] == 75.0  # the fish is missing
    assert found["words"] == 6.67


def test_chair_of_silence_is_nothing_and_not_an_error():
    found = chair(["", ""], [["star"], ["cup"]])
    assert found["chair_s"]["percent"] == found["recall"]["percent"] == 0


def test_pope_takes_yes_for_the_claim():
    found = pope(["yes", "yes", "no", "perhaps"], ["yes", "no", "yes", "no"])
    assert found["accuracy"]["percent"] == 50.0
    assert (found["precision"], found["recall"], found["f1"], found["yes"]) == (50, 50, 50, 50)


@pytest.fixture(scope="module")
def sets():
    return dict(evaluation_sets.sets())


def test_every_set_has_five_hundred_questions_and_equally_frequent_answers(sets):
    for name, records in sets.items():
        if name == "scenes":
            continue
        assert len(records) >= 500, name
        if name != "caption":
            assert len(set(Counter(record["answer"] for record in records).values())) == 1, name


def test_evaluation_scenes_are_none_of_training_and_captions_list_what_is_there(sets):
    drawn = [scenes.from_record(record) for record in sets["scenes"]]
    assert all(scenes.for_evaluation(scene) for scene in drawn)
    for record in sets["caption"]:
        assert record["objects"] == list(drawn[record["scene"]].kinds)
        assert questions.mentioned(record["answer"]) == record["objects"]


def test_the_sets_are_items_that_heed_eval_reads_with_their_pictures(sets, tmp_path):
    drawn = [scenes.from_record(record) for record in sets["scenes"][:40]]
    for name in ("first", "second"):
        evaluation_sets.write_pictures(tmp_path / f"{name}.zip", drawn)
    assert (tmp_path / "first.zip").read_bytes() == (tmp_path / "second.zip").read_bytes()
    (tmp_path / "first.zip").rename(tmp_path / evaluation_sets.PICTURES)
    for name in ("caption", "colour", "existence_popular"):
        evaluation_sets.write(tmp_path / f"{name}.jsonl", sets[name][:20])
        for item, record in zip(read_items(tmp_path / f"{name}.jsonl"), sets[name], strict=False):
            assert item.has_images and item.answer == record["answer"]
            shown = item.messages[0]["content"][0]["image_url"]["url"]
            file = io.BytesIO(base64.b64decode(shown.removeprefix("data:image/png;base64,")))
            assert (np.asarray(Image.open(file)) == render(drawn[record["scene"]])).all()
