"""VHR's run without the image: when it can be had, and what the report says of it."""

from dataclasses import replace

import pytest
from intervention_views import IMAGE, VISION, prompt

from heed_interventions import ImageSpan, InterventionError, ModelView, parse, resolve


@pytest.mark.parametrize("mode", ["masked", "companion"])
def test_all_rows_of_a_prompt_longer_than_a_step_are_refused_with_the_limit_and_the_way_out(
    mode: str,
) -> None:
    model, view = replace(VISION, longest_step=19), prompt(images=(IMAGE,))
    raw = {"method": "vhr", "mode": mode, "rows": "all"}
    with pytest.raises(InterventionError, match=r"19 tokens here.*20.*last_and_gen") as caught:
        resolve(parse([raw]), model, view)
    assert (caught.value.param, caught.value.reason) == ("interventions.0.rows", "context")
    assert resolve(parse([raw]), model, prompt(19, images=(IMAGE,))).edits
    assert resolve(parse([raw | {"rows": "last_and_generated"}]), model, view).edits
    assert not resolve(parse([raw | {"alpha": 1}]), model, view).edits


def test_all_rows_stand_beside_act_where_it_needs_the_whole_prompt_too() -> None:
    view = prompt(images=(IMAGE,))
    vhr, act = {"method": "vhr", "rows": "all"}, {"method": "act", "layers": [1]}
    assert resolve(parse([vhr, act]), VISION, view).cache == "private"
    causal = act | {"stats": "causal"}
    for pair in ([vhr, causal], [causal, vhr]):
        with pytest.raises(InterventionError, match='`stats` to "full"') as caught:
            resolve(parse(pair), VISION, view)
        assert (caught.value.param, caught.value.reason) == ("interventions.1", "composition")
    assert resolve(parse([{"method": "vhr"}, causal]), VISION, view).edits


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
