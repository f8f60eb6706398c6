"""Bullseye polytope: poisons whose mean feature is the victim's, so that it lies in the middle of what they span.

Aghakhani, Meng, Wang, Kruegel and Vigna, "Bullseye Polytope: A Scalable Clean-Label Poisoning Attack with Improved
Transferability", arXiv 2005.00191, 2021: equation 2, each poison with
the same share; of several victims, their mean.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from poisonkit.attacks.crafting import SURROGATE, Fit, State
from poisonkit.attacks.polytopes import pull, relative
from poisonkit.attacks.targeted import best, case, networks, poisoned
from poisonkit.random import Key
from poisonkit.train import Journal, Recipe, fit
from poisonkit.types import Budget, ImageDataset, Poison


@dataclass(frozen=True)
class BullseyePolytope:
    """Clean-label images around a known one in feature space.

    target        the class the attacker wants, of which the poisoned rows are
    victim_class  of the images to be misclassified; None for any but the target
    count         how many of them
    eps           largest change of a pixel
    steps         of Adam
    rate          of Adam, in pixel steps
    restarts      of which the best is kept; the first starts at the images, others at random
    networks      surrogates in which it is to hold together
    surrogate     how the attacker's own networks are trained
    """

    source: ClassVar[str] = "Aghakhani et al. 2021, arXiv 2005.00191"
    needs_victims: ClassVar[bool] = True

    target: int = 0
    victim_class: int | None = None
    count: int = 1
    eps: float = 8.0
    steps: int = 1200
    rate: float = 10.0
    restarts: int = 1
    networks: int = 1
    surrogate: Recipe = SURROGATE

    def craft(
        self,
        data: ImageDataset,
        budget: Budget,
        *,
        key: Key,
        victims: ImageDataset | None = None,
        rows: Tensor | None = None,
        fit: Fit = fit,
        journal: Journal | None = None,
    ) -> State:
        """The poison, as tensors."""
        what = case(self, data, budget, victims, key, rows)
        models = networks(self.surrogate, data, key, self.networks, fit)

        def attempt(i: int) -> tuple[Tensor, float]:
            start = what.random(self.eps, key.child("start", i)) if i else what.base.float()
            return pull(models, what, bullseye, start, steps=self.steps, rate=self.rate)

        return best(what, attempt, self.restarts, data, journal or Journal())

    def __call__(
        self,
        data: ImageDataset,
        budget: Budget,
        *,
        key: Key,
        victims: ImageDataset | None = None,
        rows: Tensor | None = None,
        state: State | None = None,
    ) -> Poison:
        """Poison as many rows as ``budget`` allows, or ``rows``."""
        state = state or self.craft(data, budget, key=key, victims=victims, rows=rows)
        return poisoned(data, budget, state, self)


def bullseye(poisons: list[Tensor], centres: list[Tensor]) -> Tensor:
    """How far the mean of the poisons' features [P, d] is from the centre [d], relative to it: a mean over models."""
    return torch.stack([relative(f.mean(0) - c, c) for f, c in zip(poisons, centres, strict=True)]).mean()
