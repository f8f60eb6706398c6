"""Rows that a network learns too easily: how to make it learn them first, and which they are.

Of Anti-Backdoor Learning, https://arxiv.org/abs/2110.11571, which :mod:`poisonkit.defenses.training.abl` is.
"""

from __future__ import annotations

from fractions import Fraction
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from poisonkit.models import logits
from poisonkit.random import Key
from poisonkit.train import Batch, Recipe
from poisonkit.train.finetuning import FineTuning
from poisonkit.types import ImageDataset

# Rows whose outputs are in memory at a time
_PIECE = 8192

Shape = Literal["none", "lga", "flooding"]


def shaped(loss: Tensor, shape: Shape, gamma: float) -> Tensor:
    """A batch's mean loss kept about ``gamma``, so that only the easiest rows stay below.

    "lga", local gradient ascent: sign(l - γ)·l. "flooding": |l - γ| + γ.
    """
    if shape == "lga":
        return (loss.detach() - gamma).sign() * loss
    return (loss - gamma).abs() + gamma if shape == "flooding" else loss


class Isolating(FineTuning):
    """Fine-tuning on the :func:`shaped` loss."""

    def __init__(
        self, recipe: Recipe, rows: int, *, shape: Shape, gamma: float, clip: float | None = None, key: Key
    ) -> None:
        super().__init__(recipe, rows, clip=clip, key=key)
        self.shape, self.gamma = shape, gamma

    def __repr__(self) -> str:
        return f"{super().__repr__()[:-1]}, {self.shape}, {self.gamma})"

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        loss, scores = super().loss(model, batch)
        return shaped(loss, self.shape, self.gamma), scores


class Ascent(FineTuning):
    """Unlearning: steps up the cross entropy."""

    def loss(self, model: nn.Module, batch: Batch) -> tuple[Tensor, Tensor]:
        loss, scores = super().loss(model, batch)
        return -loss, scores


def outcomes(model: nn.Module, data: ImageDataset, noise: float = 0.0, key: Key | None = None) -> dict[str, Tensor]:
    """What a network makes of every row: "loss", "confidence" (float32 [N]) and "predicted" (int64 [N]), on the CPU.

    ``noise`` is the standard deviation of what is added to its logits, drawn from ``key``.
    """
    found = []
    for start in range(0, len(data), _PIECE):
        part = slice(start, start + _PIECE)
        scores = logits(model, data.images[part]).cpu()
        if noise and key:
            scores += noise * torch.randn(scores.shape, generator=key.child("noise", start).generator())
        confidence, predicted = scores.softmax(1).max(1)
        found.append((cross_entropy(scores, data.labels[part].cpu(), reduction="none"), confidence, predicted))
    columns = zip(*found, strict=True)
    return dict(zip(("loss", "confidence", "predicted"), map(torch.cat, columns), strict=True))


def lowest(losses: Tensor, share: float) -> Tensor:
    """Which rows have the ``share`` of lowest losses, by exact truncation, ties to the first: bool [N]."""
    count = int(Fraction(str(share)) * len(losses))
    isolated = torch.zeros(len(losses), dtype=torch.bool)
    isolated[losses.argsort(stable=True)[:count]] = True
    return isolated
