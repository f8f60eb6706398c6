"""Deep Partition Aggregation, with the practice of Wang and Feizi.

Levine and Feizi, "Deep Partition Aggregation: Provable Defense against General Poisoning Attacks",
ICLR 2021, arXiv 2006.14768. Wang and Feizi, "On Practical Aspects of Aggregation Defenses against
Data Poisoning Attacks", arXiv 2306.16415, 2023: hashing by weighted sums (section 4.1) and base
models narrowed by the square root of their number (section 3.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import nn

from poisonkit.defenses.certified.aggregation import Hashed
from poisonkit.defenses.certified.ensemble import Ensemble
from poisonkit.defenses.certified.partition import Split, partition
from poisonkit.random import Key
from poisonkit.types import ImageDataset


@dataclass(frozen=True)
class DPA(Hashed):
    """Train base models on disjoint rows and let them vote; at most k // 2 rows can be certified against."""

    source: ClassVar[str] = "Levine and Feizi 2021, arXiv 2006.14768; Wang and Feizi 2023, arXiv 2306.16415"

    def split(self, data: ImageDataset, key: Key) -> Split:
        """Every row in the one partition h₀ mod k."""
        return partition(data, self.partitions, key=key.child("hash"), home=self.hash, hash_label=self.hash_label)

    def ensemble(self, models: Mapping[int, nn.Module], num_classes: int, split: Split) -> Ensemble:
        """Plurality; ties to the class that comes first in ``order``."""
        return Ensemble(models, num_classes, self.order)
