"""`--no-skips`, with which `make deploy-check` makes sure that what it installed was used."""

from collections.abc import Generator
from typing import Any

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--no-skips", action="store_true", help="Tests that are skipped fail.")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report: Any = yield
    if report.skipped and item.config.getoption("--no-skips", default=False):
        report.outcome = "failed"
    return report
