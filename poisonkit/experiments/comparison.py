"""The main job: poison a training set, train undefended and with a certified defense, and measure both.

Wang and Feizi, arXiv 2306.16415, sections 4 and 5: beside the ensemble stand its two baselines, the
single model trained on everything and the single model trained on 1/k of the data.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from poisonkit.defenses.certified import Aggregation, Ensemble, Split
from poisonkit.engine import Progress, Run, Unit, units
from poisonkit.errors import RunError, require
from poisonkit.experiments.contents import CONTENTS, digests
from poisonkit.experiments.findings import Finding
from poisonkit.experiments.measures import Row, apart, mean, measure, poll
from poisonkit.random import Key
from poisonkit.train import Job, Recipe, stack_size
from poisonkit.types import Attack, Backdoor, Budget, ImageDataset, Poison


@dataclass(frozen=True, eq=False)
class Comparison:
    """The rows of the table, the undefended network first and the defense last.

    before, after  some poisoned rows, uint8 [n, C, H, W]
    budget, split  what a certified radius counts, and how the data were split; None where nothing is certified
    findings       what the defense found on its way
    """

    rows: tuple[Row, ...]
    before: Tensor
    after: Tensor
    budget: str | None = None
    split: Split | None = None
    findings: tuple[Finding, ...] = ()


def prepare(
    train: ImageDataset,
    test: ImageDataset,
    *,
    attack: Attack | None,
    budget: Budget,
    defense: object,
    key: Key,
) -> Poison | None:
    """The poison of a comparison; raises ArgumentError, before anything is trained, for what cannot be compared."""
    require(train.shape == test.shape, "test images", f"of shape {train.shape}, as the training images", test.shape)
    require(len(train) > 0 and len(test) > 0, "data", "at least one training and one test image", (train, test))
    pixels = attack is None or train.images.dtype == torch.uint8
    remedy = "attack what they were condensed from"
    require(pixels, "training images", "bytes, for an attack to change", "floats", remedy)
    if isinstance(defense, Aggregation):
        defense.check(train.num_classes)
    # a targeted attack knows the images it is after
    known = {"victims": test} if getattr(attack, "needs_victims", False) else {}
    poison = attack(train, budget, key=key.child("attack"), **known) if attack else None
    if poison and isinstance(poison.goal, Backdoor):
        poison.goal.trigger(test.images[:1])
        other = bool((test.labels != poison.goal.wanted(test.labels)).any())
        require(other, "test images", f"not all of the target class {poison.goal.target}", "no other")
    return poison


@dataclass(frozen=True, eq=False)
class Work:
    """What a comparison trains: the undefended network, the base models in stacks, and how the data were split."""

    undefended: Unit
    bases: tuple[Unit, ...]
    split: Split

    @property
    def units(self) -> list[Unit]:
        """The undefended network first, since it takes longest."""
        return [self.undefended, *self.bases]


def stacking(
    train: ImageDataset, *, defense: Aggregation, recipe: Recipe, key: Key, device: str, size: int | None
) -> tuple[int, int]:
    """How many base models to train together (``size``, or as many as is fastest), and how many stacks those are."""
    jobs = defense.jobs(train.take(torch.arange(1)), recipe, key=key.child("defense"))  # as many as for all rows
    size = size or stack_size(jobs[0].recipe, train.shape, train.num_classes, len(jobs), device)
    return size, -(-len(jobs) // size)


def poisoned(run: Run, train: ImageDataset, poison: Poison | None, progress: Progress) -> ImageDataset:
    """The data that networks are trained on; the poison is kept in ``run``."""
    if not poison:
        return train
    changed = {"rows": poison.rows, "images": poison.images, "labels": poison.labels}
    kept = run.tensors("poison", lambda: changed)
    same = all(torch.equal(kept[part], changed[part].cpu()) for part in changed)
    remedy = "bring back the trigger it was made with, or --overwrite to start afresh"
    require(same, f"the poison of {run.directory}", "what it was", "another", remedy, RunError)
    progress.line(f"{len(poison.rows)} of {len(train)} training rows poisoned")
    return poison.apply(train)


def undefended(dirty: ImageDataset, recipe: Recipe, key: Key) -> Unit:
    """The network that is trained on all rows as on any."""
    return units.single("undefended", Job(0, dirty, torch.arange(len(dirty)), recipe, key.child("undefended")))


def arrange(
    run: Run,
    train: ImageDataset,
    *,
    poison: Poison | None,
    defense: Aggregation,
    name: str,
    recipe: Recipe,
    key: Key,
    stack: int,
    progress: Progress,
) -> Work:
    """What there is to train; the poison and the split are kept in ``run``. ``name`` is the defense's."""
    dirty = poisoned(run, train, poison, progress)

    def divided() -> dict[str, Tensor]:
        found = defense.split(dirty, key.child("defense"))
        return {
            **found.tensors(),
            CONTENTS: digests(defense.jobs(dirty, recipe, key=key.child("defense"), split=found)),
        }

    split = Split.of(run.tensors(f"{name}/split", divided))
    progress.line(
        f"{name}: {len(split.sizes)} base models of {min(split.sizes)} to {max(split.sizes)} rows, "
        f"{split.collisions} hash collisions, {split.duplicates} duplicate rows"
    )
    jobs = defense.jobs(dirty, recipe, key=key.child("defense"), split=split)
    return Work(undefended(dirty, recipe, key), tuple(units.stacks(name, jobs, stack)), split)


def compare(
    run: Run,
    train: ImageDataset,
    test: ImageDataset,
    work: Work,
    *,
    poison: Poison | None,
    defense: Aggregation,
    name: str,
) -> Comparison:
    """Measure what was trained, on the device of ``test``, resuming what is already there."""
    rows = [baseline(run, test, work.undefended, poison)]
    split, seconds = work.split, units.seconds(run, work.bases)
    ensemble = defense.gather(units.load(run, work.bases, test.device), test.num_classes, split)
    ballots = poll(run, name, ensemble, test, poison)
    if len(split.sizes) > 1:
        bases = apart(ensemble.models, ballots, test, poison)
        share = round(split.total / max(1, sum(split.sizes) / len(split.sizes)))
        rows.append(mean(f"base model (1/{share} of data)", bases, seconds / len(bases)))
    rows.append(measure(name, ensemble, ballots, test, poison, seconds, certify=True))
    return Comparison(tuple(rows), *pictures(train, poison), defense.budget, split)


def baseline(run: Run, test: ImageDataset, unit: Unit, poison: Poison | None) -> Row:
    """What the undefended network did."""
    single = Ensemble(units.load(run, [unit], test.device), test.num_classes)
    ballots = poll(run, "undefended", single, test, poison)
    return measure("undefended", single, ballots, test, poison, units.seconds(run, [unit]), certify=False)


def pictures(train: ImageDataset, poison: Poison | None, count: int = 12) -> tuple[Tensor, Tensor]:
    """Some poisoned rows as they were and as they are, uint8 [n, C, H, W] each."""
    if poison is None:
        return train.images[:0].cpu(), train.images[:0].cpu()
    return train.images[poison.rows[:count]].cpu(), poison.images[:count].cpu()
