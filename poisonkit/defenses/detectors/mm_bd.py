"""Maximum-Margin Backdoor Detection: the target of a backdoor has a far larger maximum margin than other classes.

Wang, Xiang, Miller and Kesidis, "MM-BD: Post-Training Detection of Backdoor Attacks with Arbitrary Backdoor Pattern
Types Using a Maximum Margin Statistic", arXiv 2205.06900, 2022 (IEEE S&P 2024).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn

from poisonkit.defenses.margins import Ascent, margin, noise
from poisonkit.errors import require
from poisonkit.perturb import frozen
from poisonkit.random import Key
from poisonkit.train import Journal
from poisonkit.types import Detection, ImageDataset


@dataclass(frozen=True)
class MMBD:
    """A class whose maximum margin is out of the others' distribution.

    The statistic of a class is the largest margin that its maximisers reach. A class is held against a gamma
    distribution fitted to the others; its p-value is that of the largest of as many draws as there are classes. The
    published test is that of the class with the largest margin. Of the clean images only shape and classes are used.

    starts     random images for each class
    ascent     at most so many steps from there; the authors' code takes 300 of kind "plain" and rate 0.01, at which
               margins are still about half of what they can be
    tolerance  a class is done where the sum of its margins has changed by less than this share
    level      of the test
    """

    source: ClassVar[str] = "Wang et al. 2022, arXiv 2205.06900"

    starts: int = 30
    ascent: Ascent = field(default_factory=lambda: Ascent(steps=300, rate=0.01))
    tolerance: float = 1e-5
    level: float = 0.05

    def __post_init__(self) -> None:
        require(self.starts >= 1, "starts", "1 or more", self.starts)
        require(0 < self.level < 1, "level", "in (0, 1)", self.level)

    def __call__(self, model: nn.Module, clean: ImageDataset, *, key: Key, journal: Journal | None = None) -> Detection:
        """A verdict on each class. Raises ArgumentError where there are fewer than 3, which leave no distribution."""
        require(clean.num_classes >= 3, "classes", "3 or more", clean.num_classes)
        journal = journal or Journal()
        kept = journal.once("margins", lambda: {"margins": self.margins(model, clean, key, journal)})
        margins = kept["margins"].double().cpu()
        p_value = p_values(margins)
        return Detection(p_value <= self.level, margins, p_value)

    def margins(self, model: nn.Module, clean: ImageDataset, key: Key, journal: Journal) -> Tensor:
        """The largest margin of each class: float [K]."""
        device = next(model.parameters(), clean.images).device
        pixels, classes = (
            each.to(device) for each in noise(self.starts, clean.num_classes, clean.shape, key.child("starts"))
        )
        found = torch.full((len(classes),), torch.nan, device=device)
        moving = torch.ones(clean.num_classes, dtype=torch.bool, device=device)
        sums = torch.full((clean.num_classes,), torch.nan, device=device)
        with frozen(model):
            for step in range(self.ascent.steps):
                some = moving[classes].nonzero()[:, 0]
                pixels[some], found[some] = self.ascent.step(model, pixels[some], classes[some])
                before, sums = sums, found.view(clean.num_classes, -1).sum(1)
                moving &= ~((sums - before).abs() < self.tolerance * before.abs())
                journal.say(f"step {step + 1}/{self.ascent.steps}: {int(moving.sum())} classes climb")
                if not moving.any():
                    break
            with torch.no_grad():
                ends = [
                    margin(model(255 * some.clamp(0, 1)), wanted)
                    for some, wanted in zip(torch.split(pixels, 250), torch.split(classes, 250), strict=True)
                ]
        return torch.cat(ends).view(clean.num_classes, -1).amax(1)


def p_values(margins: Tensor) -> Tensor:
    """How probable it is that the largest of K draws from the others' distribution is as large: float64 [K] -> [K].

    A gamma distribution has no place for margins that are not above 0: such a class has p = 1, and is not among the
    others. Where fewer than 2 are left nothing stands out.
    """
    found = torch.ones_like(margins)
    for place, value in enumerate(margins):
        others = torch.cat([margins[:place], margins[place + 1 :]])
        others = others[others > 0]
        if value > 0 and len(others) > 1:
            shape, scale = fit_gamma(others)
            above = torch.special.gammaincc(shape, value / scale)
            found[place] = -torch.expm1(len(margins) * torch.log1p(-above))
    return found


def fit_gamma(values: Tensor) -> tuple[Tensor, Tensor]:
    """Shape and scale of the gamma distribution most likely to give ``values`` (float64 [n], above 0), by Newton."""
    mean = values.mean()
    # log k - digamma(k) falls from infinity to 0; equal values would need it to be 0
    wanted = (mean.log() - values.log().mean()).clamp(min=1e-12)
    shape = (3 - wanted + ((wanted - 3) ** 2 + 24 * wanted).sqrt()) / (12 * wanted)
    for _ in range(20):
        excess = shape.log() - torch.special.digamma(shape) - wanted
        shape = shape - excess / (1 / shape - torch.special.polygamma(1, shape))
    return shape, mean / shape
