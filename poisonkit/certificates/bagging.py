"""Bagging: models trained on rows drawn with replacement, certified with a stated probability.

Jia, Cao and Gong, "Intrinsic Certified Robustness of Bagging against Data Poisoning Attacks", AAAI 2021,
arXiv 2008.04495, Theorem 1.

Why it holds: a sample of b rows of the clean N rows consists of rows that the poisoned N' rows have as well with
probability (m/N)^b, m = max(N, N') - r, and given that, each such sample is (N/N')^b times as likely under poison. At
worst all other clean samples voted y, and all other poisoned ones, 1 - (m/N')^b of them, vote for the rival.

Everything is in integers. The probabilities come from sums of binomial terms, each rounded towards failure in fixed
point, and are themselves multiples of 2^-20 rounded outwards: no float is involved, and every error is
on the safe side.
"""

from __future__ import annotations

from bisect import bisect_left
from fractions import Fraction
from functools import cache
from math import comb

import torch
from torch import Tensor

from poisonkit.certificates.classes import Order, class_order, most_voted, require_votes
from poisonkit.errors import require

_GRID = 20  # bits of a probability
_POINT = 256  # bits of the binomial terms after the point


def bagging(
    votes: Tensor, num_classes: int, rows: int, bag: int, alpha: float = 0.001, order: Order = None
) -> tuple[Tensor, Tensor]:
    """Plurality vote of bagged models, and a radius that holds for all inputs at once with probability 1 - alpha.

    votes        uint8, uint16 or int64 [n, M], of n models trained on independent draws
    num_classes  K, at least 2
    rows         N, the size of the training set
    bag          b, how many rows a model draws, uniformly and with replacement
    alpha        the probability, over the draws, that any one of the M radii is wrong
    order        all K classes, the one that wins ties first; None for 0, 1, ..., K-1

    Returns (prediction int64 [M], radius int64 [M]): for r or fewer rows inserted, deleted or changed (a changed row
    counts once) the class that bagging would choose with unlimited models stays the prediction: for every N' in
    [N - r, N + r] and m = max(N, N') - r,  (N'/N)^b - 2 (m/N)^b + 1 < p_y - p_s. Here p_y and p_s bound the
    probabilities of y and of any other class by exact binomial tails at level alpha / (2 K M), since each of M inputs
    has K classes and each may be bounded from either side; the paper spends alpha / (K M), which counts y as chosen
    before the votes. -1, to abstain, where p_y <= p_s.

    Raises ArgumentError for votes outside [0, K) and numbers out of range.
    """
    require_votes(votes)
    require(rows >= 1, "rows", "at least 1", rows)
    require(bag >= 1, "bag", "at least 1", bag)
    require(0 < alpha < 1, "alpha", "in (0, 1)", alpha)
    ordered = class_order(num_classes, order)
    (models, inputs), device = votes.shape, votes.device
    prediction, second = most_voted(votes[:, :, None], num_classes, 2, ordered).unbind(1)
    ids = votes.to(torch.int64)
    mine, other = ((ids == c).sum(0) for c in (prediction, second))
    pairs, which = torch.unique(mine * (models + 1) + other, return_inverse=True)

    level = Fraction(alpha) / (2 * num_classes * max(1, inputs))
    lower = cache(lambda count: _lower(models, count, level))
    # failures have the complementary count, and no other class has more than what y leaves
    leads = []
    for count, rival in (divmod(pair, models + 1) for pair in pairs.tolist()):
        least = lower(count)
        leads.append(least - ((1 << _GRID) - max(lower(models - rival), least)))
    costs = _costs(rows, bag, max(leads, default=0))
    # bisect_left - 1: the last radius whose cost is below the lead; none has cost below zero
    scale = rows**bag
    radii = [bisect_left(costs, Fraction(lead * scale, 1 << _GRID)) - 1 for lead in leads]
    return prediction, torch.tensor(radii, dtype=torch.int64, device=device)[which]


def _lower(models: int, count: int, level: Fraction) -> int:
    """Clopper and Pearson's lower bound, in 2^-20: a p at which ``count`` successes or more have at most ``level``."""
    low, high = 0, 1 << _GRID
    if count == 0:
        return 0
    while high - low > 1:
        middle = (low + high) // 2
        if Fraction(_tail(models, count, middle), 1 << _POINT) <= level:
            low = middle
        else:
            high = middle
    return low


def _tail(models: int, count: int, p: int) -> int:
    """An upper bound, in 2^-256, of the probability of ``count`` or more successes with p / 2^20 each, 0 < p < 2^20."""
    q = (1 << _GRID) - p
    exact = comb(models, count) * p**count * q ** (models - count)
    term = _up(exact << _POINT, 1 << (_GRID * models))
    total = term
    for i in range(count, models):
        term = _up(term * (models - i) * p, (i + 1) * q)
        total += term
    return total


def _up(numerator: int, denominator: int) -> int:
    return -(-numerator // denominator)


def _costs(rows: int, bag: int, lead: int) -> list[int]:
    """For r = 0, 1, ... the largest N'^b - 2 m^b + N^b, up to the first that is no less than ``lead`` / 2^20 of N^b.

    Up to N the expression rises with N'. Above, its largest value is at an N' that grows with r, and before that it
    rises: so the search goes on from where it was.
    """
    whole = rows**bag
    costs: list[int] = []
    worst = rows

    def cost(size: int, r: int) -> int:
        return int(size**bag - 2 * (size - r) ** bag + whole)

    for r in range(rows + 1):
        while worst < rows + r and cost(worst + 1, r) > cost(worst, r):
            worst += 1
        costs.append(cost(worst, r))
        if costs[-1] << _GRID >= lead * whole:
            break
    return costs
