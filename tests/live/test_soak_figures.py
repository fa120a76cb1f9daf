"""What the soak takes for growth: figures of a server that settles, and of servers that leak."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from load_mix import Ask, Got
from soak import MOST_MEMORY, Sample, grown, wrong

WAVES = 16
OF_WAVE = 0.12
"""A wave's requests, in thousands."""


def samples(waves: int = WAVES, **growth: float) -> list[Sample]:
    """Figures of a server that settles in its first quarter, and grows by so much a wave."""
    found = []
    for wave in range(waves):
        settling = 40 * max(0, waves // 4 - wave)
        base = Sample(60.0 * wave, 120 * wave, 1800.0 - settling, 90, 5, 0.0, 0.0, 0.0)
        over: dict[str, Any] = {
            name: getattr(base, name) + by * wave for name, by in growth.items()
        }
        found.append(replace(base, **over))
    return found


def test_a_server_that_settles_is_flat() -> None:
    assert grown(samples()) == []


@pytest.mark.parametrize("waves", [WAVES, 20 * WAVES])
def test_memory_is_judged_by_requests_however_long_the_run(waves: int) -> None:
    assert grown(samples(waves, memory=0.9 * MOST_MEMORY * OF_WAVE)) == []
    (said,) = grown(samples(waves, memory=1.1 * MOST_MEMORY * OF_WAVE))
    assert said == f"memory by {1.1 * MOST_MEMORY:.1f} MiB in 1,000 requests"


@pytest.mark.parametrize("name", ["memory", "descriptors", "processes"])
def test_what_goes_on_growing_is_named(name: str) -> None:
    (said,) = grown(samples(**{name: 1.0}))
    assert said.startswith(name)


@pytest.mark.parametrize("name", ["cache_used", "table_rows", "unfinished"])
@pytest.mark.parametrize("wave", [0, WAVES // 2, WAVES - 1])
def test_what_is_held_at_rest_is_named_in_whichever_wave(name: str, wave: int) -> None:
    found = samples()
    over: dict[str, Any] = {name: 1.0}
    found[wave] = replace(found[wave], **over)
    assert grown(found) == [f"{name} up to 1 at rest, after 1 waves"]


def test_an_answer_that_fails_or_changes_is_told() -> None:
    ask = Ask(3, "whole", {})
    first: dict[int, Got] = {}
    assert wrong([Got(ask, True, (1, 2)), Got(ask, False, (1,))], first) == []
    assert wrong([Got(ask, True, (1, 2))], first) == []
    assert wrong([Got(ask, True, (1, 9))], first) == ["kind 3: another answer than at first"]
    assert wrong([Got(ask, False, error="500: no")], first) == ["500: no"]
