"""What the families of defenses take and give. All are frozen dataclasses of plain values, with one ``__call__``.

A certified defense is the exception in shape: :class:`poisonkit.defenses.certified.Aggregation`. One that not every
network can have may say so beforehand, by a method ``check_model(model, data)`` that raises ArgumentError.
"""

from __future__ import annotations

from typing import ClassVar, Protocol

from torch import Tensor, nn

from poisonkit.random import Key
from poisonkit.train import Journal, Recipe
from poisonkit.types import Detection, ImageDataset


class Training(Protocol):
    """Dirty data in, a network out."""

    source: ClassVar[str]

    def __call__(
        self,
        data: ImageDataset,
        recipe: Recipe,
        *,
        key: Key,
        model: nn.Module | None = None,
        journal: Journal | None = None,
    ) -> nn.Module:
        """A network in evaluation mode; with a ``model``, a copy of it is trained further."""


class Repair(Protocol):
    """A trained network and a few clean labelled images in, a network out; the one given is left as it was."""

    source: ClassVar[str]

    def __call__(
        self, model: nn.Module, clean: ImageDataset, *, key: Key, journal: Journal | None = None
    ) -> nn.Module: ...


class Detector(Protocol):
    """A trained network, and clean images where it needs any, in; which classes are a backdoor's target out."""

    source: ClassVar[str]

    def __call__(
        self, model: nn.Module, clean: ImageDataset, *, key: Key, journal: Journal | None = None
    ) -> Detection: ...


class Filter(Protocol):
    """Features (float [N, d]) and labels (int64 [N]) of a training set in; which rows to leave out, out."""

    source: ClassVar[str]

    def __call__(self, features: Tensor, labels: Tensor, *, key: Key) -> Detection: ...


class Guarded(Protocol):
    """A network that is watched while it predicts."""

    def predict(self, images: Tensor) -> Tensor:
        """uint8 [M, C, H, W] to int64 [M]."""

    def flagged(self, images: Tensor) -> Tensor:
        """Which images (uint8 [M, C, H, W]) it holds for triggered: bool [M]."""


class Guard(Protocol):
    """A trained network and a few clean labelled images in, a watched one out."""

    source: ClassVar[str]

    def __call__(
        self, model: nn.Module, clean: ImageDataset, *, key: Key, journal: Journal | None = None
    ) -> Guarded: ...


class Condense(Protocol):
    """Dirty data in, a small synthetic data set out, on which :func:`poisonkit.train.fit` trains as on any."""

    source: ClassVar[str]

    def __call__(self, data: ImageDataset, *, key: Key, journal: Journal | None = None) -> ImageDataset: ...
