"""Bagging: base models on random bags of rows, and a certificate that holds with a stated confidence.

Jia, Cao and Gong, "Intrinsic Certified Robustness of Bagging against Data Poisoning Attacks", AAAI 2021,
arXiv 2008.04495.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from poisonkit.defenses.certified.aggregation import Aggregation
from poisonkit.defenses.certified.ensemble import Bagged
from poisonkit.defenses.certified.partition import Split
from poisonkit.errors import require
from poisonkit.random import Key
from poisonkit.types import ImageDataset


@dataclass(frozen=True)
class Bagging(Aggregation):
    """Train each base model on rows drawn with replacement; an input is certified unless its vote is too close.

    The probability is over the draws, so the key must be unknown to whoever makes the rows.

    partitions   how many base models, each with a bag of its own
    scale_width  off here: how many bags there are says nothing of how many rows each holds
    bag          rows in a bag, whatever the size of the data set: the certificate needs it fixed
    alpha        the certificates of all inputs asked for together hold with probability 1 - alpha over the draws
    """

    source: ClassVar[str] = "Jia, Cao, Gong 2021, arXiv 2008.04495"
    budget: ClassVar[str] = "rows inserted, deleted or replaced"

    scale_width: bool = False
    bag: int = 100
    alpha: float = 0.001

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.bag >= 1, "bag", "1 row or more", self.bag)
        require(0 < self.alpha < 1, "alpha", "between 0 and 1", self.alpha)

    def split(self, data: ImageDataset, key: Key) -> Split:
        """The bags: independent uniform draws with replacement, by row."""
        require(len(data) > 0, "data", "at least one row to draw from", len(data))
        draws = torch.arange(self.bag)
        bags = (key.child("bag", i).below((len(data),), draws)[:, 0] for i in range(self.partitions))
        return Split(tuple(bags), len(data))

    def ensemble(self, models: Mapping[int, nn.Module], num_classes: int, split: Split) -> Bagged:
        """Plurality; radius -1 where the bounds on the two leading classes overlap."""
        return Bagged(models, num_classes, self.order, rows=split.total, bag=self.bag, alpha=self.alpha)
