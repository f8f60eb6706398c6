"""DM poisoning: poisons whose mean features in random networks are those of an image that is to be misclassified.

Zheng and Li, "RDM-DC: Poisoning Resilient Dataset Condensation with Robust Distribution Matching", UAI 2023,
https://proceedings.mlr.press/v216/zheng23a.html, Algorithm 2 and equation 5. The paper does not say how many restarts
and steps it takes; those here are of Geiping et al., arXiv 2009.02276, whose optimiser it names.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from poisonkit.attacks.crafting import Fit, State
from poisonkit.attacks.targeted import Case, KnownImages, best
from poisonkit.data.siamese import Siamese
from poisonkit.models import ConvNet, Model
from poisonkit.perturb import descend, embedded
from poisonkit.random import Key
from poisonkit.train import Journal
from poisonkit.types import Budget, ImageDataset

# Random networks by which the restarts are compared, the same for all
JUDGES = 8


@dataclass(frozen=True)
class DMPoison(KnownImages):
    """Clean-label images against dataset condensation by distribution matching.

    All of them are of the class ``target``: a budget of 1 % of ten equal classes is a tenth of that class, and it is
    this tenth that a defense has to withstand. ``Budget(per_class=True)`` gives the share of the class itself.

    count         how many of them; the features of several are averaged
    eps           largest change of a pixel
    steps         of Adam on the sign of the gradient, each with a new random network
    rate          its step, in pixel steps
    restarts      from random starts, of which the best is kept
    model         whose random features are matched
    augment       the same for the poisons and the image in a step, drawn anew in every step; None for none
    """

    source: ClassVar[str] = "Zheng and Li 2023, https://proceedings.mlr.press/v216/zheng23a.html"

    eps: float = 64.0
    steps: int = 250
    rate: float = 1.0
    restarts: int = 8
    model: Model = field(default_factory=ConvNet)
    augment: Siamese | None = field(default_factory=Siamese)

    def solve(self, what: Case, data: ImageDataset, budget: Budget, key: Key, fit: Fit, journal: Journal) -> State:
        def loss(pixels: Tensor, key: Key) -> Tensor:
            network = self.model.build(data.shape, data.num_classes, key.child("network")).to(data.device)
            network.to(memory_format=torch.channels_last).requires_grad_(False)  # type: ignore[call-overload]
            images = torch.cat([what.victims.float(), pixels])
            if self.augment:
                images = self.augment.apply(images, self.augment.draw(1, key.child("augment")))
            found = embedded(network, images.contiguous(memory_format=torch.channels_last))
            return (found[: self.count].mean(0) - found[self.count :].mean(0)).square().sum()

        def attempt(i: int) -> tuple[Tensor, float]:
            pixels, _ = descend(
                lambda pixels, step: loss(pixels, key.child("step", i, step)),
                what.random(self.eps, key.child("start", i)),
                what.low,
                what.high,
                steps=self.steps,
                rate=lambda step, steps: self.rate,
                signed=True,
            )
            with torch.no_grad():
                judged = [float(loss(pixels.round(), key.child("judge", j))) for j in range(JUDGES)]
            return pixels, sum(judged) / JUDGES

        return best(what, attempt, self.restarts, data, journal)
