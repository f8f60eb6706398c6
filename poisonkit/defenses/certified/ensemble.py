"""What certified defenses share: their three steps, and the ensemble that votes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import torch
from torch import Tensor, nn

from poisonkit import certificates
from poisonkit.defenses.certified.partition import Partitioning
from poisonkit.errors import require
from poisonkit.models.predict import top
from poisonkit.random import Key
from poisonkit.train import Job, OnEpoch, Recipe
from poisonkit.types import Certificate, ImageDataset


@dataclass(frozen=True, eq=False)
class Ensemble:
    """Base models by partition id, their plurality vote, and its certificate.

    models       one module for each partition id 0..k-1
    num_classes  K
    order        all K classes, the one that wins ties first; None for 0, 1, ..., K-1
    """

    models: Mapping[int, nn.Module]
    num_classes: int
    order: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        ids = sorted(self.models)
        require(
            ids == list(range(len(ids))) and len(ids) > 0,
            "models",
            "keyed by every partition id 0..k-1",
            ids,
            "train the missing partitions first",
        )

    def top(self, images: Tensor, n: int = 1) -> Tensor:
        """The n best classes of every base model, int64 [k, M, n], row i being partition i."""
        return torch.stack([top(self.models[i], images, n) for i in range(len(self.models))])

    def predict(self, images: Tensor) -> Tensor:
        """Plurality class of uint8 [M, C, H, W], int64 [M]."""
        return self.certify(images).prediction

    def certify(self, images: Tensor) -> Certificate:
        """Prediction and certified radius of uint8 [M, C, H, W]."""
        return Certificate(*certificates.dpa(self.top(images)[..., 0], self.num_classes, self.order))

    def guesses(self, images: Tensor, n: int) -> Tensor:
        """The n most-voted classes, best first, when every base model votes for its n best: int64 [M, n]."""
        return certificates.guess_set(self.top(images, n), self.num_classes, self.order)

    def certify_top(self, images: Tensor, labels: Tensor, n: int) -> Tensor:
        """Radius within which ``labels`` int64 [M] stay among the n most-voted classes; -1 where they are not."""
        return certificates.top_n(self.top(images, n), self.num_classes, labels, self.order)


class CertifiedDefense(Protocol):
    """A defense cut into jobs, so that an engine may run ``fit`` anywhere; ``__call__`` composes the three here."""

    source: ClassVar[str]

    def check(self, num_classes: int) -> None: ...

    def split(self, data: ImageDataset, key: Key) -> Partitioning: ...

    def base(self, recipe: Recipe) -> Recipe: ...

    def jobs(self, data: ImageDataset, recipe: Recipe, *, key: Key, parts: Partitioning | None = None) -> list[Job]: ...

    def fit(self, job: Job, *, directory: Path | None = None, on_epoch: OnEpoch | None = None) -> nn.Module: ...

    def gather(self, models: Mapping[int, nn.Module], num_classes: int) -> Ensemble: ...

    def __call__(self, data: ImageDataset, recipe: Recipe, *, key: Key) -> Ensemble: ...
