"""VHR's run without the image: when it can be had, and what the report says of it."""

from dataclasses import replace

import pytest
from intervention_views import IMAGE, VISION, prompt

from heed_interventions import ImageSpan, InterventionError, ModelView, parse, resolve


@pytest.mark.parametrize("mode", ["masked", "companion"])
def test_what_is_not_offered_of_vhr_is_refused_by_its_name(mode: str) -> None:
    raw = {"method": "vhr", "mode": mode, "rows": "all"}
    with pytest.raises(InterventionError, match="not offered") as caught:
        resolve(parse([raw]), VISION, prompt(images=(IMAGE,)))
    assert caught.value.param == "interventions.0.rows"
    assert caught.value.reason == "unsupported"


@pytest.mark.parametrize(
    ("model", "image", "words"),
    [
        (replace(VISION, companion_obstacle="nobody runs it"), IMAGE, "nobody runs it"),
        (VISION, ImageSpan(0, 20), "is empty"),
    ],
)
def test_a_companion_that_cannot_be_had_is_refused_and_the_other_mode_named(
    model: ModelView, image: ImageSpan, words: str
) -> None:
    view = prompt(images=(image,))
    with pytest.raises(InterventionError, match=words) as caught:
        resolve(parse([{"method": "vhr"}]), model, view)
    assert '"masked"' in caught.value.message
    assert caught.value.param == "interventions.0.mode"
    masked = resolve(parse([{"method": "vhr", "mode": "masked"}]), model, view)
    assert masked.reports[0]["status"] == "applied"


def test_a_report_says_how_long_the_companion_is_unless_there_is_none() -> None:
    view = prompt(images=(ImageSpan(2, 7, ((3, 5), (6, 7))), ImageSpan(8, 12)))
    (report,) = resolve(parse([{"method": "vhr"}]), VISION, view).reports
    assert report["companion"] == {"prompt_tokens": 13}
    for neutral in {"alpha": 1}, {"mode": "masked"}:
        (report,) = resolve(parse([{"method": "vhr", **neutral}]), VISION, view).reports
        assert "companion" not in report
