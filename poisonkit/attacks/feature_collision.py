"""Feature collision (Poison Frogs): each poison looks like its image and has the features of the victim.

Shafahi, Huang, Najibi, Suciu, Studer, Dumitras and Goldstein, "Poison Frogs! Targeted Clean-Label Poisoning Attacks
on Neural Networks", arXiv 1804.00792, NeurIPS 2018: equation 1, algorithm 1. The bounded variant, the faint watermark
and the step that shrinks are those of Schwarzschild et al., "Just How Toxic is Data Poisoning?", arXiv 2006.12557.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from poisonkit.attacks.crafting import SURROGATE, Fit, State
from poisonkit.attacks.polytopes import centres
from poisonkit.attacks.targeted import Case, KnownImages, best, networks
from poisonkit.perturb import embedded
from poisonkit.random import Key
from poisonkit.train import Journal, Recipe
from poisonkit.types import Budget, ImageDataset


@dataclass(frozen=True)
class FeatureCollision(KnownImages):
    """Clean-label images with the features of a known one, bounded, or pulled back to how they looked.

    count         how many of them; of several, features and watermark are the mean
    eps           largest change of a pixel; None for any, with ``beta`` to hold it back
    beta          how strongly a poison is pulled back to its image, where ``eps`` is None
    watermark     share of the victim that is blended into the image first
    steps         forward and backward
    rate          of the forward step, with pixels on the scale of [0, 1]; a fifth of it for a poison that got worse
    restarts      of which the best is kept; the first starts at the images, others at random
    surrogate     how the attacker's own network is trained
    """

    source: ClassVar[str] = "Shafahi et al. 2018, arXiv 1804.00792"

    eps: float | None = 8.0
    beta: float = 4.0
    watermark: float = 0.3
    steps: int = 120
    rate: float = 0.01
    restarts: int = 1
    surrogate: Recipe = SURROGATE

    def solve(self, what: Case, data: ImageDataset, budget: Budget, key: Key, fit: Fit, journal: Journal) -> State:
        models = networks(self.surrogate, data, key, 1, fit)
        base, low, high = what.base / 255, what.low / 255, what.high / 255
        beta = self.beta if self.eps is None else 0.0
        mark = what.victims.float().mean(0) / 255

        def attempt(i: int) -> tuple[Tensor, float]:
            start = what.random(self.eps or 8.0, key.child("start", i)) / 255 if i else base
            start = ((1 - self.watermark) * start + self.watermark * mark).clamp(low, high)
            with centres(models, what) as [centre]:
                distance = lambda x: (embedded(models[0], 255 * x) - centre).square().sum(1)  # noqa: E731
                pixels, objective = collide(
                    distance, start, base, low, high, beta=beta, steps=self.steps, rate=self.rate
                )
            return 255 * pixels, float(objective.mean())

        return best(what, attempt, self.restarts, data, journal)


def collide(
    distance: Callable[[Tensor], Tensor],
    start: Tensor,
    base: Tensor,
    low: Tensor,
    high: Tensor,
    *,
    beta: float,
    steps: int,
    rate: float,
) -> tuple[Tensor, Tensor]:
    """Images x that lower distance(x) + beta/2·|x - base|², each with a step of its own, and what is left of it, [P].

    A forward step on the distance, then the backward one as published, which is the proximal step of this objective
    (the published one lacks the half), then the bounds. A step after which the objective of a poison is larger is
    undone, and its next is a fifth.
    """
    found, rates = start, torch.full((len(start), 1, 1, 1), rate, device=start.device)

    def objective(x: Tensor) -> tuple[Tensor, Tensor]:
        """The objective [P] and the slope of the distance."""
        x = x.detach().requires_grad_(True)
        away = distance(x)
        (slope,) = torch.autograd.grad(away.sum(), x)
        return away.detach() + beta / 2 * (x.detach() - base).square().flatten(1).sum(1), slope

    value, slope = objective(found)
    for _ in range(steps):
        moved = (found - rates * slope + rates * beta * base) / (1 + rates * beta)
        moved = moved.clamp(low, high)
        after, there = objective(moved)
        better = (after <= value)[:, None, None, None]
        found, slope = torch.where(better, moved, found), torch.where(better, there, slope)
        value, rates = torch.minimum(after, value), torch.where(better, rates, rates / 5)
    return found, value
