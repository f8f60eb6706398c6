"""Learning rates and momenta as pure functions of the step: no state to save, none to restore.

In every schedule ``step`` counts from 0 and stays below ``total``, the steps of the whole training.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi
from typing import Literal

from poisonkit.errors import require


@dataclass(frozen=True)
class OneCycle:
    """Up from ``start`` to ``peak`` in the first ``warmup`` of the steps, then down to ``end`` at the last.

    Super-Convergence: Very Fast Training of Neural Networks Using Large Learning Rates. Leslie N.
    Smith, Nicholay Topin. 2017. https://arxiv.org/abs/1708.07120

    Step for step torch's ``OneCycleLR(max_lr=peak, pct_start=warmup, div_factor=peak/start,
    final_div_factor=start/end)``.

    warmup   fraction of the steps that lead to the peak
    anneal   the shape of both ways: "cosine" or "linear"
    momenta  None, or (low, high): the momentum runs the other way, low at the peak of the learning rate
    """

    start: float = 0.05
    peak: float = 1.0
    end: float = 0.0005
    warmup: float = 0.3
    anneal: Literal["cosine", "linear"] = "cosine"
    momenta: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        require(0 <= self.start <= self.peak, "start", f"in [0, peak = {self.peak}]", self.start)
        require(0 <= self.end <= self.peak, "end", f"in [0, peak = {self.peak}]", self.end)
        require(0 <= self.warmup <= 1, "warmup", "a fraction in [0, 1]", self.warmup)
        require(self.anneal in ("cosine", "linear"), "anneal", "'cosine' or 'linear'", repr(self.anneal))
        require(
            self.momenta is None or (len(self.momenta) == 2 and 0 <= self.momenta[0] <= self.momenta[1] < 1),
            "momenta",
            "None, or (low, high) with 0 <= low <= high < 1",
            self.momenta,
        )

    def lr(self, step: int, total: int) -> float:
        """The learning rate of a step."""
        return self._cycle(step, total, self.start, self.peak, self.end)

    def momentum(self, step: int, total: int) -> float | None:
        """The momentum of a step, or None for the recipe's."""
        if self.momenta is None:
            return None
        low, high = self.momenta
        return self._cycle(step, total, high, low, high)

    def _cycle(self, step: int, total: int, start: float, middle: float, end: float) -> float:
        top, last = self.warmup * total - 1, total - 1  # the step of the peak, which need not be whole; the last
        if step <= top:
            return self._between(start, middle, step / top if top else 1.0)
        return self._between(middle, end, (step - top) / (last - top))

    def _between(self, first: float, second: float, share: float) -> float:
        if self.anneal == "linear":
            return (second - first) * share + first
        return second + (first - second) / 2 * (cos(pi * share) + 1)


@dataclass(frozen=True)
class Step:
    """A constant rate, multiplied by ``factor`` from each milestone on.

    rate        the learning rate before the first milestone
    milestones  fractions of the training: (0.5, 0.75) of 200 epochs are epochs 100 and 150
    """

    rate: float = 0.1
    milestones: tuple[float, ...] = (0.5, 0.75)
    factor: float = 0.1

    def __post_init__(self) -> None:
        require(self.rate >= 0, "rate", "0 or more", self.rate)
        require(self.factor >= 0, "factor", "0 or more", self.factor)
        require(all(0 <= m <= 1 for m in self.milestones), "milestones", "fractions in [0, 1]", self.milestones)

    def lr(self, step: int, total: int) -> float:
        """The learning rate of a step."""
        return self.rate * self.factor ** sum(step >= round(m * total) for m in self.milestones)

    def momentum(self, step: int, total: int) -> float | None:
        """None: the recipe's momentum."""
        return None


@dataclass(frozen=True)
class Cosine:
    """Half a cosine from ``rate`` down to ``end``, after a linear climb in the first ``warmup`` of the steps.

    SGDR: Stochastic Gradient Descent with Warm Restarts (here without restarts). Ilya Loshchilov,
    Frank Hutter. ICLR 2017. https://arxiv.org/abs/1608.03983
    """

    rate: float = 0.1
    end: float = 0.0
    warmup: float = 0.0

    def __post_init__(self) -> None:
        require(self.rate >= 0, "rate", "0 or more", self.rate)
        require(0 <= self.end <= self.rate, "end", f"in [0, rate = {self.rate}]", self.end)
        require(0 <= self.warmup < 1, "warmup", "a fraction in [0, 1)", self.warmup)

    def lr(self, step: int, total: int) -> float:
        """The learning rate of a step."""
        climb = round(self.warmup * total)
        if step < climb:
            return self.rate * (step + 1) / (climb + 1)
        return self.end + (self.rate - self.end) / 2 * (1 + cos(pi * (step - climb) / (total - climb)))

    def momentum(self, step: int, total: int) -> float | None:
        """None: the recipe's momentum."""
        return None


#: How the learning rate changes as a network trains
Schedule = OneCycle | Step | Cosine
