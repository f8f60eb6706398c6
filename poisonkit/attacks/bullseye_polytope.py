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
from poisonkit.attacks.targeted import Case, KnownImages, best, networks
from poisonkit.random import Key
from poisonkit.train import Journal, Recipe
from poisonkit.types import Budget, ImageDataset


@dataclass(frozen=True)
class BullseyePolytope(KnownImages):
    """Clean-label images around a known one in feature space.

    eps           largest change of a pixel
    steps         of Adam
    rate          of Adam, in pixel steps
    restarts      of which the best is kept; the first starts at the images, others at random
    networks      surrogates in which it is to hold together
    surrogate     how the attacker's own networks are trained
    """

    source: ClassVar[str] = "Aghakhani et al. 2021, arXiv 2005.00191"

    eps: float = 8.0
    steps: int = 1200
    rate: float = 10.0
    restarts: int = 1
    networks: int = 1
    surrogate: Recipe = SURROGATE

    def solve(self, what: Case, data: ImageDataset, budget: Budget, key: Key, fit: Fit, journal: Journal) -> State:
        models = networks(self.surrogate, data, key, self.networks, fit)

        def attempt(i: int) -> tuple[Tensor, float]:
            start = what.random(self.eps, key.child("start", i)) if i else what.base.float()
            return pull(models, what, bullseye, start, steps=self.steps, rate=self.rate)

        return best(what, attempt, self.restarts, data, journal)


def bullseye(poisons: list[Tensor], centres: list[Tensor]) -> Tensor:
    """How far the mean of the poisons' features [P, d] is from the centre [d], relative to it: a mean over models."""
    return torch.stack([relative(f.mean(0) - c, c) for f, c in zip(poisons, centres, strict=True)]).mean()
