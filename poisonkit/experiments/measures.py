"""What is asked of every classifier here: its votes on clean and on triggered test images, and the rates they come to.

acc@n and attack success are those of Wang and Feizi, arXiv 2306.16415, sections 4.2 and 5.1.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn

from poisonkit import metrics
from poisonkit.defenses.certified import Ballots, Ensemble
from poisonkit.engine import Run
from poisonkit.types import Backdoor, ImageDataset, Poison, Victims

GUESSES = (1, 3, 5, 10, 20, 50, 100)


@dataclass(frozen=True)
class Row:
    """What one classifier did.

    guesses    acc@n by n: the label is among the n most-voted classes; only n = 1 where a defense gives one answer
    certified  by n, acc@n certified at radius 0, 1, 2, ..., to the first that no image has; None for a single model,
               which has no certificate
    seconds    training time; of one base model for the 1/k baseline
    chance_level  share of the clean test images of other classes that are called the target
    attack_success_rate_including_target  counts test images that are of the target class already, too
    """

    name: str
    clean_accuracy: float
    attack_success_rate: float | None
    poison_accuracy: float | None
    guesses: dict[int, float]
    certified: dict[int, tuple[float, ...]] | None
    seconds: float
    chance_level: float | None = None
    attack_success_rate_including_target: float | None = None


def asked(test: ImageDataset, poison: Poison | None) -> dict[str, Tensor]:
    """What every classifier is asked about: the clean test images; those triggered, or the victims of the attack."""
    images = {"clean": test.images}
    if poison and isinstance(poison.goal, Backdoor):
        images["triggered"] = poison.goal.trigger(test.images)
    if poison and isinstance(poison.goal, Victims) and len(poison.goal.images):
        images["victims"] = poison.goal.images.to(test.device)
    return images


class Attacked(NamedTuple):
    """The rates of a :class:`Row` that are about the attack, by its names; None where one means nothing."""

    attack_success_rate: float | None = None
    poison_accuracy: float | None = None
    chance_level: float | None = None
    attack_success_rate_including_target: float | None = None


def attacked(said: Mapping[str, Tensor], test: ImageDataset, poison: Poison | None) -> Attacked:
    """What the predictions (int64 by part of :func:`asked`) say of the attack."""
    if not poison:
        return Attacked()
    if isinstance(poison.goal, Victims):  # an untargeted attack has none: it shows in the clean accuracy
        return Attacked(
            metrics.accuracy(said["victims"].cpu(), poison.goal.labels.cpu()) if "victims" in said else None
        )
    labels, triggered = test.labels.cpu(), said["triggered"].cpu()
    target = poison.goal.wanted(labels)
    other = labels != target
    return Attacked(
        metrics.success_rate(triggered, labels, target),
        metrics.accuracy(triggered[other], labels[other]),
        metrics.success_rate(said["clean"].cpu(), labels, target),
        metrics.success_rate(triggered, labels, target, include_target=True),
    )


def poll(run: Run, name: str, ensemble: Ensemble, test: ImageDataset, poison: Poison | None) -> dict[str, Ballots]:
    """What the base models say of the images of :func:`asked`, kept in the run."""
    deepest = max(n for n in GUESSES if n < test.num_classes)
    return {
        part: run.tensors(f"{name}/votes-{part}", partial(ensemble.ballots, pixels, deepest))
        for part, pixels in asked(test, poison).items()
    }


def measure(
    name: str,
    ensemble: Ensemble,
    ballots: dict[str, Ballots],
    test: ImageDataset,
    poison: Poison | None,
    seconds: float,
    *,
    certify: bool,
) -> Row:
    """The rates of ``ensemble``, from what :func:`poll` gave; ``certify`` where its radii mean something."""
    labels = test.labels.cpu()
    certificate = ensemble.count(ballots["clean"])
    accuracy = metrics.accuracy(certificate.prediction, labels)
    said = {part: ensemble.count(ballot).prediction for part, ballot in ballots.items()}
    guesses = [n for n in GUESSES if n <= ballots["clean"]["top"].shape[2]]
    radii = {n: ensemble.count_top(ballots["clean"], labels, n) for n in guesses}
    # the first guess is what the vote itself says, which need not be plurality
    radii[1] = torch.where(certificate.prediction == labels, certificate.radius, -1)
    return Row(
        name=name,
        clean_accuracy=accuracy,
        **attacked(said, test, poison)._asdict(),
        guesses={n: accuracy if n == 1 else _share(radius >= 0) for n, radius in radii.items()},
        certified={n: _curve(radius) for n, radius in radii.items()} if certify else None,
        seconds=seconds,
    )


def _curve(radius: Tensor) -> tuple[float, ...]:
    return tuple(_share(radius >= r) for r in range(max(0, int(radius.max())) + 2))


def _share(holds: Tensor) -> float:
    return float(holds.double().mean())


def apart(
    models: Mapping[int, nn.Module], ballots: dict[str, Ballots], test: ImageDataset, poison: Poison | None
) -> list[Row]:
    """The rates of every base model on its own, in the order of their ids."""
    rows = []
    for i in sorted(models):
        mine = {part: {"top": ballot["top"][i : i + 1]} for part, ballot in ballots.items()}
        alone = Ensemble({0: models[i]}, test.num_classes)
        rows.append(measure(f"base model {i}", alone, mine, test, poison, 0.0, certify=False))
    return rows


def mean(name: str, rows: Sequence[Row], seconds: float) -> Row:
    """The mean of single models, rate by rate."""

    def over(values: Sequence[float | None]) -> float | None:
        known = [value for value in values if value is not None]
        return sum(known) / len(known) if known else None

    return Row(
        name=name,
        clean_accuracy=over([row.clean_accuracy for row in rows]) or 0.0,
        **{rate: over([getattr(row, rate) for row in rows]) for rate in Attacked._fields},
        guesses={n: over([row.guesses[n] for row in rows]) or 0.0 for n in rows[0].guesses},
        certified=None,
        seconds=seconds,
    )
