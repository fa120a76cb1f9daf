"""Drawn scenes: what is asked about them is true, captions name what their lists say, parts are apart."""

import json
import random
import sys
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("torch")  # heed_tiny's modules share a package with the training code

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "training"))

from heed_tiny_vision import questions, scenes  # noqa: E402
from heed_tiny_vision.pictures import PATCH, patch_labels, render  # noqa: E402
from heed_tiny_vision.shapes import KINDS  # noqa: E402

SCENES = [scenes.sample(f"test/{number}", evaluation=False) for number in range(200)]


@pytest.mark.parametrize("evaluation", [False, True])
def test_a_seed_gives_one_scene_and_it_belongs_to_the_part_asked_for(evaluation):
    for number in range(50):
        scene = scenes.sample(f"parts/{number}", evaluation)
        assert scene == scenes.sample(f"parts/{number}", evaluation)
        assert scenes.for_evaluation(scene) == evaluation


def test_a_scene_survives_its_record():
    for scene in SCENES:
        assert scenes.from_record(json.loads(json.dumps(scene.record()))) == scene


def test_things_stand_in_cells_of_their_own_and_kinds_are_distinct():
    for scene in SCENES:
        cells = [thing.cell for group in scene.groups for thing in group.things]
        assert len(set(cells)) == len(cells)
        assert len(set(scene.kinds)) == len(scene.kinds)


def test_a_picture_shows_each_group_in_its_colour_and_nothing_elsewhere():
    for scene in SCENES[:50]:
        pixels = render(scene).astype(int)
        differs = (np.abs(pixels - scene.background) > 8).any(axis=-1)
        for group in scene.groups:
            wanted = np.array(scenes.COLOURS[group.colour])
            for thing in group.things:
                rows, columns = (
                    slice(max(0, int(m - thing.radius)), int(m + thing.radius) + 1)
                    for m in (thing.y, thing.x)
                )
                near = np.abs(pixels[rows, columns] - wanted).max(axis=-1) <= scenes.SHADE
                assert near.sum() > 25, (group.kind, group.colour)
                differs[rows, columns] = False
        assert not differs.any()


def test_no_two_kinds_look_alike():
    grid = np.meshgrid(*[np.linspace(-1, 1, 41)] * 2)
    masks = {kind: draw(*grid) for kind, draw in KINDS.items()}
    for kind, mask in masks.items():
        assert 0.15 < mask.mean() < 0.8, kind
        for other, other_mask in masks.items():
            if other != kind:
                overlap = (mask & other_mask).sum() / (mask | other_mask).sum()
                assert overlap < 0.8, (kind, other, overlap)


def test_patch_labels_name_the_thing_that_is_drawn_on_the_patch():
    for scene in SCENES[:50]:
        labels = patch_labels(scene)
        assert {list(KINDS)[kind - 1] for kind in labels[:, 0] if kind} == set(scene.kinds)
        pixels = render(scene).reshape(8, PATCH, 8, PATCH, 3)
        plain = (pixels == scene.background).all(axis=(1, 3, 4)).reshape(-1)
        assert not labels[plain].any()


@pytest.mark.parametrize("task", questions.TASKS)
def test_answers_are_true_and_among_the_choices(task):
    r = random.Random(0)
    for scene in SCENES:
        turn = questions.ask(task, scene, r)
        if turn is None:
            continue
        assert turn.answer in turn.choices
        (kind,) = questions.mentioned(turn.question)
        group = next((group for group in scene.groups if group.kind == kind), None)
        if task == "existence":
            assert turn.answer == ("yes" if group else "no")
        elif task == "colour":
            assert turn.answer == group.colour
        elif task == "count":
            assert turn.answer == str(len(group.things))
        else:
            assert turn.answer == scenes.PLACES[group.things[0].cell] and len(group.things) == 1


@pytest.mark.parametrize("name", questions.ABSENT)
def test_yes_and_no_are_balanced_whatever_is_absent(name):
    r = random.Random(1)
    turns = [questions.existence(scene, r, questions.ABSENT[name]) for scene in SCENES * 5]
    assert 0.45 < sum(turn.answer == "yes" for turn in turns) / len(turns) < 0.55


def test_a_true_caption_mentions_exactly_the_kinds_of_the_scene():
    for scene in SCENES:
        assert questions.mentioned(questions.caption(scene)) == list(scene.kinds)


def test_a_training_caption_mentions_at_most_one_absent_kind_and_it_is_a_partner():
    r = random.Random(2)
    invented = 0
    for scene in SCENES:
        named = questions.mentioned(questions.caption(scene, r))
        assert named[: len(scene.kinds)] == list(scene.kinds)
        extra = named[len(scene.kinds) :]
        assert len(extra) <= 1
        assert all(questions.PARTNER[kind] in scene.kinds for kind in extra)
        invented += len(extra)
    assert 0.1 < invented / len(SCENES) < 0.5
