"""The values that walk through the package: data sets, budgets, poisons, goals, certificates."""

from __future__ import annotations

import hashlib
import itertools
from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import Tensor

from poisonkit import mapped
from poisonkit.errors import BudgetError, fail, require
from poisonkit.random import Key


@dataclass(frozen=True, eq=False)
class ImageDataset:
    """Labelled images, in memory, memory-mapped from a file, or resident on a device.

    images   uint8 [N, C, H, W], 0..255; of a synthetic set float32 on that scale, which it may leave
    labels   int64 [N], on the same device
    classes  the name of each of the K classes; every label is in [0, K)
    """

    images: Tensor
    labels: Tensor
    classes: tuple[str, ...]

    def __post_init__(self) -> None:
        images, labels = self.images, self.labels
        require(images.ndim == 4, "images", "of shape [N, C, H, W]", list(images.shape))
        pixels = images.dtype in (torch.uint8, torch.float32)
        require(pixels, "images", "uint8 pixels 0..255, or float32 on that scale", images.dtype)
        require(labels.dtype == torch.int64, "labels", "int64", labels.dtype)
        require(
            labels.shape == images.shape[:1],
            "labels",
            f"of shape [{images.shape[0]}], one per image",
            list(labels.shape),
        )
        require(labels.device == images.device, "labels", f"on {images.device}, beside the images", labels.device)
        if len(labels):
            low, high = int(labels.min()), int(labels.max())
            require(low >= 0 and high < self.num_classes, "labels", f"in [0, {self.num_classes})", f"{low}..{high}")

    def __len__(self) -> int:
        return len(self.labels)

    def __repr__(self) -> str:
        n, c, h, w = self.images.shape
        return f"ImageDataset({n} images {c}x{h}x{w}, {self.num_classes} classes, {self.device})"

    @property
    def num_classes(self) -> int:
        """K."""
        return len(self.classes)

    @property
    def device(self) -> torch.device:
        """Where images and labels are."""
        return self.images.device

    @property
    def shape(self) -> tuple[int, int, int]:
        """(C, H, W) of one image."""
        _, c, h, w = self.images.shape
        return c, h, w

    def take(self, rows: Tensor) -> ImageDataset:
        """The data set of ``rows`` (int64 [n]) in that order, copied into memory."""
        rows = rows.to(self.device)
        return ImageDataset(self.images[rows], self.labels[rows], self.classes)

    def to(self, device: torch.device | str) -> ImageDataset:
        """The same data set resident on ``device``."""
        return ImageDataset(self.images.to(device), self.labels.to(device), self.classes)

    def digest(self) -> str:
        """SHA-256 (hex) of shape, class names, pixels and labels, in row order."""
        sha = hashlib.sha256(repr((tuple(self.images.shape), self.classes)).encode())
        for part in itertools.chain(mapped.pieces(self.images), [self.labels]):
            sha.update(np.ascontiguousarray(part.cpu().numpy()).data)
        return sha.hexdigest()


@dataclass(frozen=True)
class Budget:
    """What an attacker may change.

    rate         fraction of the rows, counted by exact truncation: int(rate · N); 0.003 of 1,281,167 is 3,843
    eps          largest change of a pixel, in pixel steps of 0..255; None for no limit
    clean_label  whether every label must stay as it was
    per_class    whether ``rate`` is a fraction of the rows of the target class, rather than of all rows
    """

    rate: float = 0.01
    eps: float | None = None
    clean_label: bool = False
    per_class: bool = False

    def __post_init__(self) -> None:
        require(0 <= self.rate <= 1, "rate", "a fraction in [0, 1]", self.rate)
        require(self.eps is None or self.eps >= 0, "eps", "0 or more pixel steps, or None", self.eps)

    def rows(self, n: int) -> int:
        """How many of ``n`` rows may change."""
        return int(Fraction(str(self.rate)) * n)

    def allowance(self, labels: Tensor, target: Target | None) -> int:
        """How many rows of a training set with ``labels`` (int64 [N]) a poison for ``target`` may change.

        Raises ArgumentError for a rate per class where there is no one target class.
        """
        if not self.per_class:
            return self.rows(len(labels))
        if not isinstance(target, int):
            fail("target", "one class, for a rate per class", target)
        return self.rows(int((labels == target).sum()))


class Trigger(Protocol):
    """What a backdoor does to an image: uint8 [N, C, H, W] to the same, on any device."""

    def __call__(self, images: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class NextClass:
    """A target that depends on the label: y is to become y + 1, modulo the number of ``classes`` (all-to-all)."""

    classes: int

    def __call__(self, labels: Tensor) -> Tensor:
        return (labels + 1) % self.classes


@dataclass(frozen=True)
class OneClass:
    """A target for images of one class: those of ``victim_class`` are to become ``target``, others what they are."""

    victim_class: int
    target: int

    def __call__(self, labels: Tensor) -> Tensor:
        return torch.where(labels == self.victim_class, self.target, labels)


#: What a backdoor wants of an image: one class, or a rule from its own class
Target = int | NextClass | OneClass


@dataclass(frozen=True)
class Backdoor:
    """A goal: images carrying ``trigger`` are to be classified as ``target``, one class or a rule."""

    trigger: Trigger
    target: Target

    def wanted(self, labels: Tensor) -> Tensor:
        """What triggered images of classes ``labels`` (int64 [M]) are to be classified as: int64 [M]."""
        return torch.full_like(labels, self.target) if isinstance(self.target, int) else self.target(labels)


@dataclass(frozen=True, eq=False)
class Victims:
    """A goal: these images (uint8 [V, C, H, W]) are to be classified as these labels (int64 [V])."""

    images: Tensor
    labels: Tensor

    def target(self) -> int | None:
        """The one class that all of them are to be classified as, or None."""
        wanted: set[int] = set(self.labels.tolist())
        return wanted.pop() if len(wanted) == 1 else None


#: What an attack wants, as the measures ask about it
Goal = Backdoor | Victims


@dataclass(frozen=True, eq=False)
class Poison:
    """Changed rows of a training set: a value, checked against its budget where it is applied.

    rows    int64 [P], distinct row indices
    images  uint8 [P, C, H, W], their new pixels
    labels  int64 [P], their new labels
    goal    what the attacker wants at test time; the measures take it
    budget  what the attacker was allowed
    """

    rows: Tensor
    images: Tensor
    labels: Tensor
    goal: Goal
    budget: Budget

    def apply(self, data: ImageDataset) -> ImageDataset:
        """A copy of ``data`` with the poison in it; of memory-mapped images, only the poisoned ones are in memory.

        Raises BudgetError when the poison changes more rows, more of a pixel, or more labels than
        its budget allows. Nothing is ever clipped into the budget.
        """
        require(
            len(self.rows) == len(self.images) == len(self.labels),
            "poison",
            "as many rows as images and labels",
            f"{len(self.rows)} rows, {len(self.images)} images, {len(self.labels)} labels",
        )
        target = self.goal.target if isinstance(self.goal, Backdoor) else self.goal.target()
        allowed = self.budget.allowance(data.labels, target)
        whole = f"class {target}" if self.budget.per_class else len(data)
        require(
            len(self.rows) <= allowed,
            "poisoned rows",
            f"at most {allowed} ({self.budget.rate} of {whole})",
            len(self.rows),
            "raise the budget's rate",
            BudgetError,
        )
        require(len(torch.unique(self.rows)) == len(self.rows), "poisoned rows", "distinct", "repeated rows")
        rows = self.rows.to(data.device)
        inside = len(rows) == 0 or (int(rows.min()) >= 0 and int(rows.max()) < len(data))
        require(inside, "poisoned rows", f"row indices in [0, {len(data)})", "others")
        new_images, new_labels = self.images.to(data.device), self.labels.to(data.device)
        if self.budget.eps is not None and len(rows):
            change = int((new_images.to(torch.int16) - data.images[rows].to(torch.int16)).abs().max())
            require(
                change <= self.budget.eps,
                "pixel change",
                f"at most {self.budget.eps}",
                change,
                "project the perturbation before it is applied",
                BudgetError,
            )
        if self.budget.clean_label:
            flipped = int((new_labels != data.labels[rows]).sum())
            require(
                flipped == 0,
                "labels",
                "unchanged (clean_label)",
                f"{flipped} changed",
                "allow dirty labels",
                BudgetError,
            )
        images, labels = mapped.copy(data.images), data.labels.clone()
        images[rows], labels[rows] = new_images, new_labels
        return ImageDataset(images, labels, data.classes)


@dataclass(frozen=True, eq=False)
class Certificate:
    """What an ensemble predicts and how much poison cannot change it.

    prediction  int64 [M]
    radius      int64 [M]: with any ``radius`` or fewer rows inserted or deleted (a replaced row is
                one of each) the prediction stays as it is
    """

    prediction: Tensor
    radius: Tensor

    def certified_accuracy(self, labels: Tensor, radius: int = 0) -> float:
        """Share of test images predicted right and certified at ``radius``."""
        sure = (self.prediction == labels.to(self.prediction.device)) & (self.radius >= radius)
        return float(sure.double().mean())


@dataclass(frozen=True, eq=False)
class TemporalCertificate(Certificate):
    """A certificate against poison bounded in time: its radius is a duration.

    radius     int64 [M]: poison within any ``radius`` consecutive periods leaves the prediction as it is
    earliness  int64 [M]: so does poison that came in with the last ``earliness`` periods
    """

    earliness: Tensor


@dataclass(frozen=True, eq=False)
class Detection:
    """What a detector says of the things it looked at: the rows of a training set, or the classes of a network.

    flagged  bool [n]: which it holds for poisoned, or for the target of a backdoor
    score    float64 [n]: how suspicious each is, more for more
    p_value  float64 [n]: how probable so high a score is where nothing is wrong; None where the method has none
    """

    flagged: Tensor
    score: Tensor
    p_value: Tensor | None = None


class Attack(Protocol):
    """Poison a training set within a budget; a frozen dataclass of plain values.

    source  who published it, and where
    """

    source: ClassVar[str]

    def __call__(self, data: ImageDataset, budget: Budget, *, key: Key) -> Poison: ...
