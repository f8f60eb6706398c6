"""What certified defenses share: base models on parts of the data, trained anywhere, and a vote.

A defense says which rows each base model sees (``split``) and how the votes are counted (``ensemble``).
This is the one base class of the package: the steps below are the same for all of them, and a
certificate is only as good as the weakest copy of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from torch import nn

from poisonkit import certificates
from poisonkit.defenses.certified.ensemble import Ensemble, LogitSum
from poisonkit.defenses.certified.partition import Hash, Split
from poisonkit.errors import require
from poisonkit.random import Key
from poisonkit.train import Job, OnEpoch, Recipe, fit_job
from poisonkit.types import ImageDataset


@dataclass(frozen=True)
class Aggregation:
    """The fields and steps of every certified defense.

    partitions   k: a base model sees about 1/k of the rows
    seeds        networks for each base model, whose logits are summed: the DPA* of Rezaei et al. (ICML 2023)
    scale_width  divide the recipe's base width by √k, to the nearest even integer
    order        all classes, the one that wins ties first; None for 0, 1, ..., K-1, as in the papers
    """

    source: ClassVar[str]
    budget: ClassVar[str] = "rows inserted or deleted (a replaced row is two)"  # what a certified radius counts

    partitions: int = 16
    seeds: int = 1
    scale_width: bool = True
    order: tuple[int, ...] | None = None

    def __post_init__(self) -> None:
        require(self.partitions >= 1, "partitions", "at least 1", self.partitions)
        require(self.seeds >= 1, "seeds", "at least 1", self.seeds)

    def check(self, num_classes: int) -> None:
        """Raise ArgumentError where this defense cannot vote among ``num_classes`` classes."""
        certificates.class_order(num_classes, self.order)

    def split(self, data: ImageDataset, key: Key) -> Split:
        """Which rows each base model gets: a function of what is in the rows."""
        raise NotImplementedError

    def ensemble(self, models: Mapping[int, nn.Module], num_classes: int, split: Split) -> Ensemble:
        """The vote of the base models, whose number is that of ``split``."""
        raise NotImplementedError

    def base(self, recipe: Recipe) -> Recipe:
        """The recipe of a base model."""
        return replace(recipe, model=recipe.model.scaled(self.partitions)) if self.scale_width else recipe

    def jobs(self, data: ImageDataset, recipe: Recipe, *, key: Key, split: Split | None = None) -> list[Job]:
        """The networks to train; ``split`` is ``self.split(data, key)`` where the caller has it already.

        Nothing in a job depends on the rows of other base models or their number.
        """
        split, base = split or self.split(data, key), self.base(recipe)
        return [
            Job(i * self.seeds + seed, data, rows, base, key.child("partition", i, *(("seed", seed) if seed else ())))
            for i, rows in enumerate(split.rows)
            for seed in range(self.seeds)
        ]

    def fit(self, job: Job, *, directory: Path | None = None, on_epoch: OnEpoch | None = None) -> nn.Module:
        """Train one network; with a ``directory``, resumably."""
        return fit_job(job, directory=directory, on_epoch=on_epoch)

    def gather(self, models: Mapping[int, nn.Module], num_classes: int, split: Split) -> Ensemble:
        """The ensemble of the trained networks, by the id of their job."""
        wanted = len(split.rows) * self.seeds
        missing = sorted(set(range(wanted)) - set(models))
        require(not missing, "models", f"all {wanted}", f"none for {missing[:8]}", "train those first")
        require(len(models) == wanted, "models", f"{wanted}, as many as were split for", len(models))
        if self.seeds > 1:
            ids = range(0, wanted, self.seeds)
            models = {i: LogitSum([models[first + s] for s in range(self.seeds)]) for i, first in enumerate(ids)}
        return self.ensemble(models, num_classes, split)

    def __call__(self, data: ImageDataset, recipe: Recipe, *, key: Key) -> Ensemble:
        """Train every network here, one after the other."""
        split = self.split(data, key)
        jobs = self.jobs(data, recipe, key=key, split=split)
        return self.gather({job.id: self.fit(job) for job in jobs}, data.num_classes, split)


@dataclass(frozen=True)
class Hashed(Aggregation):
    """A defense that sends rows to base models by a hash of what they hold.

    hash        ``weighted_sum`` or, as the older baseline, ``pixel_sum``
    hash_label  hash the label along with the image: a changed label then hits two partitions, not one
    """

    hash: Hash = "weighted_sum"
    hash_label: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.hash in ("weighted_sum", "pixel_sum"), "hash", "weighted_sum or pixel_sum", self.hash)
