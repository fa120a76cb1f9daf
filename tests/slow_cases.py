"""Which cases of a matrix the gate runs; `make test-all` runs them all."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Any, TypeVar

import pytest

Case = TypeVar("Case")


def gated(cases: Iterable[Case], fast: Collection[Case]) -> list[Any]:
    """`cases` as values of a test's parameter, of which all but those in `fast` are marked slow."""
    every = list(cases)
    unknown = [case for case in fast if case not in every]
    assert not unknown, f"no cases: {unknown}"
    return [case if case in fast else pytest.param(case, marks=pytest.mark.slow) for case in every]
