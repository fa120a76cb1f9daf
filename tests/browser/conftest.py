"""One browser and one server of canned answers for each file of tests; a page for each test."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
from chromium import missing, page_of, ready, running
from stand_in import StandIn, standing_in

# Without a browser one line says so for all of them: that of `test_browser.py`.
HERE = Path(__file__).parent
collect_ignore = [each.name for each in HERE.glob("test_*.py") if each.name != "test_browser.py"]
if missing() is None:
    collect_ignore = []


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    # Not for the whole run: as long as Playwright is there, no other test can have an event loop.
    with running() as started:
        yield started


@pytest.fixture(scope="module")
def shared_stand_in(browser: Any) -> Iterator[StandIn]:
    with standing_in() as started:
        yield started


@pytest.fixture
def stand_in(shared_stand_in: StandIn) -> StandIn:
    shared_stand_in.reset()
    return shared_stand_in


@pytest.fixture
def opened(browser: Any, stand_in: StandIn) -> Callable[..., AbstractContextManager[Any]]:
    """Opens the playground, at an address or in a window of other settings."""

    def open_page(address: str = "/", **settings: Any) -> AbstractContextManager[Any]:
        return page_of(browser, stand_in.url + address, **settings)

    return open_page


@pytest.fixture
def page(opened: Callable[..., AbstractContextManager[Any]]) -> Iterator[Any]:
    with opened() as made:
        ready(made)
        yield made
