"""PAINT: the keys that it names by the image encoder, and which images and models it takes."""

from dataclasses import replace

import pytest
from intervention_views import EVERY_HEAD, VISION, prompt

from heed_interventions import ImageSpan, InterventionError, catalogue, parse, resolve
from heed_kernels.checks import check_edit
from heed_kernels.edits import OPEN, HeadSet, KeyRanges, KeyScale, PatchKeys, Rows

TOWER = replace(VISION, patches=8)
PAIR = (ImageSpan(3, 11), ImageSpan(11, 19))
IMAGES = KeyRanges(((3, 11), (11, 19)))
FROM_2 = HeadSet((0, 0, *EVERY_HEAD[2:]))


def test_local_patches_and_the_summary_have_a_strength_each() -> None:
    resolution = resolve(parse([{"method": "paint"}]), TOWER, prompt(24, PAIR))
    rows = Rows(23, OPEN)
    assert list(resolution.edits) == [
        KeyScale(FROM_2, rows, PatchKeys(IMAGES, False, 2), 1.0, 0.7, 0),
        KeyScale(FROM_2, rows, PatchKeys(IMAGES, True, 2), 1.0, 0.3, 0),
    ]
    for edit in resolution.edits:
        check_edit(edit)
    assert resolution.reports[0]["image_keys"] == [[3, 11], [11, 19]]


@pytest.mark.parametrize(
    ("fields", "summaries"),
    [({"beta": 0}, [False]), ({"alpha": 0}, [True]), ({"local_ratio": 0.1}, [True])],
)
def test_what_does_nothing_is_no_edit(fields: dict[str, float], summaries: list[bool]) -> None:
    edits = resolve(parse([{"method": "paint", **fields}]), TOWER, prompt(24, PAIR)).edits
    keys = [edit.keys for edit in edits if isinstance(edit, KeyScale)]
    assert [each.summary for each in keys if isinstance(each, PatchKeys)] == summaries


@pytest.mark.parametrize(
    "image",
    [ImageSpan(3, 10), ImageSpan(3, 12, ((3, 7), (8, 12)))],
    ids=["another number of tokens", "two pieces"],
)
def test_images_whose_tokens_are_no_patches_are_refused(image: ImageSpan) -> None:
    with pytest.raises(InterventionError, match="8 tokens in one piece") as caught:
        resolve(parse([{"method": "paint"}]), TOWER, prompt(24, (image,)))
    assert (caught.value.param, caught.value.reason) == ("interventions.0.method", "vision")


def test_a_model_without_a_class_token_has_no_paint_and_says_why() -> None:
    model = replace(VISION, tower_obstacle="there is no class token")
    with pytest.raises(InterventionError, match="no class token") as caught:
        resolve(parse([{"method": "paint"}]), model, prompt(24, PAIR))
    assert (caught.value.param, caught.value.reason) == ("interventions.0.method", "unsupported")
    left = {entry["method"]: entry["reason"] for entry in catalogue(model) if entry["reason"]}
    assert left == {"paint": "there is no class token"}
    neutral = {"method": "paint", "alpha": 0, "beta": 0}
    assert resolve(parse([neutral]), model, prompt(24, PAIR)).reports[0]["status"] == "neutral"
