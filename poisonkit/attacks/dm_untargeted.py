"""An untargeted attack on condensation: poisons that draw the mean features of every class away from those of its rows.

What Zheng and Li, "RDM-DC: Poisoning Resilient Dataset Condensation with Robust Distribution Matching", UAI 2023,
https://proceedings.mlr.press/v216/zheng23a.html, call poisoned deviation (Definition 4.1), made as large as the bounds
allow. They found untargeted attacks at 1 % without effect (section 2.3) and name none: this one is of this package.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from operator import itemgetter
from typing import ClassVar

import torch
from torch import Tensor

from poisonkit.attacks.crafting import State
from poisonkit.attacks.targeted import bound
from poisonkit.data.siamese import Siamese
from poisonkit.errors import require
from poisonkit.models import ConvNet, Model
from poisonkit.perturb import box, descend, embedded
from poisonkit.random import Key
from poisonkit.train import Journal
from poisonkit.train.loop import deterministic
from poisonkit.types import Budget, ImageDataset, Poison, Victims


@dataclass(frozen=True)
class DMUntargeted:
    """Clean-label images of every class, as many of each. It has no victims: what it costs is clean accuracy.

    eps         largest change of a pixel
    steps       of Adam on the sign of the gradient, each with a new random network
    rate        its step, in pixel steps
    batch_size  clean rows of each class that a step compares with
    model       whose random features are drawn away
    augment     the same for the poisons and the rows of a class in a step; None for none
    """

    needs_victims: ClassVar[bool] = False
    source: ClassVar[str] = "after Zheng and Li 2023, https://proceedings.mlr.press/v216/zheng23a.html"

    eps: float = 64.0
    steps: int = 250
    rate: float = 1.0
    batch_size: int = 64
    model: Model = field(default_factory=ConvNet)
    augment: Siamese | None = field(default_factory=Siamese)

    def craft(self, data: ImageDataset, budget: Budget, *, key: Key, journal: Journal | None = None) -> State:
        """The poison, as tensors."""
        classes, each = data.num_classes, budget.allowance(data.labels, None) // data.num_classes
        require(budget.eps is None or self.eps <= budget.eps, "eps", f"at most the budget's {budget.eps}", self.eps)
        require(each >= 1, "rate", "for at least one row of each class", budget.rate)
        order = key.child("rows").permutation(len(data), data.device)
        mine = [order[data.labels[order] == label] for label in range(classes)]
        least = min(map(len, mine)) - each
        require(least >= 1, "rate", "such that a clean row of every class is left", budget.rate, "lower the rate")
        rows, clean = torch.cat([each_class[:each] for each_class in mine]), [own[each:] for own in mine]
        low, high = box(data.images[rows], self.eps)
        taken = min(self.batch_size, least)

        def features(images: Tensor, drawn: Tensor, network: torch.nn.Module) -> Tensor:
            images = self.augment.apply(images, drawn) if self.augment else images
            return torch.stack([part.mean(0) for part in embedded(network, images).chunk(classes)])

        def loss(pixels: Tensor, step: int) -> Tensor:
            at = key.child("step", step)
            network = self.model.build(data.shape, classes, at.child("network")).to(data.device).requires_grad_(False)
            drawn = self.augment.draw(classes, at.child("augment")) if self.augment else torch.empty(0)
            others = [
                own[at.child("clean", c).permutation(len(own), data.device)[:taken]] for c, own in enumerate(clean)
            ]
            with torch.no_grad():
                means = features(data.images[torch.cat(others)].float(), drawn, network)
            return -(features(pixels, drawn, network) - means).square().sum()

        start = torch.rand(low.shape, generator=key.child("start").generator()).to(data.device) * (high - low) + low
        with deterministic(data.device):
            pixels, _ = descend(
                loss, start, low, high, steps=self.steps, rate=lambda step, steps: self.rate, signed=True
            )
        return {"rows": rows, "images": pixels.round().to(torch.uint8)}

    def __call__(self, data: ImageDataset, budget: Budget, *, key: Key, state: State | None = None) -> Poison:
        """Poison as many rows as ``budget`` allows and the classes share evenly; its rate is of all rows."""
        rows, images = itemgetter("rows", "images")(state or self.craft(data, budget, key=key))
        nobody = Victims(data.images[:0], data.labels[:0])
        return Poison(rows, images, data.labels[rows.to(data.device)], nobody, bound(budget, self.eps))
