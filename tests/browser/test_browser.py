"""Whether there is a browser at all: where there is none, this one test says so for all the others."""

from __future__ import annotations

from typing import Any


def test_there_is_a_browser_to_try_the_playground_in(browser: Any) -> None:
    assert int(browser.version.partition(".")[0]) >= 123, (
        "the page is written for browsers since 2024"
    )
