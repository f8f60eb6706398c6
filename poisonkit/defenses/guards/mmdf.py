"""Maximum-Margin Defense Framework: an image on which a network and its clipped twin disagree carries a trigger.

Wang, Miller and Kesidis, "Post-Training Overfitting Mitigation in DNN Classifiers" (first "Maximum Margin Based
Activation Clipping for Post-Training Overfitting Mitigation in DNN Classifiers"), 2023, arXiv 2309.16827, section 3.1.
The released mode follows the code of "Improved Activation Clipping for Universal Backdoor Mitigation and Test-Time
Detection", arXiv 2308.04617.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from poisonkit.defenses.margins import margin
from poisonkit.defenses.repair.mmac import MMAC
from poisonkit.errors import require
from poisonkit.models import logits
from poisonkit.random import Key
from poisonkit.train import Journal
from poisonkit.types import ImageDataset

Statistic = Literal["margin", "softmax"]


@dataclass(frozen=True)
class MMDF:
    """A network watched by the one that MMAC makes of it.

    The statistic of an image is how much less sure the clipped network is of the class that the network decides for.
    On clean images it is taken to be Gaussian. An image is flagged where its p-value is below ``level``, in the
    "paper" mode also where the two decide otherwise. It then gets what the clipped network decides for without the
    class of the first decision; the others keep the first decision.

    mmac       makes the clipped network
    mode       "paper", or "released", which as the authors' code flags by the p-value alone
    statistic  what sureness is: the margin of the logits, as in the code, or the softmax
    level      of the test, one sided
    """

    source: ClassVar[str] = "Wang, Miller and Kesidis 2023, arXiv 2309.16827"

    mmac: MMAC = field(default_factory=MMAC)
    mode: Literal["paper", "released"] = "paper"
    statistic: Statistic = "margin"
    level: float = 0.005

    def __post_init__(self) -> None:
        require(self.mode in ("paper", "released"), "mode", "'paper' or 'released'", repr(self.mode))
        require(self.statistic in ("margin", "softmax"), "statistic", "'margin' or 'softmax'", repr(self.statistic))
        require(0 < self.level < 1, "level", "in (0, 1)", self.level)

    def __call__(
        self, model: nn.Module, clean: ImageDataset, *, key: Key, journal: Journal | None = None
    ) -> TwoNetworks:
        """The pair; ``journal`` notes what :meth:`between` does, and what MMAC does."""
        journal = journal or Journal()
        clipped = self.mmac(model, clean, key=key.child("mmac"), journal=journal.stage("mmac"))
        return self.between(model, clipped, clean, journal=journal)

    def between(
        self, model: nn.Module, clipped: nn.Module, clean: ImageDataset, *, journal: Journal | None = None
    ) -> TwoNetworks:
        """The pair, from a clipped network that there is already.

        Notes ``false_alarms``, the share of the clean images that are flagged, each by the Gaussian of the others.
        """
        require(len(clean) >= 3, "clean images", "3 or more", len(clean))
        pair = TwoNetworks(model, clipped, 0.0, 1.0, self)
        first, second = pair.ask(clean.images)
        drop = pair.drop(first, second)
        n, mean, variance = len(drop), drop.mean(), drop.var()
        without = (n * mean - drop) / (n - 1)
        spread = (((n - 1) * variance - n / (n - 1) * (drop - mean) ** 2) / (n - 2)).clamp(min=0).sqrt()
        alone = upper_tail((drop - without) / spread.clamp(min=1e-12)) < self.level
        alarms = alone | pair.differ(first, second)
        if journal:
            journal.notes["false_alarms"] = alarms.double().mean()
        return TwoNetworks(model, clipped, float(mean), float(variance.sqrt()), self)


@dataclass(frozen=True, eq=False)
class TwoNetworks:
    """A network, its clipped twin, and the Gaussian of how much less sure that is on clean images."""

    model: nn.Module
    clipped: nn.Module
    mean: float
    sd: float
    rule: MMDF

    def predict(self, images: Tensor) -> Tensor:
        """The first decision, or the corrected one where an image is flagged: uint8 [M, C, H, W] to int64 [M]."""
        first, second = self.ask(images)
        decision = first.argmax(1)
        corrected = second.scatter(1, decision[:, None], -torch.inf).argmax(1)
        return torch.where(self._flagged(first, second), corrected, decision)

    def flagged(self, images: Tensor) -> Tensor:
        """Which images are held for triggered: bool [M]."""
        return self._flagged(*self.ask(images))

    def p_value(self, images: Tensor) -> Tensor:
        """How probable so large a drop is on clean images: float64 [M]."""
        return self._p_value(*self.ask(images))

    def ask(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """The logits of both."""
        return logits(self.model, images), logits(self.clipped, images)

    def drop(self, first: Tensor, second: Tensor) -> Tensor:
        """How much less sure the second is of what the first decides for: float64 [M]."""
        decision = first.argmax(1)
        if self.rule.statistic == "margin":
            return (margin(first, decision) - margin(second, decision)).double()
        both = torch.stack([first, second]).double().softmax(2)
        return torch.sub(*both.gather(2, decision.expand(2, -1)[..., None])[..., 0])

    def differ(self, first: Tensor, second: Tensor) -> Tensor:
        """Where another decision flags an image."""
        return (first.argmax(1) != second.argmax(1)) & (self.rule.mode == "paper")

    def _p_value(self, first: Tensor, second: Tensor) -> Tensor:
        return upper_tail((self.drop(first, second) - self.mean) / max(self.sd, 1e-12))

    def _flagged(self, first: Tensor, second: Tensor) -> Tensor:
        return (self._p_value(first, second) < self.rule.level) | self.differ(first, second)


def upper_tail(z: Tensor) -> Tensor:
    """The probability that a standard Gaussian is above ``z``."""
    return torch.erfc(z / math.sqrt(2)) / 2
