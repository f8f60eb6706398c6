"""Gradient matching (Witches' Brew): poisons whose training gradient is that of the victim with the wrong label.

Geiping, Fowl, Huang, Czaja, Taylor, Moeller and Goldstein, "Witches' Brew: Industrial Scale Data Poisoning via
Gradient Matching", arXiv 2009.02276, ICLR 2021: equations 3 and 4, algorithm 1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from poisonkit.attacks.crafting import SURROGATE, Fit, State
from poisonkit.attacks.targeted import Case, KnownImages, best, falling, networks
from poisonkit.data.augment import Augment
from poisonkit.perturb import descend, gradient, misalignment
from poisonkit.random import Key
from poisonkit.train import Journal, Recipe
from poisonkit.types import Budget, ImageDataset


@dataclass(frozen=True)
class GradientMatching(KnownImages):
    """Clean-label images that train a network towards calling a known image the target.

    eps           largest change of a pixel
    steps         of Adam on the sign of the gradient
    rate          its first step, in pixel steps
    restarts      from random starts, of which the best is kept
    augment       crops and flips drawn anew in every step; None for none
    networks      surrogates that are matched together
    surrogate     how the attacker's own networks are trained
    """

    source: ClassVar[str] = "Geiping et al. 2021, arXiv 2009.02276"

    eps: float = 16.0
    steps: int = 250
    rate: float = 4.0
    restarts: int = 8
    augment: Augment | None = field(default_factory=Augment)
    networks: int = 1
    surrogate: Recipe = SURROGATE

    def solve(self, what: Case, data: ImageDataset, budget: Budget, key: Key, fit: Fit, journal: Journal) -> State:
        models = networks(self.surrogate, data, key, self.networks, fit)
        loss = matching(models, what)

        def attempt(i: int) -> tuple[Tensor, float]:
            return descend(
                lambda pixels, step: loss(augmented(pixels, self.augment, key.child("augment", i, step))),
                what.random(self.eps, key.child("start", i)),
                what.low,
                what.high,
                steps=self.steps,
                rate=falling(self.rate),
                signed=True,
            )

        return best(what, attempt, self.restarts, data, journal)


def matching(models: list[nn.Module], what: Case) -> Callable[[Tensor], Tensor]:
    """New images of the poisoned rows to how far their mean gradient is from the victims', a mean over the models."""
    wanted = [mean_gradient(model, what.victims, what.wanted) for model in models]

    def loss(images: Tensor) -> Tensor:
        found = [gradient(model, images, what.labels, differentiable=True) for model in models]
        return torch.stack([misalignment(a, b) for a, b in zip(found, wanted, strict=True)]).mean()

    return loss


def mean_gradient(model: nn.Module, images: Tensor, labels: Tensor, batch_size: int = 512) -> list[Tensor]:
    """The gradient of the mean cross entropy of however many images, batch by batch."""
    total: list[Tensor] = []
    for batch, wanted in zip(torch.split(images, batch_size), torch.split(labels, batch_size), strict=True):
        part = [slope * (len(batch) / len(images)) for slope in gradient(model, batch, wanted)]
        total = [a + b for a, b in zip(total, part, strict=True)] if total else part
    return total


def augmented(pixels: Tensor, augment: Augment | None, key: Key) -> Tensor:
    """Each image cropped and flipped at random, with its gradient."""
    return augment(pixels, torch.arange(len(pixels), device=pixels.device), key) if augment else pixels
