"""Distribution matching: a few synthetic images of every class whose mean features are those of the data.

Zhao and Bilen, "Dataset Condensation with Distribution Matching", WACV 2023, https://arxiv.org/abs/2110.04181. With
another mean than that of all rows, the empirical defenses that Zheng and Li compare with (UAI 2023, section 4.5).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from poisonkit.data.siamese import Siamese
from poisonkit.defenses.condense.matching import GREY, UNIT, Matching, by_class, condense, random_rows
from poisonkit.defenses.condense.means import Mean, RobustMean, drops
from poisonkit.errors import require
from poisonkit.models import ConvNet, Model
from poisonkit.random import Key
from poisonkit.train import Journal
from poisonkit.types import Budget, ImageDataset


@dataclass(frozen=True)
class DM:
    """Distribution matching in random networks, a new one every iteration.

    images         synthetic images of every class
    iterations     steps of gradient descent on their pixels
    batch_size     real images of every class in a step; fewer where the smallest class has fewer
    learning_rate  of the pixels, in units of 63.75 pixel steps (10 in the paper for 100 images a class or more)
    momentum       of the pixels
    start          "noise", N(0, 1) in those units; or "real", random rows of the data
    trusted        every row is known to be clean: without it "real" is refused, since poisoned rows would go straight
                   into the synthetic set, whatever the mean
    mean           of the real features: Mean, Median, Trimmed, Truncated or Calibrated
    rate           the share of all rows that may be poisoned; all of it may lie in one class, so ten equal classes and
                   0.01 guard against a tenth of every class. Trimmed, Truncated and Calibrated drop three times that.
                   Mean and Median take no notice of it
    per_class      ``rate`` is a share of each class, instead
    model          whose random features are matched
    augment        the same for the real and the synthetic images of a class, or None
    """

    source: ClassVar[str] = "Zhao and Bilen 2023, arXiv 2110.04181"

    images: int = 50
    iterations: int = 20_000
    batch_size: int = 256
    learning_rate: float = 1.0
    momentum: float = 0.5
    start: Literal["noise", "real"] = "noise"
    trusted: bool = False
    mean: RobustMean = field(default_factory=Mean)
    rate: float = 0.01
    per_class: bool = False
    model: Model = field(default_factory=ConvNet)
    augment: Siamese | None = field(default_factory=Siamese)

    def __post_init__(self) -> None:
        for name in ("images", "iterations", "batch_size"):
            require(getattr(self, name) >= 1, name, "1 or more", getattr(self, name))
        require(self.learning_rate > 0, "learning_rate", "above 0", self.learning_rate)
        require(0 <= self.momentum < 1, "momentum", "in [0, 1)", self.momentum)
        require(self.start in ("noise", "real"), "start", "'noise' or 'real'", repr(self.start))
        remedy = "real images carry their poison over; trusted=True where every row is known to be clean"
        require(self.start == "noise" or self.trusted, "start", "'noise' for data that may be poisoned", "real", remedy)
        Budget(self.rate)

    def __call__(self, data: ImageDataset, *, key: Key, journal: Journal | None = None) -> ImageDataset:
        """``images`` float32 images of every class on the scale 0..255, which they may leave; class by class.

        Snapshots and the place go to the journal, and notes that
        ``poisonkit.defenses.condense.matching.condense`` names. Raises ArgumentError where a class is empty, or
        where the rate leaves no rows; PoisonkitError where the images diverge.
        """
        smallest = int((by_class(data) >= 0).sum(1).min())
        rows, budget = min(self.batch_size, smallest), Budget(self.rate, per_class=self.per_class)
        drop = drops(budget, data.labels, data.num_classes, rows) if self.mean.drops else [0] * data.num_classes
        matching = Matching(data, self.images, rows, self.model, self.augment, self.mean, drop, key)
        units = condense(
            matching,
            self._start(data, key.child("start")),
            iterations=self.iterations,
            learning_rate=self.learning_rate,
            momentum=self.momentum,
            journal=journal or Journal(),
        )
        labels = torch.arange(data.num_classes, device=data.device).repeat_interleave(self.images)
        return ImageDataset(units * UNIT + GREY, labels, data.classes)

    def _start(self, data: ImageDataset, key: Key) -> Tensor:
        """The images to begin with, in units, float32 [K·images, C, H, W]."""
        if self.start == "real":
            return (random_rows(data, self.images, key).images.float() - GREY) / UNIT
        return torch.randn(data.num_classes * self.images, *data.shape, generator=key.generator()).to(data.device)
