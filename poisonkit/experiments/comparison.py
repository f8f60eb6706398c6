"""The main job: poison a training set, train undefended and with a certified defense, and measure both.

Wang and Feizi, arXiv 2306.16415, sections 4 and 5: beside the ensemble stand its two baselines, the
single model trained on everything and the single model trained on 1/k of the data.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from poisonkit import certificates, metrics
from poisonkit.defenses.certified import Aggregation, Ensemble, Split
from poisonkit.engine import Progress, Run, train_ensemble, train_model
from poisonkit.errors import require
from poisonkit.random import Key
from poisonkit.train import Job, Recipe, fit_job
from poisonkit.types import Attack, Backdoor, Budget, ImageDataset, Poison

GUESSES = (1, 3, 5, 10, 20, 50, 100)


@dataclass(frozen=True)
class Row:
    """What one classifier did.

    guesses    acc@n by n: the label is among the n most-voted classes
    certified  by n, acc@n certified at radius 0, 1, 2, ...; None for a single model, which has no certificate
    seconds    training time; of one base model for the 1/k baseline
    """

    name: str
    clean_accuracy: float
    attack_success_rate: float | None
    poison_accuracy: float | None
    guesses: dict[int, float]
    certified: dict[int, tuple[float, ...]] | None
    seconds: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """The rows of the table; how the data were split; some poisoned rows before and after, uint8 [n, C, H, W]."""

    rows: tuple[Row, ...]
    split: Split
    before: Tensor
    after: Tensor


def prepare(
    train: ImageDataset,
    test: ImageDataset,
    *,
    attack: Attack | None,
    budget: Budget,
    defense: Aggregation,
    key: Key,
) -> Poison | None:
    """The poison of a comparison; raises ArgumentError, before anything is trained, for what cannot be compared."""
    require(train.shape == test.shape, "test images", f"of shape {train.shape}, as the training images", test.shape)
    require(len(train) > 0 and len(test) > 0, "data", "at least one training and one test image", (train, test))
    defense.check(train.num_classes)
    poison = attack(train, budget, key=key.child("attack")) if attack else None
    if poison and isinstance(poison.goal, Backdoor):
        poison.goal.trigger(test.images[:1])
        other = bool((test.labels != poison.goal.target).any())
        require(other, "test images", f"not all of the target class {poison.goal.target}", "no other")
    return poison


def compare(
    run: Run,
    train: ImageDataset,
    test: ImageDataset,
    *,
    poison: Poison | None,
    defense: Aggregation,
    name: str,
    recipe: Recipe,
    key: Key,
    progress: Progress,
) -> Comparison:
    """Run the main job in ``run``, resuming what is already there; ``name`` is the defense's."""
    dirty = poison.apply(train) if poison else train
    if poison:
        run.tensors("poison", lambda: {"rows": poison.rows, "images": poison.images, "labels": poison.labels})
        progress.line(f"{len(poison.rows)} of {len(train)} training rows poisoned")

    everything = Job(0, dirty, torch.arange(len(dirty)), recipe, key.child("undefended"))
    progress.status(f"undefended: {len(dirty)} rows")
    model, seconds = train_model(run, "undefended", fit_job, everything, progress)
    progress.line("undefended: trained")
    undefended = _votes(run, "undefended", Ensemble({0: model}, test.num_classes), test, poison)
    rows = [_row("undefended", undefended, test, poison, seconds, certify=False)]

    split = Split.of(run.tensors(f"{name}/split", lambda: defense.split(dirty, key.child("defense")).tensors()))
    progress.line(
        f"{name}: {len(split.sizes)} base models of {min(split.sizes)} to {max(split.sizes)} rows, "
        f"{split.collisions} hash collisions, {split.duplicates} duplicate rows"
    )
    jobs = defense.jobs(dirty, recipe, key=key.child("defense"), split=split)
    ensemble, seconds = train_ensemble(run, name, defense, jobs, split, progress)
    votes = _votes(run, name, ensemble, test, poison)
    if len(jobs) > 1:
        singles = [
            _row("", {part: top[i : i + 1] for part, top in votes.items()}, test, poison, 0.0, certify=False)
            for i in range(len(jobs))
        ]
        rows.append(_mean(f"base model (1/{len(jobs)} of data)", singles, seconds / len(jobs)))
    rows.append(_row(name, votes, test, poison, seconds, certify=True, order=ensemble.order))
    return Comparison(tuple(rows), split, *_pictures(train, poison))


def _votes(run: Run, name: str, ensemble: Ensemble, test: ImageDataset, poison: Poison | None) -> dict[str, Tensor]:
    """Ranked classes of every base model on clean and on triggered test images, [k, M, n], kept in the run."""
    deepest = max(n for n in GUESSES if n < test.num_classes)
    small = torch.uint8 if test.num_classes <= 256 else torch.uint16

    def compute() -> dict[str, Tensor]:
        images = {"clean": test.images}
        if poison and isinstance(poison.goal, Backdoor):
            images["triggered"] = poison.goal.trigger(test.images)
        return {part: ensemble.top(pixels, deepest).to(small) for part, pixels in images.items()}

    return run.tensors(f"{name}/votes", compute)


def _row(
    name: str,
    votes: dict[str, Tensor],
    test: ImageDataset,
    poison: Poison | None,
    seconds: float,
    *,
    certify: bool,
    order: tuple[int, ...] | None = None,
) -> Row:
    labels, classes = test.labels.cpu(), test.num_classes
    prediction, _ = certificates.dpa(votes["clean"][..., 0], classes, order)
    attacked = poison_accuracy = None
    if poison and isinstance(poison.goal, Backdoor):
        target, other = poison.goal.target, labels != poison.goal.target
        triggered, _ = certificates.dpa(votes["triggered"][..., 0], classes, order)
        attacked = metrics.success_rate(triggered, labels, target)
        poison_accuracy = metrics.accuracy(triggered[other], labels[other])
    radii = {
        n: certificates.top_n(votes["clean"][..., :n], classes, labels, order)
        for n in GUESSES
        if n <= votes["clean"].shape[2]
    }
    reach = range(votes["clean"].shape[0] // 2 + 1)
    return Row(
        name=name,
        clean_accuracy=metrics.accuracy(prediction, labels),
        attack_success_rate=attacked,
        poison_accuracy=poison_accuracy,
        guesses={n: _share(radius >= 0) for n, radius in radii.items()},
        certified={n: tuple(_share(radius >= r) for r in reach) for n, radius in radii.items()} if certify else None,
        seconds=seconds,
    )


def _share(holds: Tensor) -> float:
    return float(holds.double().mean())


def _mean(name: str, rows: Sequence[Row], seconds: float) -> Row:
    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    return Row(
        name=name,
        clean_accuracy=mean([row.clean_accuracy for row in rows]) or 0.0,
        attack_success_rate=mean([row.attack_success_rate for row in rows]),
        poison_accuracy=mean([row.poison_accuracy for row in rows]),
        guesses={n: mean([row.guesses[n] for row in rows]) or 0.0 for n in rows[0].guesses},
        certified=None,
        seconds=seconds,
    )


def _pictures(train: ImageDataset, poison: Poison | None, count: int = 12) -> tuple[Tensor, Tensor]:
    """Some poisoned rows as they were and as they are, uint8 [n, C, H, W] each."""
    if poison is None:
        return train.images[:0].cpu(), train.images[:0].cpu()
    return train.images[poison.rows[:count]].cpu(), poison.images[:count].cpu()
