"""The form: made from the catalogue's schemas alone, with errors at their fields, kept in the address."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any
from urllib.parse import quote

import pytest
from chromium import ready
from stand_in import StandIn, refusal
from tests.dummy_method import Dummy

from heed_interventions.registry import METHODS

Opened = Callable[..., AbstractContextManager[Any]]


def choose(page: Any, method: str, at: int = 0) -> Any:
    """Choose a method in a card, and give the card."""
    card = page.locator("#interventions .card").nth(at)
    card.get_by_label("Method").select_option(method)
    return card


def run(page: Any) -> None:
    page.get_by_role("button", name="Run both").click()
    page.locator("#stop:disabled").wait_for()


def sent(stand_in: StandIn) -> list[dict[str, Any]]:
    """The interventions of the edited request that was sent last."""
    edits: list[dict[str, Any]] = stand_in.sides("/v1/chat/completions")[1]["interventions"]
    stand_in.asked.clear()
    return edits


def test_a_method_that_is_added_has_its_form_by_itself(
    opened: Opened, stand_in: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(METHODS, "dummy", Dummy)
    with opened() as page:
        ready(page)
        card = choose(page, "dummy")
        assert "Does nothing, in a way of its own." in card.inner_text()
        assert card.get_by_label("strength (needed)").input_value() == "0.5"
        run(page)
        assert sent(stand_in) == [{"method": "dummy", "strength": 0.5}]
        card.get_by_label("strength, slider").fill("-1.2")
        card.get_by_label("colour", exact=True).select_option("green")
        card.get_by_label("loud").check()
        card.get_by_label("note").fill("hello")
        card.get_by_label("order").fill("3, 5..7")
        card.get_by_label("layers", exact=True).select_option("list")
        card.get_by_label("layers, list").fill("0 -1")
        card.get_by_label("heads", exact=True).select_option("object")
        card.get_by_label("heads, object").fill('{"1": [0]}')
        run(page)
        assert sent(stand_in) == [
            {
                "method": "dummy", "strength": -1.2, "colour": "green", "loud": True, "note": "hello",
                "order": [3, 5, 6, 7], "layers": [0, -1], "heads": {"1": [0]},
            }
        ]  # fmt: skip
        card.get_by_label("note").fill("")
        card.get_by_label("loud").uncheck()
        card.get_by_label("strength (needed)").fill("99")
        run(page)
        assert (
            "strength" in card.locator('[data-path="interventions.0.strength"] .error').inner_text()
        )
        assert "note" not in sent(stand_in)[0]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_form_whose_first_values_are_taken_or_named(
    page: Any, stand_in: StandIn, method: str
) -> None:
    stand_in.images = True
    page.reload()
    ready(page)
    card = choose(page, method)
    run(page)
    assert stand_in.sides("/v1/chat/completions")[1]["interventions"][0]["method"] == method
    errors = page.locator("#interventions .error").count()
    said = page.locator("#answers .error").count()
    assert errors == said, "a refusal that is not shown at a field"
    fields = {path.split(".")[2] for path in card.locator("[data-path]").evaluate_all(
        "all => all.map((each) => each.dataset.path)"
    )}  # fmt: skip
    assert fields >= set(METHODS[method].fields())


@pytest.mark.parametrize(
    ("param", "place"),
    [
        ("interventions.0.gamma", "interventions.0.gamma"),
        ("interventions.0.layers.3", "interventions.0.layers"),
        ("interventions.0.something", "interventions.0"),
        ("interventions", "interventions"),
        ("max_tokens", "max_tokens max_completion_tokens"),
        ("messages.0.content", "messages prompt"),
        ("interventions.0.profile", "interventions.0.profile"),
    ],
)
def test_an_error_is_shown_at_the_field_that_it_names(
    page: Any, stand_in: StandIn, param: str, place: str
) -> None:
    choose(page, "zerotuning")
    stand_in.refusal = refusal("this <i>cannot</i> be", param)
    run(page)
    field = page.locator(f'[data-path="{place}"]')
    note = field.locator(":scope > .error")
    assert note.inner_text().endswith("this <i>cannot</i> be") and note.is_visible()
    control = field.locator("[aria-invalid=true]").first
    assert control.get_attribute("aria-errormessage") == note.get_attribute("id")
    assert control.evaluate("each => each === document.activeElement")
    assert page.locator("#problem").inner_text() == ""
    bar = page.locator("#request > .actions").bounding_box()
    seen = note.bounding_box()
    assert seen["y"] + seen["height"] <= bar["y"], "the buttons lie over the error"
    stand_in.refusal = None
    run(page)
    assert page.locator("[data-path] > .error").count() == 0
    assert page.locator("[aria-invalid]").count() == 0


def test_an_error_of_no_field_stands_on_top(page: Any, stand_in: StandIn) -> None:
    stand_in.refusal = refusal("nobody is at home", None, 500)
    run(page)
    assert "nobody is at home" in page.locator("#problem").inner_text()


def test_several_interventions_are_added_and_removed(page: Any, stand_in: StandIn) -> None:
    page.get_by_role("button", name="Add an intervention").click()
    choose(page, "locore", at=1)
    page.get_by_role("button", name="Add an intervention").click()
    choose(page, "zerotuning", at=2)
    run(page)
    assert [edit["method"] for edit in sent(stand_in)] == ["act", "locore", "zerotuning"]
    page.get_by_role("button", name="Remove intervention 2").click()
    run(page)
    assert [edit["method"] for edit in sent(stand_in)] == ["act", "zerotuning"]


def test_spans_of_every_shape_can_be_written(page: Any, stand_in: StandIn) -> None:
    card = choose(page, "emphasis")
    card.get_by_label("text (needed)").fill("plot")
    card.get_by_role("button", name="Add to spans").click()
    second = card.locator('[data-path="interventions.0.spans.1"]')
    second.get_by_label("spans 2", exact=True).select_option("position span")
    second.get_by_label("start (needed)").fill("3")
    second.get_by_label("end (needed)").fill("8")
    run(page)
    assert sent(stand_in)[0]["spans"] == [{"text": "plot"}, {"start": 3, "end": 8}]
    card.get_by_role("button", name="Remove spans 1").click()
    run(page)
    assert sent(stand_in)[0]["spans"] == [{"start": 3, "end": 8}]


def test_the_state_is_in_the_address_and_comes_back(opened: Opened, stand_in: StandIn) -> None:
    with opened() as page:
        ready(page)
        card = choose(page, "zerotuning")
        card.get_by_label("gamma (needed)").fill("2.5")
        page.get_by_label("Prompt", exact=True).fill("Is it “so”? 100%")
        page.get_by_label("plain text").check()
        page.get_by_text("client.completions.create").wait_for()
        address = page.url
    with opened(address.removeprefix(stand_in.url)) as page:
        ready(page)
        assert page.get_by_label("Prompt", exact=True).input_value() == "Is it “so”? 100%"
        assert page.get_by_label("plain text").is_checked()
        assert page.get_by_label("gamma (needed)").input_value() == "2.5"
        assert stand_in.asked == [], "a link asks nothing of the server by itself"
        run(page)
        _, edited = stand_in.sides("/v1/completions")
        assert edited["interventions"] == [{"method": "zerotuning", "gamma": 2.5}]
        assert edited["prompt"] == "Is it “so”? 100%"


def test_a_strangers_link_is_text_and_says_what_is_not_there(opened: Opened) -> None:
    state = {
        "prompt": "<img src=x onerror=alert(1)>",
        "interventions": [
            {"method": "<b>none</b>"},
            {"method": "zerotuning", "gamma": {"deep": 1}, "unknown": 1, "layers": "<script>"},
        ],
    }
    with opened("/#" + quote(json.dumps(state))) as page:
        ready(page)
        assert "<b>none</b>" in page.locator("#problem").inner_text()
        assert page.get_by_label("gamma (needed)").input_value() == '{"deep":1}'
        assert page.locator("main b, main script, main img").count() == 0


def test_a_key_is_asked_for_and_kept_in_memory_alone(opened: Opened, stand_in: StandIn) -> None:
    stand_in.key = "my-secret-key"
    with opened() as page:
        page.locator("#key").wait_for()
        assert page.locator("#interventions .card").count() == 0
        field = page.get_by_label("Key", exact=True)
        assert field.get_attribute("type") == "password"
        field.fill("wrong")
        page.get_by_role("button", name="Use this key").click()
        page.get_by_text("The server does not take this key.").wait_for()
        field.fill("my-secret-key")
        page.get_by_role("button", name="Use this key").click()
        ready(page)
        assert not page.locator("#key").is_visible()
        run(page)
        assert page.locator("#answers .token").count() > 5
        assert "my-secret-key" not in page.content() + page.url
        page.get_by_text('-H "Authorization: Bearer $HEED_API_KEY"').wait_for()
        stored = "[localStorage.length, sessionStorage.length, document.cookie]"
        assert page.evaluate(f"() => {stored}") == [0, 0, ""]
        page.reload()
        page.locator("#key").wait_for()
