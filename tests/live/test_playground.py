"""The playground on running servers: what it shows is what the API says, and its commands run."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import pytest
from chromium import missing, page_of, ready, running
from live_server import LiveServer
from pages import ADDRESS
from pages import page as documentation
from vision_server import picture

if reason := missing():
    pytest.skip(reason, allow_module_level=True)

# Without emphasis the bundled model does what Ralf wants.
QUESTION = 'Write the word "book". Important: write it after two dots. Ralf wants it after please.'
SPAN = "Important: write it after two dots."
EMPHASIS = {"method": "emphasis", "spans": [{"text": SPAN}], "alpha": 0.1}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with running() as started:
        yield started


@pytest.fixture
def page(browser: Any, server: LiveServer) -> Iterator[Any]:
    """The playground with an emphasis written into its form."""
    with page_of(browser, server.url) as made:
        ready(made)
        made.get_by_label("Method").select_option("emphasis")
        made.get_by_label("Prompt", exact=True).fill(QUESTION)
        made.get_by_label("text (needed)").fill(SPAN)
        made.get_by_label("alpha, slider").fill("0.1")
        yield made


def run(page: Any) -> tuple[str, str]:
    """Both answers."""
    page.get_by_role("button", name="Run both").click()
    page.locator("#answers-said:not(:empty)").wait_for(state="attached", timeout=120_000)
    assert page.locator(".error:visible").all_inner_texts() == []
    sides = [page.locator(f"#answers [id^={side}-token]") for side in ("baseline", "edited")]
    baseline, edited = ("".join(tokens.all_inner_texts()) for tokens in sides)
    return baseline.removesuffix("<|end|>"), edited.removesuffix("<|end|>")


def test_both_answers_and_their_log_probabilities_are_the_apis(
    page: Any, server: LiveServer
) -> None:
    shown = run(page)
    answers = [
        server.chat(
            QUESTION, max_tokens=32, interventions=edits, logprobs=True, top_logprobs=5
        ).json()
        for edits in ([], [EMPHASIS])
    ]
    assert shown == tuple(answer["choices"][0]["message"]["content"] for answer in answers)
    assert shown[0] != shown[1] and page.locator("#edited-token-0.differs").count() == 1
    page.locator("#edited-token-0").hover()
    first = answers[1]["choices"][0]["logprobs"]["content"][0]
    detail = page.locator("#token").inner_text()
    assert json.dumps(first["token"]) in detail and f"{first['logprob']:.3f}" in detail
    page.get_by_text("emphasis: applied").click()
    report = json.loads(page.get_by_label("Report of emphasis").inner_text())
    assert report["spans"] == answers[1]["interventions"][0]["spans"]


def test_the_link_of_the_guide_opens_its_question(browser: Any, server: LiveServer) -> None:
    (link,) = re.findall(rf"\]\({ADDRESS}(/#.*?)\)", documentation("docs/guide.md"))
    with page_of(browser, server.url + link) as page:
        ready(page)
        assert run(page) == ("(spoon)", "*spoon*")
        assert (
            page.get_by_label("Words whose mass").input_value()
            in page.get_by_label("Prompt", exact=True).input_value()
        )


def test_the_map_shows_the_masses_that_the_api_measures(page: Any, server: LiveServer) -> None:
    page.get_by_label("Words whose mass").fill("two dots")
    page.get_by_role("button", name="Measure before and after").click()
    page.locator("table.map").wait_for(timeout=120_000)
    body = {
        "model": server.model, "messages": [{"role": "user", "content": QUESTION}],
        "include": ["mass"], "spans": [{"text": "two dots"}],
    }  # fmt: skip
    for side, edits in (("before", []), ("after", [EMPHASIS])):
        mass = server.post("/v1/attention", body | {"interventions": edits}).json()["mass"]
        page.get_by_label(side, exact=True).check()
        for name, values in (
            ("the first token", mass["position_0"][3][2][0]),
            ("“two dots”", mass["spans"][3][2][0][0]),
        ):
            page.get_by_label("Mass on", exact=True).select_option(name)
            cell = page.locator("table.map tbody tr").nth(3).locator("td").nth(2)
            assert cell.get_attribute("aria-label") == f"layer 3, head 2: {values:.4f}"
    cell.click()
    page.locator(".strip").wait_for(timeout=120_000)
    assert QUESTION in page.locator(".strip").inner_text()


def test_an_error_of_the_server_is_shown_at_its_field(page: Any) -> None:
    page.get_by_label("text (needed)").fill("words that are not there")
    page.get_by_role("button", name="Run both").click()
    page.locator('[data-path="interventions.0.spans.0.text"] > .error').wait_for(timeout=120_000)


@pytest.mark.skipif(shutil.which("curl") is None, reason="no curl on this machine")
def test_the_commands_run_and_answer_what_the_page_shows(page: Any) -> None:
    _, edited = run(page)
    curl = page.get_by_label("The request in curl").inner_text()
    done = subprocess.run(
        ["bash", "-c", curl], capture_output=True, text=True, timeout=120, check=True
    )
    assert json.loads(done.stdout)["choices"][0]["message"]["content"] == edited
    program = page.get_by_label("The request in Python").inner_text()
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout.startswith(edited)


def test_an_image_is_asked_about_and_lies_under_its_attention(
    browser: Any, vision_server: LiveServer
) -> None:
    with page_of(browser, vision_server.url) as page:
        ready(page)
        page.get_by_label("Method").select_option("pai")
        page.get_by_label("Images", exact=True).set_input_files(
            {"name": "boxes.png", "mimeType": "image/png", "buffer": picture(3)}
        )
        page.locator("#pictures-list img").wait_for()
        run(page)
        page.get_by_role("button", name="Measure before and after").click()
        page.locator("table.map").wait_for(timeout=120_000)
        page.get_by_label("Mass on", exact=True).select_option("the images")
        page.locator("table.map td").nth(8).click()
        canvas = page.locator("figure canvas")
        canvas.wait_for(timeout=120_000)
        assert "of 8, column" in canvas.get_attribute("aria-label")
