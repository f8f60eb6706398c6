"""EPIC against the undefended training of the same rows: what the whole costs, and what the picks of medoids do.

2,000 images of CIFAR-10, spread evenly over the training set, 40 epochs of the paper's recipe on a small network, one
thread. The folder of real images is that of the tests, POISONKIT_DATA.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import torch
from torch import Tensor

from bench.measure import cpu_seconds, row
from bench.rows import Row
from poisonkit.data import load
from poisonkit.data.augment import Augment
from poisonkit.defenses import EPIC
from poisonkit.defenses.training.dropping import Outputs
from poisonkit.models import ResNet
from poisonkit.random import Key, key
from poisonkit.train import Journal, Recipe, Step, fit
from poisonkit.types import ImageDataset

ROWS = 2000
RECIPE = Recipe(
    ResNet(8, 16, stem="small"),
    epochs=40,
    batch_size=128,
    schedule=Step(0.1, (0.625, 0.875)),
    nesterov=True,
    augment=Augment(),
)


class Timed(EPIC):
    """EPIC with the CPU time of its picks."""

    seconds = 0.0

    def drops(self, outputs: Outputs, key: Key) -> Tensor:
        found: list[Tensor] = []
        Timed.seconds += cpu_seconds(lambda: found.append(super(Timed, self).drops(outputs, key)))
        return found[0]


def bench() -> Iterator[Row]:
    """Every row of this bench, one thread."""
    everything, _ = load("cifar10", os.environ.get("POISONKIT_DATA"))
    data = everything.take(torch.arange(ROWS) * len(everything) // ROWS)
    fit(data.take(torch.arange(256)), replace(RECIPE, epochs=1), key=key(0))  # what is slow once does not count
    plain = cpu_seconds(lambda: fit(data, RECIPE, key=key(0)))
    for medoids in (0.1, 0.2, 0.3):
        yield from against(data, medoids, plain)


def against(data: ImageDataset, medoids: float, plain: float) -> Iterator[Row]:
    """EPIC's training in times of the ``plain`` seconds, and the share of it that the picks take."""
    Timed.seconds, journal = 0.0, Journal()
    seconds = cpu_seconds(lambda: Timed(medoids)(data, RECIPE, key=key(0), journal=journal))
    gone = int((journal.notes["dropped_at"] >= 0).sum())
    note = f"{len(data)} rows, of which {gone} were dropped; undefended {plain:.3g} s"
    yield row(f"epic/cifar10/{medoids}/of_undefended", seconds / plain, "ratio", 1, note, "lower")
    yield row(f"epic/cifar10/{medoids}/picks_of_run", Timed.seconds / seconds, "ratio", 1, note, "lower")
