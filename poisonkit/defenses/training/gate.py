"""The gate of Interleaved Ensemble Unlearning: what happens to every row, and the shallow network that decides it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from poisonkit.models import ViT
from poisonkit.models.vit import VisionTransformer, first_blocks
from poisonkit.random import Key
from poisonkit.train import Recipe, new_model
from poisonkit.types import ImageDataset

Exactly = Literal["flagged", "learned", "neither"]


@dataclass(frozen=True, eq=False)
class Gate:
    """What happens to every row of a training set.

    learned    bool [N]: learned as in ordinary training
    flagged    bool [N]: queued, and unlearned
    predicted  int64 [N]: what the poisoned module calls it, which is the ensemble's answer for rows not learned
    """

    learned: Tensor
    flagged: Tensor
    predicted: Tensor

    def to(self, device: torch.device) -> Gate:
        return Gate(self.learned.to(device), self.flagged.to(device), self.predicted.to(device))


def by_confidence(confidence: Tensor, threshold: float, at: Exactly) -> tuple[Tensor, Tensor]:
    """Which rows are learned, of a confidence below ``threshold``, and which are flagged, above it: bool [N] each."""
    tied = confidence == threshold
    return (confidence < threshold) | (tied & (at == "learned")), (confidence > threshold) | (tied & (at == "flagged"))


def poisoned_module(
    own: Recipe, depth: int | None, data: ImageDataset, recipe: Recipe, key: Key, model: nn.Module | None
) -> nn.Module:
    """What the gate is trained from: the first ``depth`` blocks of the network to defend, or the model of ``own``.

    The network is ``model``, or where there is none a new one of ``recipe``. Only a vision transformer has blocks.
    """
    if depth is not None and isinstance(model, VisionTransformer):
        return first_blocks(model, depth, data.num_classes, key)
    if depth is not None and model is None and isinstance(recipe.model, ViT):
        own = replace(own, model=replace(recipe.model, depth=depth, drop_path=0.0))
    return new_model(own, data, key)
