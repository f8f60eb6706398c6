"""What it costs to bound activations after training, in shares of what the training cost, on one core.

The paper trains 200 epochs of 50,000 images, 1518 s on its GPU, and takes 261 s for MMAC and 157 s for MMOM: 17 % and
10 %. Here the training is the time of an epoch of fewer images, which the rounds measure too, scaled to that; MMAC and
MMOM run with 50 images of each of ten classes, and the time of 300 iterations is that of 2 and of what each more takes.
Time does not depend on what the images show, so they are noise.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from statistics import median

import torch

from bench.measure import interleave, row
from bench.rows import Row
from bench.stacked import random_images
from poisonkit.data.augment import Augment
from poisonkit.defenses.repair import MMAC, MMOM
from poisonkit.models import ResNet
from poisonkit.random import key
from poisonkit.train import Recipe, train_epoch
from poisonkit.train.loop import new_optimizer

ROUNDS = 3
EPOCHS, IMAGES, ITERATIONS = 200, 50_000, 300
MEASURED = 640
NETWORKS = {"resnet32": ResNet(32, 16, stem="small"), "resnet8": ResNet(8, 16, stem="small")}
PAPER = {"mmac": 261.46 / 1517.52, "mmom": 156.67 / 1517.52}


def bench() -> Iterator[Row]:
    """Every row of this bench, one thread."""
    for name, network in NETWORKS.items():
        yield from rows(name, network)


def rows(name: str, network: ResNet, classes: int = 10, each: int = 50) -> Iterator[Row]:
    recipe = Recipe(network, batch_size=128, augment=Augment())
    data = random_images(MEASURED, (3, 32, 32), classes)
    model = recipe.model.build(data.shape, classes, key(0)).to(memory_format=torch.channels_last)
    optimizer = new_optimizer(model, recipe)
    clean = random_images(each * classes, (3, 32, 32), classes)
    clean = replace(clean, labels=torch.arange(each * classes) % classes)
    candidates = {"training": lambda: train_epoch(model, optimizer, data, recipe, key=key(0), epoch=0)}
    for method in (MMAC(tolerance=0.0), MMOM(tolerance=0.0)):
        for count in (2, 4):
            some = replace(method, iterations=count)
            candidates[f"{type(method).__name__.lower()} {count}"] = lambda some=some: some(model, clean, key=key(0))
    times = interleave(candidates, ROUNDS)
    budget = [seconds * EPOCHS * IMAGES / MEASURED for seconds in times["training"]]
    for method, published in PAPER.items():
        pairs = zip(times[f"{method} 2"], times[f"{method} 4"], strict=True)
        whole = [two + (four - two) / 2 * (ITERATIONS - 2) for two, four in pairs]
        share = median(seconds / training for seconds, training in zip(whole, budget, strict=True))
        note = f"{median(whole):.3g} s of {median(budget):.3g} s; the paper {published:.2f}"
        yield row(f"mmac/cpu/{name}/{method}/of_training", share, "ratio", ROUNDS, note, "lower")
