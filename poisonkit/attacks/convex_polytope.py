"""Convex polytope: poisons among whose convex combinations in feature space is the victim.

Zhu, Huang, Shafahi, Li, Taylor, Studer and Goldstein, "Transferable Clean-Label Poisoning Attacks on Deep Neural
Nets", arXiv 1905.05897, ICML 2019: equation 2, algorithm 1. The projection is that of Duchi, Shalev-Shwartz, Singer and
Chandra, "Efficient Projections onto the l1-Ball", https://doi.org/10.1145/1390156.1390191, figure 1.
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
class ConvexPolytope(KnownImages):
    """Clean-label images whose features have a known image in their convex hull.

    eps           largest change of a pixel
    steps         of Adam, each after ``inner`` steps of the coefficients
    rate          of Adam, in pixel steps
    inner         steps of projected descent on the coefficients, which go on from where they were
    restarts      of which the best is kept; the first starts at the images, others at random
    networks      surrogates in which it is to hold, each with coefficients of its own
    surrogate     how the attacker's own networks are trained
    """

    source: ClassVar[str] = "Zhu et al. 2019, arXiv 1905.05897"

    eps: float = 8.0
    steps: int = 1200
    rate: float = 10.0
    inner: int = 20
    restarts: int = 1
    networks: int = 1
    surrogate: Recipe = SURROGATE

    def solve(self, what: Case, data: ImageDataset, budget: Budget, key: Key, fit: Fit, journal: Journal) -> State:
        models = networks(self.surrogate, data, key, self.networks, fit)

        def attempt(i: int) -> tuple[Tensor, float]:
            shares = [torch.full((len(what.rows),), 1 / len(what.rows), device=data.device) for _ in models]

            def loss(poisons: list[Tensor], centres: list[Tensor]) -> Tensor:
                for m, (f, c) in enumerate(zip(poisons, centres, strict=True)):
                    shares[m] = coefficients(f.detach(), c, shares[m], self.inner)
                away = [relative(s @ f - c, c) for s, f, c in zip(shares, poisons, centres, strict=True)]
                return torch.stack(away).square().mean() / 2

            start = what.random(self.eps, key.child("start", i)) if i else what.base.float()
            return pull(models, what, loss, start, steps=self.steps, rate=self.rate)

        return best(what, attempt, self.restarts, data, journal)


def coefficients(features: Tensor, centre: Tensor, start: Tensor, steps: int) -> Tensor:
    """Coefficients [P] on the simplex, from ``start``, that bring c·F nearer to the centre: F is [P, d]."""
    gram, wanted = features @ features.T, features @ centre
    rate = 1 / torch.linalg.matrix_norm(gram, 2).clamp(min=torch.finfo(gram.dtype).tiny)  # of a slope F(cF - centre)
    found = start
    for _ in range(steps):
        found = simplex(found - rate * (gram @ found - wanted))
    return found


def simplex(vector: Tensor) -> Tensor:
    """The nearest vector [P] of no negative entries that sum to 1."""
    ordered = vector.sort(descending=True).values
    # As a product, since a cumulative sum of floats has no deterministic form on a GPU
    sums = ordered @ vector.new_ones(len(vector), len(vector)).triu()
    over = (sums - 1) / torch.arange(1, len(vector) + 1, device=vector.device)
    last = (ordered > over).sum() - 1
    return (vector - over[last]).clamp(min=0)
