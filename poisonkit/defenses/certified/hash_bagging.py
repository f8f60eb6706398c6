"""Hash bagging: several independent partitions of the data, so that a row reaches one base model of each.

Chen, Li, Li, Wu and Yan, "On Collective Robustness of Bagging Against Data Poisoning", ICML 2022,
arXiv 2205.13176.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import ClassVar

from torch import nn

from poisonkit.defenses.certified.aggregation import Hashed
from poisonkit.defenses.certified.ensemble import HashBagged
from poisonkit.defenses.certified.partition import Split, partition
from poisonkit.errors import require
from poisonkit.random import Key
from poisonkit.types import ImageDataset


@dataclass(frozen=True)
class HashBagging(Hashed):
    """Partition the rows by several hash functions, train a base model on every part, and count by function.

    functions  independent hash functions; base model f·k + i sees the rows that function f sends to part i
    """

    source: ClassVar[str] = "Chen, Li, Li, Wu, Yan 2022, arXiv 2205.13176"

    functions: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.functions >= 1, "functions", "at least 1", self.functions)
        weighted = self.hash == "weighted_sum" or self.functions == 1
        require(weighted, "hash", "weighted_sum for several functions", self.hash, "there is only one pixel sum")

    def split(self, data: ImageDataset, key: Key) -> Split:
        """The parts of every function, one function after the other."""
        splits = [
            partition(data, self.partitions, key=key.child("hash", f), home=self.hash, hash_label=self.hash_label)
            for f in range(self.functions)
        ]
        rows = tuple(chain.from_iterable(split.rows for split in splits))
        return Split(rows, len(data), collisions=splits[0].collisions, duplicates=splits[0].duplicates)

    def ensemble(self, models: Mapping[int, nn.Module], num_classes: int, split: Split) -> HashBagged:
        """Plurality over all base models; ties to the class that comes first in ``order``."""
        return HashBagged(models, num_classes, self.order, functions=self.functions)
