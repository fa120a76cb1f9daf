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
def drawn():
    return evaluation_sets.sampled()


@pytest.fixture(scope="module")
def sets(drawn):
    return dict(evaluation_sets.sets(drawn))


def test_there_are_five_hundred_pictures_and_answers_are_equally_frequent(drawn, sets):
    assert len(drawn) == len(sets.pop("caption")) == 500
    for name, records in sets.items():
        answers = Counter(record["answer"] for record in records)
        assert len(set(answers.values())) == 1, name
        assert sum(answers.values()) >= 360, name
        assert len({(each["image"], each["question"]) for each in records}) == len(records), name


def test_evaluation_scenes_are_none_of_training_and_captions_list_what_is_there(drawn, sets):
    assert all(scenes.for_evaluation(scene) for scene in drawn)
    for scene, record in zip(drawn, evaluation_sets.captions(drawn), strict=True):
        assert record["objects"] == list(scene.kinds)
        assert questions.mentioned(questions.caption(scene)) == record["objects"]


def test_the_sets_are_items_that_heed_eval_reads_with_their_pictures(drawn, tmp_path, monkeypatch):
    monkeypatch.setattr(evaluation_sets, "sampled", lambda: drawn)
    for name in ("first", "second"):
        monkeypatch.setattr(sys, "argv", ["evaluation_sets", str(tmp_path / name)])
        evaluation_sets.main()
    pictures = [tmp_path / name / evaluation_sets.PICTURES for name in ("first", "second")]
    assert pictures[0].read_bytes() == pictures[1].read_bytes()
    for name in ("caption", "colour", "existence_popular"):
        for item in read_items(tmp_path / "first" / f"{name}.jsonl")[:20]:
            shown = item.messages[0]["content"][0]["image_url"]["url"]
            file = io.BytesIO(base64.b64decode(shown.removeprefix("data:image/png;base64,")))
            pixels = np.asarray(Image.open(file).convert("RGB"))
            assert any((pixels == render(scene)).all() for scene in drawn)
            assert (item.objects is not None) == (name == "caption")
