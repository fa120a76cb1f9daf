"""Baseline beside edited: streamed together, differences marked, log-probabilities of each token."""

from __future__ import annotations

from typing import Any

from stand_in import BASELINE, EDITED, StandIn
from test_form import run


def texts(page: Any, side: str) -> list[str]:
    found: list[str] = page.locator(f"#answers [id^={side}-token]").all_inner_texts()
    return found


def test_both_answers_come_at_once_and_grow(page: Any, stand_in: StandIn) -> None:
    stand_in.gap = 0.3
    page.get_by_role("button", name="Run both").click()
    page.locator("#edited-token-1").wait_for()
    assert page.locator("#baseline-token-0").count() == 1, (
        "the baseline does not wait for the edited"
    )
    assert page.locator("#edited-token-6").count() == 0
    page.locator("#stop:disabled").wait_for()
    assert (texts(page, "baseline"), texts(page, "edited")) == (BASELINE, EDITED)
    baseline, edited = stand_in.sides("/v1/chat/completions")
    assert baseline["interventions"] == [] and edited["interventions"] == [{"method": "act"}]
    baseline.pop("interventions"), edited.pop("interventions")
    assert baseline == edited


def test_what_differs_is_marked_and_said(page: Any) -> None:
    run(page)
    page.locator(".token.differs").first.wait_for()
    marked = page.locator(".token.differs").all_inner_texts()
    assert marked == [" negative", " <b>positive</b>", ",", " clearly"]
    underlined = page.locator(".token.differs").first.evaluate(
        "each => getComputedStyle(each).textDecorationLine"
    )
    assert underlined == "underline", "not by colour alone"
    assert (
        "part at token 4; 3 of the 7 edited tokens differ"
        in page.locator("#answers-said").inner_text()
    )
    assert page.locator("#edited-token-3").get_attribute("aria-label").endswith(", differs")
    assert page.locator("#answers b").count() == 0, "a model's text is text"


def test_a_token_tells_its_log_probabilities_to_the_mouse_and_the_keyboard(page: Any) -> None:
    run(page)
    page.locator("#answers-said:not(:empty)").wait_for(state="attached")
    page.locator("#edited-token-1").hover()
    detail = page.locator("#token")
    assert "Edited, token 2" in detail.inner_text() and "-0.500 (60.7 %)" in detail.inner_text()
    assert "baseline -0.500" in detail.inner_text()
    assert detail.locator("table tr").count() == 2
    box = page.get_by_role("listbox", name="Edited answer, tokens")
    box.focus()
    page.keyboard.press("End")
    assert "token 7" in detail.inner_text() and "baseline -1.250" in detail.inner_text()
    page.keyboard.press("ArrowLeft")
    assert '" clearly"' in detail.inner_text() and "baseline" not in detail.inner_text()
    assert box.get_attribute("aria-activedescendant") == "edited-token-5"
    assert page.locator("#edited-token-5").get_attribute("aria-selected") == "true"
    page.keyboard.press("Home")
    assert "token 1:" in detail.inner_text()


def test_plain_text_is_completed_with_log_probabilities_too(page: Any, stand_in: StandIn) -> None:
    page.get_by_label("plain text").check()
    assert not page.get_by_label("System").is_visible()
    run(page)
    assert texts(page, "edited") == EDITED
    body = stand_in.bodies("/v1/completions")[0]
    assert body["logprobs"] == 5 and "messages" not in body
    page.locator("#baseline-token-0").hover()
    assert "(77.9 %)" in page.locator("#token").inner_text()


def test_reports_are_shown(page: Any) -> None:
    run(page)
    page.get_by_text("act: applied").click()
    assert '"layer_count": 4' in page.get_by_label("Report of act").inner_text()


def test_a_run_can_be_stopped(page: Any, stand_in: StandIn) -> None:
    stand_in.gap = 0.5
    page.get_by_role("button", name="Run both").click()
    page.locator("#edited-token-0").wait_for()
    page.get_by_role("button", name="Stop").click()
    page.locator("#stop:disabled").wait_for()
    assert page.locator("#answers .error").all_inner_texts() == ["stopped"] * 2
    assert len(texts(page, "edited")) < len(EDITED)


def test_an_error_in_a_stream_ends_the_answer_and_is_said(page: Any, stand_in: StandIn) -> None:
    stand_in.breaks = True
    run(page)
    assert page.locator("#answers .error").all_inner_texts() == ["the engine is gone"]
    assert (
        texts(page, "edited") == EDITED
        and "the engine is gone" in page.locator("#problem").inner_text()
    )


def test_control_and_enter_in_the_prompt_run(page: Any, stand_in: StandIn) -> None:
    page.get_by_label("Prompt", exact=True).press("Control+Enter")
    page.locator("#edited-token-0").wait_for()


def test_the_commands_follow_the_form(page: Any) -> None:
    page.get_by_label("Prompt", exact=True).fill("it's")
    page.get_by_text("it'\\''s").wait_for()
    for name in ("curl", "Python"):
        assert "it" in page.get_by_label(f"The request in {name}").inner_text()
    assert "'it'\\''s'" not in page.get_by_label("The request in Python").inner_text()
    assert (
        '"interventions": [{"method": "act"}]'
        in page.get_by_label("The request in Python").inner_text()
    )
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy curl").click()
    page.get_by_text("Copied curl.").wait_for()
    copied = page.evaluate("() => navigator.clipboard.readText()")
    assert copied == page.get_by_label("The request in curl").inner_text()
