"""Ratios and their intervals, by hand."""

import numpy as np

from heed_server.scoring.statistics import Ratio


def test_a_ratio_is_of_sums_and_nothing_over_nothing_is_nothing() -> None:
    parts, wholes = np.array([1.0, 0.0, 2.0]), np.array([1.0, 0.0, 3.0])
    assert Ratio(parts, wholes).value == 0.75
    assert Ratio(np.zeros(3), np.zeros(3)).interval(0).rounded() == [0, 0, 0]
    assert Ratio.mean(parts).value == 1


def test_a_ratio_has_the_interval_of_the_mean_where_wholes_are_one() -> None:
    values = np.random.default_rng(1).normal(0.5, 1, size=400)
    found = Ratio(3 * values, np.full(400, 3.0)).interval(0)
    np.testing.assert_allclose(
        [found.mean, found.low, found.high],
        [getattr(Ratio.mean(values).interval(0), name) for name in ("mean", "low", "high")],
    )


def test_a_difference_is_paired() -> None:
    random = np.random.default_rng(2)
    before = random.normal(0, 5, size=200)
    after = before + random.normal(0.5, 0.1, size=200)
    found = Ratio.mean(after).minus(Ratio.mean(before), 0)
    assert abs(found.mean - 0.5) < 0.03 and found.high - found.low < 0.05
    apart = Ratio.mean(after).interval(0)
    assert apart.high - apart.low > 1
    same = Ratio.mean(before).minus(Ratio.mean(before), 0)
    assert same.rounded() == [0, 0, 0]


def test_a_difference_of_ratios_covers_the_true_one_as_often_as_it_says() -> None:
    random = np.random.default_rng(3)
    inside = 0
    for _ in range(200):
        wholes = random.integers(1, 4, size=120).astype(float)
        before = random.binomial(wholes.astype(int), 0.3).astype(float)
        after = random.binomial(wholes.astype(int), 0.4).astype(float)
        found = Ratio(after, wholes).minus(Ratio(before, wholes), 0)
        inside += found.low <= 0.1 <= found.high
    assert 180 <= inside <= 198
