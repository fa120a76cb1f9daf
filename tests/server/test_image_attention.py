"""What full reports say of images, from the masses that the workers saw."""

import pytest
from tests.interventions.intervention_views import VISION

from heed_interventions import ImageSpan
from heed_server.api.image_attention import image_counts, of_all_ranks, on_images


def test_all_images_count_together_and_markers_among_them_do_not() -> None:
    images = (ImageSpan(4, 12, ((4, 7), (8, 11))), ImageSpan(20, 24))
    asked = on_images(images, 40, VISION)
    assert asked.key_sets == (((4, 7), (8, 11), (20, 24)), ((0, 4),))
    assert asked.rows == (39,) and asked.first_row == 39
    assert asked.layers == tuple(range(VISION.layers))
    assert on_images((ImageSpan(0, 4),), 40, VISION).key_sets == (((0, 4),),)


def test_masses_are_averaged_over_the_heads_of_all_ranks() -> None:
    one = {"masses": {"0": [[0.5, 0.25]], "1": [[0.2, 0.1]]}}
    other = {"masses": {"0": [[0.1, 0.2]], "1": [[0.4, 0.8]]}}
    told = image_counts({"on_images": of_all_ranks(one, other)})
    assert told["image_mass"] == {"0": pytest.approx(0.3), "1": pytest.approx(0.3)}
    assert told["vas"] == pytest.approx((2 + 0.5 + 2 + 0.5) / 4)


def test_an_image_at_the_very_beginning_has_no_ratio() -> None:
    told = image_counts({"on_images": {"masses": {"0": [[0.5], [0.3]]}}})
    assert told == {"image_mass": {"0": pytest.approx(0.4)}, "vas": None}
    assert image_counts({}) == {} == image_counts(None)
