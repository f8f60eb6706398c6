"""Bagging: exact binomial bounds against SciPy, the theorem against a real worst case, and its limits."""

from __future__ import annotations

import math
import sys
from fractions import Fraction
from functools import cache

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from poisonkit import certificates
from poisonkit.errors import ArgumentError

stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")


def votes_of(counts: list[int]) -> torch.Tensor:
    return torch.tensor([c for c, n in enumerate(counts) for _ in range(n)])[:, None]


def floats(counts: list[int], rows: int, bag: int, alpha: float, inputs: int = 1) -> tuple[float, float]:
    """The lead p_y - p_s in floats, by SciPy's beta quantiles."""
    n, level = sum(counts), alpha / (2 * len(counts) * inputs)
    mine, other = sorted(counts, reverse=True)[:2]
    lower = stats.beta.ppf(level, mine, n - mine + 1)
    upper = stats.beta.ppf(1 - level, other + 1, n - other)
    return lower - min(upper, 1 - lower)


@cache
def worst_conditions(rows: int, bag: int) -> list[Fraction]:
    sizes = [range(rows - r, rows + r + 1) for r in range(rows + 1)]
    return [max(condition(size, rows, r, bag) for size in sizes[r]) for r in range(rows + 1)]


def condition(size: int, rows: int, r: int, bag: int) -> Fraction:
    m = max(rows, size) - r
    return Fraction(size, rows) ** bag - 2 * Fraction(m, rows) ** bag + 1


@pytest.mark.parametrize("counts", [[1000, 0], [800, 150, 50], [37, 13, 0, 0], [510, 490], [20, 0, 0]])
@pytest.mark.parametrize(("rows", "bag"), [(60, 1), (60, 4), (40, 40), (3, 2), (1, 1)])
def test_against_floats(counts: list[int], rows: int, bag: int) -> None:
    lead = floats(counts, rows, bag, 0.001)
    for slack, compare in ((0, int.__le__), (4 * 2**-20, int.__ge__)):  # never more; less by the grid at most
        expected = sum(cost < Fraction(lead) - Fraction(slack) for cost in worst_conditions(rows, bag)) - 1
        prediction, radius = certificates.bagging(votes_of(counts), len(counts), rows, bag, 0.001)
        assert prediction.item() == 0
        assert compare(radius.item(), expected)


def test_figures_of_the_right_size() -> None:
    # N = 60,000 and bags of 30, with every one of 1000 votes for y: 2 (m/N)^b > 2 - lead at N' = N
    _, radius = certificates.bagging(votes_of([1000] + [0] * 9), 10, 60_000, 30)
    lead = 2 * (0.001 / 20) ** (1 / 1000) - 1
    assert radius.item() == math.ceil(60_000 * (1 - (1 - lead / 2) ** (1 / 30))) - 1 == 1332


@settings(deadline=None, max_examples=40)
@given(st.integers(1, 60), st.data())
def test_the_bound_is_the_largest_on_the_grid(n: int, data: st.DataObject) -> None:
    module = sys.modules["poisonkit.certificates.bagging"]
    count = data.draw(st.integers(1, n))
    level = Fraction(1, data.draw(st.integers(2, 10**7)))
    bound = module._lower(n, count, level)

    def tail(p: Fraction) -> Fraction:
        return sum(math.comb(n, i) * p**i * (1 - p) ** (n - i) for i in range(count, n + 1))

    assert tail(Fraction(bound, 1 << 20)) <= level
    assert tail(Fraction(bound + 1, 1 << 20)) > level


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 4), st.integers(1, 3), st.integers(0, 3), st.data())
def test_the_theorem_leaves_no_worse_attack(rows: int, bag: int, r: int, data: st.DataObject) -> None:
    """Within the radius of a known lead no poisoned set and no learner, of any kind, reverse the vote."""
    r = min(r, rows)
    size = data.draw(st.integers(rows - r, rows + r))
    common = max(rows, size) - r
    if size == 0:
        return
    # samples are tuples of row ids; clean rows 0..rows-1, poisoned rows share the first `common`
    clean, poisoned = rows**bag, size**bag
    shared = common**bag
    p_y = Fraction(data.draw(st.integers(0, clean)), clean)
    p_s = Fraction(data.draw(st.integers(0, int(clean * (1 - p_y)))), clean)
    if condition(size, rows, r, bag) >= p_y - p_s:
        return
    # the worst learner: y on the samples that vanish first, s on the shared ones first and on all new ones
    y_shared = max(0, p_y * clean - (clean - shared))
    s_shared = min(p_s * clean, shared)
    assert Fraction(y_shared, poisoned) > Fraction(s_shared + (poisoned - shared), poisoned)


def test_abstains_where_the_lead_is_not_sure() -> None:
    assert certificates.bagging(votes_of([6, 4]), 2, 1000, 30)[1].item() == -1
    assert certificates.bagging(votes_of([5, 5]), 2, 1000, 30, order=[1, 0])[0].item() == 1
    assert certificates.bagging(votes_of([600, 400]), 2, 1000, 1)[1].item() >= 0


def test_more_inputs_and_less_risk_cost_radius() -> None:
    votes = votes_of([900, 100])
    one = certificates.bagging(votes, 2, 10_000, 10)[1].item()
    many = certificates.bagging(votes.expand(-1, 5000), 2, 10_000, 10)[1]
    assert (many == many[0]).all()
    assert many[0] < one
    assert certificates.bagging(votes, 2, 10_000, 10, alpha=1e-9)[1].item() < one


def test_no_inputs() -> None:
    result = certificates.bagging(torch.zeros(3, 0, dtype=torch.uint8), 4, 10, 2)
    assert [tensor.shape for tensor in result] == [(0,), (0,)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rows": 0}, "rows must be at least 1"),
        ({"bag": 0}, "bag must be at least 1"),
        ({"alpha": 0.0}, r"alpha must be in \(0, 1\)"),
    ],
)
def test_rejects(changes: dict, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        certificates.bagging(torch.tensor([[0]]), 2, **{"rows": 10, "bag": 2, "alpha": 0.001, **changes})
