"""Poisoning overfitting: whether a trigger is learned less well from fewer rows of which as large a share is poisoned.

Wang and Feizi, arXiv 2306.16415, Definition 5.1. Where it is so, partitions help against poison far beyond what they
certify, since every base model has its share of the poison but few examples of it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from poisonkit.defenses.certified import Ensemble
from poisonkit.experiments.lab import Lab
from poisonkit.experiments.measures import Row, measure
from poisonkit.train import Job
from poisonkit.types import Attack, Budget


@dataclass(frozen=True)
class Size:
    """One size of training set.

    parts     the share of the data that it is, as 1/parts
    rows      how many rows that is
    poisoned  how many of them are poisoned
    seeds     what the undefended network of each seed does
    """

    parts: int
    rows: int
    poisoned: int
    seeds: tuple[Row, ...]


def scan(lab: Lab, attack: Attack, rate: float, parts: Sequence[int], seeds: int) -> list[Size]:
    """Train undefended networks on 1/p of the data, ``rate`` of it poisoned, for every p and seed.

    A seed draws an order of the rows, whose front each size takes, so that the sizes of a seed are nested; then
    the rows to poison, and the network.
    """
    sizes = []
    for part in parts:
        count, rows, poisoned = len(lab.train) // part, [], 0
        for seed in range(seeds):
            key, name = lab.key.child("scan", seed), f"part-{part:04d}/seed-{seed:02d}"
            subset = lab.train.take(key.child("rows").permutation(len(lab.train))[:count])
            poison = attack(subset, Budget(rate), key=key.child("attack"))
            dirty = poison.apply(subset).to(lab.test.device)
            trained = lab.networks(name, [Job(0, dirty, torch.arange(count), lab.recipe, key.child("network"))])
            single = Ensemble(trained.models, dirty.num_classes)
            ballots = lab.ask(name, single, poison)
            rows.append(measure(f"seed {seed}", single, ballots, lab.test, poison, trained.seconds, certify=False))
            poisoned = len(poison.rows)
        sizes.append(Size(part, count, poisoned, tuple(rows)))
    return sizes
