"""Finite Aggregation: smaller buckets, each feeding several base models, certify more than disjoint partitions.

Wang, Levine and Feizi, "Improved Certified Defenses against Data Poisoning with (Deterministic) Finite
Aggregation", ICML 2022, arXiv 2202.02628.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from poisonkit.defenses.certified.aggregation import Hashed
from poisonkit.defenses.certified.ensemble import Ensemble
from poisonkit.defenses.certified.partition import Split, partition
from poisonkit.errors import require
from poisonkit.random import Key
from poisonkit.types import ImageDataset


@dataclass(frozen=True)
class FiniteAggregation(Hashed):
    """Train k·d base models, each on d of k·d buckets of rows, and certify by how many of them a bucket feeds.

    spread  d: the base models that a row reaches; 1 is DPA
    """

    source: ClassVar[str] = "Wang, Levine, Feizi 2022, arXiv 2202.02628"

    spread: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.spread >= 1, "spread", "at least 1", self.spread)

    def split(self, data: ImageDataset, key: Key) -> Split:
        """Bucket h = h₀ mod k·d feeds the base models (h + s) mod k·d, for d shifts s drawn from the key."""
        buckets = self.partitions * self.spread
        drawn = key.child("shifts").permutation(buckets)[: self.spread].tolist() if self.spread > 1 else [0]
        return partition(
            data,
            buckets,
            key=key.child("hash"),
            shifts=tuple(drawn),
            home=self.hash,
            hash_label=self.hash_label,
        )

    def ensemble(self, models: Mapping[int, nn.Module], num_classes: int, split: Split) -> Ensemble:
        """Plurality; ties to the class that comes first in ``order``."""
        return Ensemble(models, num_classes, self.order, split.shifts)
