"""For the keyboard, screen readers, phones and dark rooms."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest
from chromium import DESKTOP, PHONE, ready
from stand_in import StandIn
from test_attention_panel import cell, measure
from test_form import run

Opened = Callable[..., AbstractContextManager[Any]]


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("window", [DESKTOP, PHONE], ids=["desktop", "phone"])
def test_axe_finds_nothing_wrong(
    opened: Opened, stand_in: StandIn, window: dict[str, int], scheme: str
) -> None:
    axe = pytest.importorskip("axe_playwright_python.sync_playwright")
    with opened(viewport=window, color_scheme=scheme) as page:
        ready(page)
        page.get_by_label("Method").select_option("emphasis")
        run(page)  # an error at a field
        page.get_by_label("text (needed)").fill("plot")
        run(page)
        measure(page)
        cell(page, 1, 1).click()
        page.locator(".strip").wait_for()
        page.locator("#edited-token-3").hover()
        violations = axe.Axe().run(page).response["violations"]
        told = [(each["id"], each["nodes"][0]["html"][:200]) for each in violations]
        assert told == []


def test_a_phone_shows_all_of_it_without_scrolling_sideways(
    opened: Opened, stand_in: StandIn
) -> None:
    with opened(viewport=PHONE) as page:
        ready(page)
        for method in ("act", "emphasis", "snapkv"):
            page.get_by_label("Method").select_option(method)
            if method == "emphasis":
                page.get_by_label("text (needed)").fill("plot")
            run(page)
            measure(page)
            cell(page, 1, 1).click()
            page.locator(".strip").wait_for()
            width = page.evaluate("() => document.documentElement.scrollWidth")
            assert width <= PHONE["width"], method
        small = page.locator("button:visible, select:visible, input:visible").evaluate_all(
            "all => all.filter((each) => each.getBoundingClientRect().height < 20).map((each) => each.outerHTML)"
        )
        assert small == [], "too small to be touched"


def test_everything_can_be_done_with_the_keyboard_alone(page: Any, stand_in: StandIn) -> None:
    page.keyboard.press("Tab")
    seen = []

    def go_to(name: str) -> None:
        for _ in range(60):
            label = page.evaluate(
                "() => { const at = document.activeElement;"
                " return at.getAttribute('aria-label') ?? at.labels?.[0]?.innerText ?? at.innerText ?? ''; }"
            )
            seen.append(label)
            if label.startswith(name):
                return
            page.keyboard.press("Tab")
        raise AssertionError(f"{name} is not reached: {seen}")

    go_to("Prompt")
    page.keyboard.press("Control+A")
    page.keyboard.type("By hand")
    go_to("Method")
    page.keyboard.type("ZeroT")
    go_to("gamma, slider")
    page.keyboard.press("ArrowRight")
    go_to("Run both")
    page.keyboard.press("Enter")
    page.locator("#edited-token-6").wait_for()
    _, body = stand_in.sides("/v1/chat/completions")
    assert body["interventions"] == [{"method": "zerotuning", "gamma": 1.7}]
    assert body["messages"][0]["content"] == "By hand"
    go_to("Edited answer")
    page.keyboard.press("ArrowRight")
    assert "Edited, token 2" in page.locator("#token").inner_text()
    go_to("Measure before and after")
    page.keyboard.press("Enter")
    page.locator("table.map").wait_for()
    go_to("layer 0, head 0")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Enter")
    page.locator(".strip").wait_for()


def test_every_control_has_a_name_and_every_place_of_the_focus_is_seen(page: Any) -> None:
    controls = page.locator("button:visible, select:visible, input:visible, textarea:visible")
    for at in range(controls.count()):
        control = controls.nth(at)
        if control.is_disabled():
            continue
        control.focus()
        page.keyboard.press("Shift")  # a keyboard is in use
        outline = control.evaluate("each => getComputedStyle(each).outlineStyle")
        assert outline == "solid", control.evaluate("each => each.outerHTML")


def test_dark_is_dark(opened: Opened) -> None:
    with opened(color_scheme="dark") as page:
        ground = page.evaluate("() => getComputedStyle(document.body).backgroundColor")
        assert ground == "rgb(20, 24, 29)"
