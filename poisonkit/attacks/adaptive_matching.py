"""An attack that knows EPIC: gradient matching whose poisons lie close together where EPIC looks for isolated rows.

Yang, Liu and Mirzasoleiman, "Not All Poisons are Created Equal: Robust Training against Data Poisoning", ICML 2022,
https://proceedings.mlr.press/v162/yang22j.html, section 3.6, names what such an attacker could do: choose base images
whose gradients cluster, and craft poisons of similar gradients along the whole training. This does both. Gradients
are compared as EPIC compares them, by the logits: softmax less the label.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import one_hot

from poisonkit.attacks.crafting import SURROGATE, Fit, State, surrogate
from poisonkit.attacks.gradient_matching import augmented, matching
from poisonkit.attacks.targeted import Aim, KnownImages, bases, best, case, falling
from poisonkit.data.augment import Augment
from poisonkit.errors import require
from poisonkit.models import logits
from poisonkit.perturb import descend
from poisonkit.random import Key
from poisonkit.train import Journal, Recipe, fit
from poisonkit.types import Budget, ImageDataset


@dataclass(frozen=True)
class AdaptiveMatching(KnownImages):
    """Gradient matching with poisons that keep each other company, against EPIC.

    eps           largest change of a pixel
    steps         of Adam on the sign of the gradient
    rate          its first step, in pixel steps
    restarts      from random starts, of which the best is kept
    stages        surrogates, trained for 1/stages, 2/stages, ... of the recipe's epochs, that are matched together
    closeness     weight of the mean distance between the gradients of the poisons, beside the matching
    augment       crops and flips drawn anew in every step; None for none
    surrogate     how the attacker's own networks are trained
    """

    source: ClassVar[str] = "after Yang et al. 2022, https://proceedings.mlr.press/v162/yang22j.html, section 3.6"

    eps: float = 16.0
    steps: int = 250
    rate: float = 4.0
    restarts: int = 8
    stages: int = 2
    closeness: float = 0.5
    augment: Augment | None = field(default_factory=Augment)
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
        require(self.stages >= 1, "stages", "1 or more", self.stages)
        epochs = [-(-self.surrogate.epochs * (i + 1) // self.stages) for i in range(self.stages)]
        models = [surrogate(replace(self.surrogate, epochs=n), data, key, fit).eval() for n in epochs]
        rows = tightest(models, data, budget, self, key) if rows is None else rows
        what = case(self, data, budget, victims, key, rows)
        match = matching(models, what)

        def loss(images: Tensor) -> Tensor:
            apart = torch.stack([spread(proxy(model(images), what.labels)) for model in models]).mean()
            return match(images) + self.closeness * apart

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

        return best(what, attempt, self.restarts, data, journal or Journal())


def tightest(models: list[nn.Module], data: ImageDataset, budget: Budget, aim: Aim, key: Key) -> Tensor:
    """As many rows of the target class as ``budget`` allows, those nearest to a random one of them: int64 [P]."""
    count = len(bases(data, budget, aim, key))
    pool = (data.labels == aim.target).nonzero()[:, 0]
    middle = int(key.child("middle").permutation(len(pool))[0])
    found = [proxy(logits(model, data.images[pool]), data.labels[pool]) for model in models]
    away = torch.stack([(each - each[middle]).square().sum(1).sqrt() for each in found]).mean(0)
    return pool[away.argsort(stable=True)[:count]]


def proxy(scores: Tensor, labels: Tensor) -> Tensor:
    """The gradients of the cross entropy by the logits [P, K]: softmax less the label."""
    return scores.softmax(1) - one_hot(labels, scores.shape[1])


def spread(gradients: Tensor) -> Tensor:
    """The mean distance of gradients [P, K] from their mean."""
    return (gradients - gradients.mean(0)).square().sum(1).add(1e-12).sqrt().mean()
