"""The CHAIR-like and POPE-like measures, by hand; the evaluation sets, their sizes and balance."""

import sys
from collections import Counter
from pathlib import Path

import pytest

pytest.importorskip("torch")
pytest.importorskip("transformers")

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "training"))

from heed_tiny_vision import evaluation_sets, questions, scenes  # noqa: E402
from heed_tiny_vision.hallucination import chair, pope  # noqa: E402


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
        assert record["kinds"] == list(drawn[record["scene"]].kinds)
        assert questions.mentioned(record["answer"]) == record["kinds"]
