"""Deep Partition Aggregation, with the practice of Wang and Feizi.

Levine and Feizi, "Deep Partition Aggregation: Provable Defense against General Poisoning Attacks",
ICLR 2021, arXiv 2006.14768. Wang and Feizi, "On Practical Aspects of Aggregation Defenses against
Data Poisoning Attacks", arXiv 2306.16415, 2023: hashing by weighted sums (section 4.1) and base
models narrowed by the square root of their number (section 3.1).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from torch import nn

from poisonkit import certificates
from poisonkit.defenses.certified.ensemble import Ensemble
from poisonkit.defenses.certified.partition import Hash, Partitioning, partition
from poisonkit.errors import require
from poisonkit.random import Key
from poisonkit.train import Job, OnEpoch, Recipe, fit_job
from poisonkit.types import ImageDataset


@dataclass(frozen=True)
class DPA:
    """Train ``partitions`` base models on disjoint rows and let them vote.

    partitions   k; at most k // 2 inserted or deleted rows can be certified against, a replaced row being two
    scale_width  divide the recipe's base width by √k, to the nearest even integer
    hash         ``weighted_sum`` or, as the older baseline, ``pixel_sum``
    hash_label   hash the label along with the image: a changed label then hits two partitions, not one
    order        all classes, the one that wins ties first; None for 0, 1, ..., K-1, as in the paper
    """

    source: ClassVar[str] = "Levine and Feizi 2021, arXiv 2006.14768; Wang and Feizi 2023, arXiv 2306.16415"

    partitions: int = 16
    scale_width: bool = True
    hash: Hash = "weighted_sum"
    hash_label: bool = False
    order: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        require(self.partitions >= 1, "partitions", "at least 1", self.partitions)
        require(self.hash in ("weighted_sum", "pixel_sum"), "hash", "weighted_sum or pixel_sum", self.hash)

    def check(self, num_classes: int) -> None:
        """Raise ArgumentError where this defense cannot vote among ``num_classes`` classes."""
        certificates.class_order(num_classes, self.order)

    def split(self, data: ImageDataset, key: Key) -> Partitioning:
        """Which rows each base model gets."""
        return partition(data, self.partitions, key=key.child("hash"), home=self.hash, hash_label=self.hash_label)

    def base(self, recipe: Recipe) -> Recipe:
        """The recipe of a base model."""
        return replace(recipe, model=recipe.model.scaled(self.partitions)) if self.scale_width else recipe

    def jobs(self, data: ImageDataset, recipe: Recipe, *, key: Key, parts: Partitioning | None = None) -> list[Job]:
        """One job for each partition; ``parts`` is ``split(data, key)`` where the caller has it already.

        Nothing in a job depends on another partition's rows or their number.
        """
        parts, base = parts or self.split(data, key), self.base(recipe)
        return [Job(i, data, rows, base, key.child("partition", i)) for i, rows in enumerate(parts.rows)]

    def fit(self, job: Job, *, directory: Path | None = None, on_epoch: OnEpoch | None = None) -> nn.Module:
        """Train one base model; with a ``directory``, resumably."""
        return fit_job(job, directory=directory, on_epoch=on_epoch)

    def gather(self, models: Mapping[int, nn.Module], num_classes: int) -> Ensemble:
        """The ensemble of the trained base models."""
        require(len(models) == self.partitions, "models", f"all {self.partitions}", len(models))
        return Ensemble(models, num_classes, self.order)

    def __call__(self, data: ImageDataset, recipe: Recipe, *, key: Key) -> Ensemble:
        """Train every base model here, one after the other."""
        return self.gather({job.partition: self.fit(job) for job in self.jobs(data, recipe, key=key)}, data.num_classes)
