"""A run directory in which networks are trained and asked, each once: what every study here is made of."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import nn

from poisonkit.defenses.certified import Aggregation, Ballots, Ensemble, Split
from poisonkit.engine import Engine, Progress, Run, journal, units
from poisonkit.experiments.measures import poll
from poisonkit.random import Key
from poisonkit.train import Job, Journal, Recipe, stack_size
from poisonkit.types import ImageDataset, Poison


@dataclass(frozen=True, eq=False)
class Networks:
    """Trained networks by the id of their job, and how long all of them were trained."""

    models: dict[int, nn.Module]
    seconds: float


@dataclass(frozen=True, eq=False)
class Lab:
    """Where a study works, and on what.

    train   the training set, before any attack; where it lies, which may be a disk
    test    on the device that trains and predicts
    recipe  of a network that sees all rows
    """

    run: Run
    train: ImageDataset
    test: ImageDataset
    recipe: Recipe
    key: Key
    engine: Engine
    progress: Progress

    def split(self, name: str, defense: Aggregation, data: ImageDataset) -> Split:
        """How ``defense`` divides ``data``, kept as ``name``/split."""
        return Split.of(
            self.run.tensors(f"{name}/split", lambda: defense.split(data, self.key.child("defense")).tensors())
        )

    def networks(self, name: str, jobs: Sequence[Job]) -> Networks:
        """The networks of ``jobs``, which are of one data set and one recipe, kept below ``name``."""
        data, device = jobs[0].data, self.test.device
        size = stack_size(jobs[0].recipe, data.shape, data.num_classes, len(jobs), device.type)
        work = units.stacks(name, jobs, size)
        self.engine(self.run, work, self.progress)
        return Networks(units.load(self.run, work, device), units.seconds(self.run, work))

    def ask(self, name: str, ensemble: Ensemble, poison: Poison | None) -> dict[str, Ballots]:
        """What the base models say of the clean and of the triggered test images, kept below ``name``."""
        return poll(self.run, name, ensemble, self.test, poison)

    @contextmanager
    def journal(self, name: str) -> Iterator[Journal]:
        """Where a method that is no unit of networks keeps its place, below ``name``: one process at a time."""
        with self._alone(f"{name}/journal"):
            yield journal(self.run, name, self.progress)

    @contextmanager
    def alone(self) -> Iterator[None]:
        """The whole run, for what no two processes can share the work of."""
        with self._alone("report"):
            yield

    @contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        with self.run.lock(name, tell=self.progress.waits(f"{name} in {self.run.directory}")):
            yield
