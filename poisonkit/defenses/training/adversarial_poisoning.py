"""Adversarial poisoning: in every step the defender poisons part of the batch against the rest, and trains on both.

Geiping, Fowl, Somepalli, Goldblum, Moeller and Goldstein, "What Doesn't Kill You Makes You Robust(er): How to
Adversarially Train against Data Poisoning", 2021, https://arxiv.org/abs/2102.13624.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from poisonkit.errors import require
from poisonkit.models.features import evaluating
from poisonkit.perturb import descend, gradient, misalignment
from poisonkit.random import Key
from poisonkit.train import Batch, Journal, Procedure, Recipe
from poisonkit.types import ImageDataset


@dataclass(frozen=True)
class AdversarialPoisoning(Procedure):
    """Perturbs a share of every batch by gradient matching, with the rest of the batch as victims.

    share  of a batch that is poisoned: AP-0.25, 0.5 and 0.75
    eps    largest change of a pixel
    steps  of Adam on the sign of the gradient, each of ``rate`` pixel steps (0.1 in units of the networks' input)
    """

    source: ClassVar[str] = "Geiping et al. 2021, arXiv 2102.13624"

    share: float = 0.5
    eps: float = 8.0
    steps: int = 5
    rate: float = 6.375

    def __post_init__(self) -> None:
        require(0 < self.share < 1, "share", "in (0, 1)", self.share)
        require(self.eps >= 0, "eps", "0 or more pixel steps", self.eps)
        require(self.steps >= 0, "steps", "0 or more", self.steps)

    def __call__(
        self,
        data: ImageDataset,
        recipe: Recipe,
        *,
        key: Key,
        model: nn.Module | None = None,
        journal: Journal | None = None,
    ) -> nn.Module:
        """Takes several times as long as ordinary training: two passes forward and back in each of ``steps``."""
        return (journal or Journal()).fit(data, recipe, key=key, model=model, procedure=self)

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        """The cross entropy of the true labels of all images, those of the victims too."""
        images = batch.images.float()
        count = min(max(1, round(self.share * len(images))), len(images) - 1)
        images[:count] = self.poisons(model, images, batch.labels, count, batch.key.child("poisons"))
        logits = model(images)
        return cross_entropy(logits, batch.labels, label_smoothing=batch.smoothing), logits

    def poisons(self, model: nn.Module, images: Tensor, labels: Tensor, count: int, key: Key) -> Tensor:
        """The first ``count`` of ``images`` (float [B, C, H, W]), changed: their gradient is as if the others were of
        the class that most of the first are of."""
        base, victims = images[:count], images[count:]
        low, high = (base - self.eps).clamp(min=0), (base + self.eps).clamp(max=255)
        noise = torch.randn(base.shape, generator=key.generator(base.device), device=base.device)
        start = base + (self.eps * noise).clamp(-self.eps, self.eps)
        wanted = labels[:count].bincount().argmax().expand(len(victims))
        with evaluating(model):
            aim = gradient(model, victims, wanted)

            def apart(pixels: Tensor, step: int) -> Tensor:
                return misalignment(gradient(model, pixels, labels[:count], differentiable=True), aim)

            return descend(apart, start, low, high, steps=self.steps, rate=lambda step, steps: self.rate, signed=True)[
                0
            ]
