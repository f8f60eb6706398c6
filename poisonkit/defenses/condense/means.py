"""Means of the features of a class that a few poisoned rows can pull less, for all classes at once.

Median and trimmed mean: Yin, Chen, Ramchandran and Bartlett, "Byzantine-Robust Distributed Learning", ICML 2018,
https://arxiv.org/abs/1803.01498. Truncated mean: Portnoy, Tirosh and Hendler, 2020, https://arxiv.org/abs/2006.09365.
Calibrated mean: Zheng and Li, "RDM-DC", UAI 2023, https://proceedings.mlr.press/v216/zheng23a.html, which compares
them (section 4.5).

Each takes r (float [B, n, d]: the features of n rows of B classes) and, where it ``drops`` rows, how many of each; it
gives the means [B, d] and which rows do not count, bool [B, n].
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor

from poisonkit import ops
from poisonkit.errors import require
from poisonkit.random import Key
from poisonkit.types import Budget


@dataclass(frozen=True)
class Mean:
    """Of all rows: no defense."""

    drops: ClassVar[bool] = False

    def __call__(self, r: Tensor, drop: Sequence[int], *, key: Key) -> tuple[Tensor, Tensor]:
        return r.mean(1), _none(r)


@dataclass(frozen=True)
class Median:
    """Number by number; of an even count the mean of the two in the middle."""

    drops: ClassVar[bool] = False

    def __call__(self, r: Tensor, drop: Sequence[int], *, key: Key) -> tuple[Tensor, Tensor]:
        ordered, n = r.sort(1).values, r.shape[1]
        return (ordered[:, (n - 1) // 2] + ordered[:, n // 2]) / 2, _none(r)


@dataclass(frozen=True)
class Trimmed:
    """Number by number, without the ``drop``/2 largest and the ``drop``/2 smallest (half a row rounds up)."""

    drops: ClassVar[bool] = True

    def __call__(self, r: Tensor, drop: Sequence[int], *, key: Key) -> tuple[Tensor, Tensor]:
        n, half = r.shape[1], [-(-k // 2) for k in drop]
        require(2 * max(half) < n, "rows", f"more than the {2 * max(half)} that are trimmed", n)
        rank, each = torch.arange(n, device=r.device), torch.tensor(half, device=r.device)[:, None]
        kept = (rank >= each) & (rank < n - each)
        return _over(r.sort(1).values, kept), _none(r)


@dataclass(frozen=True)
class Truncated:
    """Without the ``drop`` rows farthest from the mean of all; of equally far ones the first."""

    drops: ClassVar[bool] = True

    def __call__(self, r: Tensor, drop: Sequence[int], *, key: Key) -> tuple[Tensor, Tensor]:
        distance = (r - r.mean(1, keepdim=True)).norm(dim=2)
        order = distance.sort(dim=1, descending=True, stable=True).indices
        far = torch.arange(r.shape[1], device=r.device) < torch.tensor(drop, device=r.device)[:, None]
        dropped = torch.zeros_like(far).scatter_(1, order, far)
        return _over(r, ~dropped), dropped


@dataclass(frozen=True)
class Calibrated:
    """Without the ``drop`` rows that lie farthest along the top direction of variance: RDM-DC, Algorithms 4 and 5.

    iterations  of the power method
    """

    drops: ClassVar[bool] = True

    iterations: int = 50

    def __post_init__(self) -> None:
        require(self.iterations >= 1, "iterations", "1 or more", self.iterations)

    def __call__(self, r: Tensor, drop: Sequence[int], *, key: Key) -> tuple[Tensor, Tensor]:
        found = ops.calibrated_mean(r, drop, iterations=self.iterations, key=key)
        return found.mean, found.dropped


#: What :class:`RdmDc` may match in place of the mean
RobustMean = Mean | Median | Trimmed | Truncated | Calibrated


def drops(budget: Budget, labels: Tensor, classes: int, rows: int) -> list[int]:
    """How many of ``rows`` rows of each class to drop, against an attacker with ``budget``: ceil(3 ε rows).

    ε is the largest share of the class that may be poisoned (RDM-DC, section 4.3). All that an attacker may change can
    lie in one class, so a budget of 1 % of ten equal classes is ε = 0.1 of each, and 77 of 256 rows; a budget per
    class is ε as it stands. Raises ArgumentError where no row would be left.
    """
    counts = torch.bincount(labels, minlength=classes).tolist()
    allowed, rate = budget.rows(len(labels)), Fraction(str(budget.rate))
    shares = [rate if budget.per_class else min(Fraction(1), Fraction(allowed, count)) for count in counts]
    return [ops.calibration_drop(share, rows) for share in shares]


def _none(r: Tensor) -> Tensor:
    return torch.zeros(r.shape[:2], dtype=torch.bool, device=r.device)


def _over(r: Tensor, kept: Tensor) -> Tensor:
    """The mean over the rows that are kept: [B, n, d], bool [B, n] to [B, d]."""
    weight = kept.to(r.dtype)
    return torch.bmm(weight[:, None], r)[:, 0] / weight.sum(1, keepdim=True)
