"""Attention by layer and head: before, after, difference, a head's keys, and the picture under them."""

from __future__ import annotations

import io
from typing import Any

import pytest
from chromium import ready
from PIL import Image
from stand_in import HEADS, LAYERS, StandIn


def measure(page: Any) -> None:
    page.get_by_role("button", name="Measure before and after").click()
    page.locator("table.map").wait_for()


def cell(page: Any, layer: int, head: int) -> Any:
    return page.locator("table.map tbody tr").nth(layer).locator("td").nth(head)


def test_the_map_has_a_cell_for_each_layer_and_head_before_after_and_of_the_difference(
    page: Any,
) -> None:
    measure(page)
    assert page.locator("table.map td").count() == LAYERS * HEADS
    for side, value in (("after", "0.3500"), ("before", "0.4000"), ("difference", "-0.0500")):
        page.get_by_label(side, exact=True).check()
        label = cell(page, 2, 1).get_attribute("aria-label")
        assert label == f"layer 2, head 1: {value}", side
    assert "less" in cell(page, 2, 1).get_attribute("class")
    colours = {
        cell(page, layer, 0).evaluate("each => getComputedStyle(each).backgroundColor")
        for layer in range(LAYERS)
    }
    assert len(colours) == 1, "one difference, one colour"
    page.get_by_label("before", exact=True).check()
    colours = {
        cell(page, layer, 0).evaluate("each => getComputedStyle(each).backgroundColor")
        for layer in range(LAYERS)
    }
    assert len(colours) == LAYERS


def test_words_of_the_prompt_can_be_measured(page: Any, stand_in: StandIn) -> None:
    page.get_by_label("Words whose mass").fill("plot\n\nclever")
    measure(page)
    before, after = stand_in.sides("/v1/attention")
    assert before["spans"] == [{"text": text, "occurrence": 1} for text in ("plot", "clever")]
    assert before["interventions"] == [] and after["interventions"] == [{"method": "act"}]
    page.get_by_label("Mass on", exact=True).select_option("“clever”")
    assert cell(page, 0, 0).get_attribute("aria-label") == "layer 0, head 0: 0.0050"


def test_the_keyboard_walks_the_map_and_opens_a_head(page: Any, stand_in: StandIn) -> None:
    measure(page)
    page.mouse.move(0, 0)
    page.locator('table.map [tabindex="0"]').focus()
    page.keyboard.press("ArrowDown")
    assert (
        "Layer 1, head 0: before 0.2000, after 0.1500, difference −0.0500"
        in page.locator("#maps").inner_text()
    )
    assert page.locator('table.map [tabindex="0"]').count() == 1
    page.keyboard.press("Enter")
    page.locator(".strip").wait_for()
    asked = stand_in.bodies("/v1/attention")[-1]
    assert (asked["layers"], asked["heads"], asked["include"]) == ([1], [0], ["attention"])
    assert "<s> The plot was clever." in page.locator(".strip").inner_text()
    page.keyboard.press("Home")
    page.keyboard.press("Enter")
    page.get_by_text("Where layer 1, mean of its heads looks").wait_for()
    assert "heads" not in stand_in.bodies("/v1/attention")[-1]


def test_the_chosen_cell_is_marked_whatever_is_shown(page: Any) -> None:
    measure(page)
    cell(page, 2, 1).click()
    page.get_by_text("Where layer 2, head 1 looks: weights after").wait_for()
    page.get_by_label("difference", exact=True).check()
    marked = page.locator("table.map [aria-selected]")
    assert marked.count() == 1
    assert marked.get_attribute("aria-label") == "layer 2, head 1: -0.0500"
    assert "Layer 2, head 1: before" in page.locator("#maps").inner_text()
    page.locator("table.map tbody th").nth(3).click()
    assert marked.get_attribute("aria-label") == "Layer 3"


def test_all_rows_can_be_averaged(page: Any, stand_in: StandIn) -> None:
    page.get_by_label("Rows", exact=True).select_option("all")
    measure(page)
    assert stand_in.bodies("/v1/attention")[0]["rows"] == "all"
    cell(page, 0, 0).click()
    page.locator(".strip").wait_for()
    assert stand_in.bodies("/v1/attention")[-1]["include"] == ["column_mean"]


def test_a_refusal_is_shown_in_the_panel_or_at_its_field(page: Any, stand_in: StandIn) -> None:
    card = page.locator("#interventions .card")
    card.get_by_label("Method").select_option("zerotuning")
    card.get_by_label("gamma (needed)").fill("77")
    page.get_by_role("button", name="Measure before and after").click()
    card.locator('[data-path="interventions.0.gamma"] > .error').wait_for()
    assert page.locator("#attention-error").inner_text() == ""


@pytest.fixture
def picture() -> dict[str, Any]:
    file = io.BytesIO()
    Image.new("RGB", (96, 64), (200, 40, 40)).save(file, "PNG")
    return {"name": "red.png", "mimeType": "image/png", "buffer": file.getvalue()}


def test_a_text_model_takes_no_picture(page: Any) -> None:
    assert not page.get_by_label("Images", exact=True).is_visible()


def test_a_picture_goes_into_the_prompt_and_lies_under_its_attention(
    page: Any, stand_in: StandIn, picture: dict[str, Any]
) -> None:
    stand_in.images = True
    page.reload()
    ready(page)
    page.get_by_label("Images", exact=True).set_input_files(picture)
    page.get_by_text("red.png", exact=True).first.wait_for()
    measure(page)
    content = stand_in.bodies("/v1/attention")[0]["messages"][0]["content"]
    assert content[0]["image_url"]["url"].startswith("data:image/png;base64,")
    assert "base64" not in page.url
    page.get_by_text("picture1=$(base64 < 'red.png'").wait_for()
    page.get_by_label("Mass on", exact=True).select_option("the images")
    cell(page, 0, 1).click()
    canvas = page.locator("figure canvas")
    canvas.wait_for()
    label = canvas.get_attribute("aria-label")
    assert "strongest in row 4 of 4, column 4 of 4" in label
    assert (
        page.get_by_label("Keys as a grid of").locator("option").first.inner_text()
        == "4 × 4, middle square"
    )
    page.wait_for_timeout(200)
    code = """canvas => {
      const { data } = canvas.getContext("2d").getImageData(0, canvas.height - 4, canvas.width, 1);
      return [8, canvas.width / 2, canvas.width - 8].map((x) => [...data.slice(4 * x, 4 * x + 4)]);
    }"""
    outside, inside, other = canvas.evaluate(code)
    assert outside == other != inside, "the middle square is coloured, what is beside it is dimmed"
    page.get_by_label("Keys as a grid of").select_option("8 × 2")
    assert "of 2, column" in canvas.get_attribute("aria-label")
    page.get_by_role("button", name="Remove red.png").click()
    assert page.locator("#pictures-list li").count() == 0


def test_what_is_no_picture_is_said(page: Any, stand_in: StandIn) -> None:
    stand_in.images = True
    page.reload()
    ready(page)
    page.get_by_label("Images", exact=True).set_input_files(
        {"name": "notes.png", "mimeType": "image/png", "buffer": b"no picture"}
    )
    page.get_by_text("notes.png is no picture that this browser can show").wait_for()
    assert page.locator("#pictures-list img").count() == 0
