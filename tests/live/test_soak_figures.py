"""What the soak takes for growth: figures of a server that settles, and of servers that leak."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from load_mix import Ask, Got
from soak import Sample, grown, wrong

WAVES = 16


def samples(**growth: float) -> list[Sample]:
    """Figures of a server that settles in its first quarter, and grows by so much a wave."""
    found = []
    for wave in range(WAVES):
        settling = 40 * max(0, WAVES // 4 - wave)
        base = Sample(60.0 * wave, 120 * wave, 1800.0 - settling, 90, 5, 0.0, 0.0)
        over: dict[str, Any] = {
            name: getattr(base, name) + by * wave for name, by in growth.items()
        }
        found.append(replace(base, **over))
    return found


def test_a_server_that_settles_is_flat() -> None:
    assert grown(samples()) == []
    assert grown(samples(memory=1.0)) == []


@pytest.mark.parametrize("name", ["memory", "descriptors", "processes", "cache_used", "table_rows"])
def test_what_goes_on_growing_is_named(name: str) -> None:
    step = 10.0 if name == "memory" else 1.0
    (said,) = grown(samples(**{name: step}))
    assert said.startswith(name)


def test_an_answer_that_fails_or_changes_is_told() -> None:
    ask = Ask(3, "whole", {})
    first: dict[int, Got] = {}
    assert wrong([Got(ask, True, (1, 2)), Got(ask, False, (1,))], first) == []
    assert wrong([Got(ask, True, (1, 2))], first) == []
    assert wrong([Got(ask, True, (1, 9))], first) == ["kind 3: another answer than at first"]
    assert wrong([Got(ask, False, error="500: no")], first) == ["500: no"]
