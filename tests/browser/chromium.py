"""A headless Chromium for the playground's tests, where the machine has one, and pages that may not complain."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from typing import Any
from urllib.parse import urlsplit

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "chromium-headless-shell")
FLAGS = [
    "--no-sandbox",  # which does not start as root
    "--disable-quic",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
DESKTOP = {"width": 1100, "height": 900}
PHONE = {"width": 360, "height": 740}


def executable() -> str | None:
    """Where the browser is: HEED_TEST_CHROMIUM, or on the path."""
    return os.environ.get("HEED_TEST_CHROMIUM") or next(
        filter(None, map(shutil.which, NAMES)), None
    )


def missing() -> str | None:
    """Why the playground cannot be tried in a browser here; None where it can."""
    if executable() is None:
        return "no Chromium on this machine: the playground is not tried in a browser"
    if find_spec("playwright") is None:
        return "playwright is not installed: `make test-browser` tries the playground in a browser"
    return None


@contextmanager
def running() -> Iterator[Any]:
    """A Playwright browser; skips the tests where there is none."""
    if reason := missing():
        pytest.skip(reason)
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable(), args=FLAGS)
        yield browser
        browser.close()


@contextmanager
def page_of(browser: Any, url: str, **settings: Any) -> Iterator[Any]:
    """A page at `url`, which in the end must have logged no error and asked nobody else for anything.

    settings: of Playwright's context.
    """
    context = browser.new_context(**{"viewport": DESKTOP, **settings})
    page = context.new_page()
    errors: list[str] = []
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on("console", lambda message: errors.append(message.text) if complains(message) else None)
    page.on(
        "request", lambda request: errors.append(request.url) if foreign(request, url) else None
    )
    page.goto(url)
    yield page
    context.close()
    assert not errors, errors


def ready(page: Any) -> None:
    """Wait until the page knows what the server serves, and takes input."""
    page.locator("#request:not([inert]) .card").first.wait_for()


def complains(message: Any) -> bool:
    """Whether a line of the console says that something is wrong. That a call was refused is none: the
    browser writes one for each status above 399."""
    refused = message.text.startswith("Failed to load resource") and "/v1/" in str(message.location)
    return message.type in ("error", "warning") and not refused


def foreign(request: Any, url: str) -> bool:
    return not request.url.startswith("data:") and urlsplit(request.url)[:2] != urlsplit(url)[:2]
