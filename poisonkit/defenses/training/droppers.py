"""What EPIC is measured against in Figures 2 and 3 of its paper: other rules for rows to drop, on the same schedule.

Yu Yang, Tian Yu Liu, Baharan Mirzasoleiman, "Not All Poisons are Created Equal: Robust Training against Data
Poisoning", ICML 2022, https://arxiv.org/abs/2210.09671, section 3.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from fractions import Fraction
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from poisonkit.defenses.training.dropping import Dropping, Outputs
from poisonkit.errors import require
from poisonkit.random import Key

_SOURCE = "Yang et al. 2022, arXiv 2210.09671, section 3.3"


@dataclass(frozen=True)
class LowestConfidence(Dropping):
    """Drops the rows whose most probable class has a probability below ``threshold``: 0.25 and 0.5 in the paper."""

    source: ClassVar[str] = _SOURCE

    threshold: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.threshold <= 1, "threshold", "a probability in [0, 1]", self.threshold)

    def drops(self, outputs: Outputs, key: Key) -> Tensor:
        return outputs.logits.softmax(1).amax(1) < self.threshold


@dataclass(frozen=True)
class HighestLoss(Dropping):
    """Drops the rows whose cross entropy is above ``threshold`` nats: 1 and 2 in the paper."""

    source: ClassVar[str] = _SOURCE

    threshold: float = 1.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.threshold >= 0, "threshold", "0 nats or more", self.threshold)

    def drops(self, outputs: Outputs, key: Key) -> Tensor:
        return cross_entropy(outputs.logits, outputs.labels, reduction="none") > self.threshold


@dataclass(frozen=True)
class RandomSubset(Dropping):
    """Drops a random ``share`` of the rows that are left, at every look."""

    source: ClassVar[str] = _SOURCE

    share: float = 0.05

    def __post_init__(self) -> None:
        super().__post_init__()
        require(0 <= self.share < 1, "share", "in [0, 1)", self.share)

    def drops(self, outputs: Outputs, key: Key) -> Tensor:
        labels = outputs.labels
        gone = torch.zeros(len(labels), dtype=torch.bool, device=labels.device)
        gone[key.permutation(len(labels), labels.device)[: int(Fraction(str(self.share)) * len(labels))]] = True
        return gone
