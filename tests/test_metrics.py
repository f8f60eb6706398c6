"""Intervals: over seeds by Student's t, of one proportion by Wilson's score, against tables and worked numbers."""

from __future__ import annotations

import math

import pytest

from poisonkit.errors import ArgumentError
from poisonkit.metrics import Interval, over_seeds, wilson

# the two-sided quantiles that every textbook prints
T = {
    0.95: {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 9: 2.262, 10: 2.228, 30: 2.042, 120: 1.980},
    0.99: {1: 63.657, 2: 9.925, 4: 4.604, 9: 3.250, 30: 2.750},
    0.90: {1: 6.314, 2: 2.920, 10: 1.812},
}


@pytest.mark.parametrize(("confidence", "freedom"), [(level, n) for level, found in T.items() for n in found])
def test_student_s_quantiles(confidence: float, freedom: int) -> None:
    count = freedom + 1
    # as many rates whose standard deviation is √count, so that the half width is the quantile
    ups = count // 2
    rates = [1.0] * ups + [-1.0] * ups + [0.0] * (count % 2)
    spread = math.sqrt(2 * ups / freedom)
    rates = [rate * math.sqrt(count) / spread for rate in rates]
    found = over_seeds(rates, confidence=confidence)
    assert found.rate == pytest.approx(0, abs=1e-12)
    assert found.high == -found.low == pytest.approx(T[confidence][freedom], abs=6e-4)


def test_three_seeds_by_hand() -> None:
    # mean 0.92, standard deviation 0.02, so 4.303 · 0.02/√3 on either side
    found = over_seeds([0.90, 0.94, 0.92])
    assert found.rate == pytest.approx(0.92)
    assert (found.low, found.high) == (pytest.approx(0.87032, abs=1e-5), pytest.approx(0.96968, abs=1e-5))
    # nothing is cut: a bound beyond 1 says how little two seeds say
    assert over_seeds([0.9, 1.0]).high == pytest.approx(0.95 + 12.706 * 0.05, abs=1e-4)
    same = over_seeds([0.5, 0.5])
    assert same == Interval(0.5, 0.5, 0.5)


@pytest.mark.parametrize(
    ("hits", "trials", "low", "high"),
    [
        # with z² = 3.8415: 0 and 3.8415/13.8415 for none of ten, and the mirror image for all
        (0, 10, 0.0, 0.27753),
        (10, 10, 0.72247, 1.0),
        # 1.95996/2.92073 · √(0.125 + 0.24010) = 0.40547 on either side of a half
        (1, 2, 0.09453, 0.90547),
        # Newcombe, "Two-sided confidence intervals for the single proportion", Statistics in Medicine 17, 1998, table I
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_by_hand(hits: int, trials: int, low: float, high: float) -> None:
    found = wilson(hits, trials)
    assert found.rate == hits / trials
    assert (found.low, found.high) == (pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5))


def test_what_has_no_interval_is_refused() -> None:
    with pytest.raises(ArgumentError, match="rates must be of 2 or more seeds: one has no spread, got 1"):
        over_seeds([0.5])
    with pytest.raises(ArgumentError, match="hits must be from 0 to the 10 trials, got 11"):
        wilson(11, 10)
    with pytest.raises(ArgumentError, match="trials must be 1 or more, got 0"):
        wilson(0, 0)
    with pytest.raises(ArgumentError, match="confidence must be between 0 and 1, got 95"):
        wilson(1, 2, confidence=95)
