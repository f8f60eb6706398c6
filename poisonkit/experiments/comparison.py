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
from poisonkit.defenses.certified.ensemble import CertifiedDefense, Ensemble, Job
from poisonkit.engine import Progress, Run, train_ensemble, train_model
from poisonkit.random import Key
from poisonkit.train import Recipe, fit_job
from poisonkit.types import Attack, Backdoor, Budget, ImageDataset, Poison

GUESSES = (1, 3, 5, 10, 20, 50, 100)


@dataclass(frozen=True)
class Row:
    """What one classifier did.

    certified  certified accuracy at radius 0, 1, 2, ...; None for a single model, which has none
    guesses    acc@n by n: the label is among the n most-voted classes
    seconds    training time; of one base model for the 1/k baseline
    """

    name: str
    clean_accuracy: float
    attack_success_rate: float | None
    poison_accuracy: float | None
    certified: tuple[float, ...] | None
    guesses: dict[int, float]
    seconds: float


@dataclass(frozen=True, eq=False)
class Comparison:
    """The rows of the table; and some poisoned rows before and after, uint8 [n, C, H, W]."""

    rows: tuple[Row, ...]
    before: Tensor
    after: Tensor


def compare(
    run: Run,
    train: ImageDataset,
    test: ImageDataset,
    *,
    attack: Attack | None,
    budget: Budget,
    defense: CertifiedDefense,
    name: str,
    recipe: Recipe,
    key: Key,
    progress: Progress,
) -> Comparison:
    """Run the main job in ``run``, resuming what is already there; ``name`` is the defense's."""
    poison = attack(train, budget, key=key.child("attack")) if attack else None
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

    jobs = defense.jobs(dirty, recipe, key=key.child("defense"))
    ensemble, seconds = train_ensemble(run, name, defense, jobs, progress)
    votes = _votes(run, name, ensemble, test, poison)
    if len(jobs) > 1:
        singles = [
            _row("", {part: top[i : i + 1] for part, top in votes.items()}, test, poison, 0.0, certify=False)
            for i in range(len(jobs))
        ]
        rows.append(_mean(f"base model (1/{len(jobs)} of data)", singles, seconds / len(jobs)))
    rows.append(_row(name, votes, test, poison, seconds, certify=True, order=ensemble.order))
    return Comparison(tuple(rows), *_pictures(train, poison))


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
    ranked = None if order is None else torch.tensor(order)
    prediction, radius = certificates.dpa(votes["clean"][..., 0], classes, ranked)
    attacked = poison_accuracy = None
    if poison and isinstance(poison.goal, Backdoor):
        target, other = poison.goal.target, labels != poison.goal.target
        triggered, _ = certificates.dpa(votes["triggered"][..., 0], classes, ranked)
        attacked = metrics.success_rate(triggered, labels, target)
        poison_accuracy = metrics.accuracy(triggered[other], labels[other])
    sure = torch.where(prediction == labels, radius, -1)
    reach = range(votes["clean"].shape[0] // 2 + 1)
    guesses = [n for n in GUESSES if n <= votes["clean"].shape[2]]
    return Row(
        name=name,
        clean_accuracy=metrics.accuracy(prediction, labels),
        attack_success_rate=attacked,
        poison_accuracy=poison_accuracy,
        certified=tuple(float((sure >= r).double().mean()) for r in reach) if certify else None,
        guesses={
            n: float((certificates.top_n(votes["clean"][..., :n], classes, labels, ranked) >= 0).double().mean())
            for n in guesses
        },
        seconds=seconds,
    )


def _mean(name: str, rows: Sequence[Row], seconds: float) -> Row:
    def mean(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    return Row(
        name=name,
        clean_accuracy=mean([row.clean_accuracy for row in rows]) or 0.0,
        attack_success_rate=mean([row.attack_success_rate for row in rows]),
        poison_accuracy=mean([row.poison_accuracy for row in rows]),
        certified=None,
        guesses={n: mean([row.guesses[n] for row in rows]) or 0.0 for n in rows[0].guesses},
        seconds=seconds,
    )


def _pictures(train: ImageDataset, poison: Poison | None, count: int = 12) -> tuple[Tensor, Tensor]:
    """Some poisoned rows as they were and as they are, uint8 [n, C, H, W] each."""
    if poison is None:
        return train.images[:0].cpu(), train.images[:0].cpu()
    return train.images[poison.rows[:count]].cpu(), poison.images[:count].cpu()
