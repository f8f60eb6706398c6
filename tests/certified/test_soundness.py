"""An adversary who reads the votes and really changes rows: within the radius nothing moves, beyond it something does.

Real photographs (four classes of CIFAR-10) and a learner that a single row can turn: the nearest neighbour. The
adversary picks the cells whose base models matter most to a prediction, makes rows that the hash sends there, changes
the training set, and every base model whose rows have changed is trained again on what the defense then gives it.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import count
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from poisonkit.data import load
from poisonkit.defenses import DPA, FiniteAggregation, HashBagging, RunOffElection, TemporalAggregation
from poisonkit.defenses.certified import Aggregation, Ensemble, Split
from poisonkit.defenses.certified.partition import hashes
from poisonkit.random import key
from poisonkit.train import Job, Recipe
from poisonkit.types import ImageDataset

KEPT = [1, 6, 8, 9]  # automobile, frog, ship, truck
CLASSES = len(KEPT)
ROWS, PERIODS = 900, 15
KEY = key(5)
FRESH = count(ROWS)

METHODS: dict[str, Aggregation] = {
    "dpa": DPA(15),
    "dpa, label hashed": DPA(15, hash_label=True),
    "dpa, two seeds": DPA(15, seeds=2),
    "finite aggregation": FiniteAggregation(8, spread=3),
    "run-off": RunOffElection(15),
    "run-off, spread": RunOffElection(8, spread=3),
    "hash bagging": HashBagging(8, functions=3),
    "temporal": TemporalAggregation(partitions=PERIODS - 1, span=2),
}


@dataclass(frozen=True, eq=False)
class Rows:
    """A training set, the period each row came in, and a number for each row that changes with it."""

    data: ImageDataset
    periods: Tensor
    numbers: Tensor

    def insert(self, image: Tensor, label: int, period: int = 0) -> Rows:
        images, labels = (
            torch.cat([image[None], self.data.images]),
            torch.cat([torch.tensor([label]), self.data.labels]),
        )
        data = ImageDataset(images, labels, self.data.classes)
        fresh = torch.tensor([next(FRESH)])
        return Rows(data, torch.cat([torch.tensor([period]), self.periods]), torch.cat([fresh, self.numbers]))

    def delete(self, row: int) -> Rows:
        kept = (torch.arange(len(self.data)) != row).nonzero()[:, 0]
        return Rows(self.data.take(kept), self.periods[kept], self.numbers[kept])

    def relabel(self, row: int, label: int) -> Rows:
        labels, numbers = self.data.labels.clone(), self.numbers.clone()
        labels[row], numbers[row] = label, next(FRESH)
        return Rows(ImageDataset(self.data.images, labels, self.data.classes), self.periods, numbers)


def cells(images: Tensor) -> Tensor:
    """Sums over 4x4 pixels, [N, 192] exact integers in float64."""
    return nn.functional.avg_pool2d(images.double(), 4, divisor_override=1).flatten(1)


class NearestNeighbour(nn.Module):
    """Minus the distance to the nearest row of each class, on three quarters of the cells, drawn from the job's key."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.seen = job.key.child("cells").permutation(192)[:144]
        self.rows = cells(job.data.images[job.rows])[:, self.seen]
        self.labels = job.data.labels[job.rows]
        self.answers: dict[bytes, Tensor] = {}  # asked again after every change elsewhere

    def forward(self, images: Tensor) -> Tensor:
        asked = images.numpy().tobytes()
        if asked not in self.answers:
            self.answers = {asked: self.scores(images)}
        return self.answers[asked]

    def scores(self, images: Tensor) -> Tensor:
        distance = ((cells(images)[:, None, self.seen] - self.rows) ** 2).sum(2)
        far = distance.new_full((len(images), CLASSES), 1e9)
        return -far.scatter_reduce(1, self.labels.expand(len(images), -1), distance, "amin").float()


class Trainer:
    """Trains a method's base models, again only where their rows are others than they were."""

    def __init__(self, method: Aggregation) -> None:
        self.method = method
        self.trained: dict[tuple[int, bytes], nn.Module] = {}

    def split(self, rows: Rows) -> Split:
        if isinstance(self.method, TemporalAggregation):
            return self.method.split(rows.data, KEY, rows.periods)
        return self.method.split(rows.data, KEY)

    def __call__(self, rows: Rows) -> Ensemble:
        split = self.split(rows)
        jobs = self.method.jobs(rows.data, Recipe(), key=KEY, split=split)
        return self.method.gather({job.id: self.fit(job, rows) for job in jobs}, CLASSES, split)

    def fit(self, job: Job, rows: Rows) -> nn.Module:
        content = rows.numbers[job.rows].numpy().tobytes()
        if (job.id, content) not in self.trained:
            self.trained[job.id, content] = NearestNeighbour(job)
        return self.trained[job.id, content]


class Adversary:
    """Knows the data, the key and every vote; wants one image classified otherwise."""

    def __init__(self, trainer: Trainer, rows: Rows, image: Tensor) -> None:
        self.trainer, self.rows, self.image = trainer, rows, image
        self.method = trainer.method
        ensemble = trainer(rows)
        self.ranking = ensemble.top(image[None], CLASSES)[:, 0]
        self.winner = int(ensemble.predict(image[None]))
        self.models = len(self.ranking)
        if isinstance(self.method, HashBagging):
            k = self.method.partitions
            self.reach = [[f * k + part for f in range(self.method.functions)] for part in range(k)]
        elif isinstance(self.method, TemporalAggregation):
            first = PERIODS - self.models
            self.reach = [
                [m for m in range(self.models) if 0 <= m + first - p < self.method.span] for p in range(PERIODS)
            ]
        else:
            shifts = trainer.split(rows).shifts
            self.reach = [[(h + s) % self.models for s in shifts] for h in range(self.models)]
        variants = image.flatten().repeat(256, 1)
        at = torch.arange(256)
        variants[at, 11 * at] ^= 1
        self.variants = variants.view(-1, *image.shape)

    def plans(self, hits: int) -> list[tuple[int, list[int]]]:
        """A rival, and the cells to hit so that it gains most in the first or in a second round."""
        found: list[tuple[int, list[int]]] = []
        place = self.ranking.argsort(1)  # [n, K]: place of each class
        for rival in range(CLASSES):
            if rival == self.winner:
                continue
            votes = 1 + (self.ranking[:, 0] == self.winner).long() - (self.ranking[:, 0] == rival).long()
            pair = (place[:, self.winner] < place[:, rival]).long()
            for power in (votes, pair, 3 * pair + votes):
                worth = torch.tensor([int(power[models].sum()) for models in self.reach])
                if isinstance(self.method, TemporalAggregation):  # consecutive periods
                    first = int(worth.unfold(0, min(hits, PERIODS), 1).sum(1).argmax())
                    plan = (rival, list(range(first, min(first + hits, PERIODS))))
                else:
                    plan = (rival, worth.argsort(descending=True, stable=True)[:hits].tolist())
                if plan not in found:
                    found.append(plan)
        return found

    def homes(self, images: Tensor, label: int) -> Tensor:
        """Where the hash sends images of this label: [n, functions]."""
        method, labels = self.method, torch.full((len(images),), label)
        functions = method.functions if isinstance(method, HashBagging) else 1
        buckets = method.partitions if functions > 1 else self.models
        keys = [KEY.child("hash", f) for f in range(functions)] if functions > 1 else [KEY.child("hash")]
        return torch.stack([hashes(images.flatten(1), labels, k, method.hash_label)[:, 0] % buckets for k in keys], 1)

    def insert(self, rows: Rows, rival: int, cell: int) -> Rows:
        """The image itself, a bit of one pixel flipped so that the row falls into the cell, labelled as the rival."""
        if isinstance(self.method, TemporalAggregation):
            for row in (rows.periods == cell).nonzero()[:, 0].tolist():  # a whole period is the adversary's
                rows = rows.relabel(row, rival)
            return rows.insert(self.image, rival, cell)
        fits = (self.homes(self.variants, rival) == cell).sum(1)
        return rows.insert(self.variants[int(fits.argmax())], rival)

    def nearest(self, rows: Rows, cell: int) -> int | None:
        """The row that decides most of what the cell's base models say of the image."""
        if isinstance(self.method, TemporalAggregation):
            mine = rows.periods == cell
        else:
            mine = (self.homes_of(rows) == cell).any(1)
        distance = ((cells(rows.data.images) - cells(self.image[None])) ** 2).sum(1)
        distance[~mine | (rows.data.labels != self.winner)] = torch.inf
        return int(distance.argmin()) if distance.isfinite().any() else None

    def homes_of(self, rows: Rows) -> Tensor:
        homes = torch.zeros(len(rows.data), self.homes(rows.data.images[:1], 0).shape[1], dtype=torch.int64)
        for label in range(CLASSES):
            mine = rows.data.labels == label
            homes[mine] = self.homes(rows.data.images[mine], label)
        return homes

    def attack(self, kind: str, rival: int, targets: list[int]) -> Rows:
        """Each target cell hit once; a replaced row and a relabelled one whose label is hashed hit two."""
        rows = self.rows
        targets = list(targets)
        while targets:
            cell = targets.pop(0)
            row = None if kind == "insert" else self.nearest(rows, cell)
            if row is None:
                rows = self.insert(rows, rival, cell)
            elif kind == "delete":
                rows = rows.delete(row)
            elif kind == "relabel" and not self.method.hash_label:
                rows = rows.relabel(row, rival)
            elif targets:  # two hits: out of this cell, into the next, or wherever the new label sends it
                next_cell = targets.pop(0)
                if kind == "relabel":
                    rows = rows.relabel(row, rival)
                else:
                    rows = self.insert(rows.delete(row), rival, next_cell)
        return rows

    def moved(self, rows: Rows) -> bool:
        return int(self.trainer(rows).predict(self.image[None])) != self.winner


@pytest.fixture(scope="module")
def photographs(data_root: Path) -> tuple[Rows, Tensor]:
    train, test = load("cifar10", data_root)
    rows = torch.isin(train.labels, torch.tensor(KEPT)).nonzero()[:ROWS, 0]
    labels = torch.searchsorted(torch.tensor(KEPT), train.labels[rows])
    data = ImageDataset(train.images[rows], labels, tuple(train.classes[c] for c in KEPT))
    images = test.images[torch.isin(test.labels, torch.tensor(KEPT))]
    return Rows(data, torch.arange(ROWS) * PERIODS // ROWS, torch.arange(ROWS)), images


def check(method: Aggregation, photographs: tuple[Rows, Tensor], predictions: int) -> None:
    rows, images = photographs
    trainer = Trainer(method)
    radius = torch.cat([trainer(rows).certify(part).radius for part in images[:2000].split(100)])
    chosen = (radius >= 1).nonzero()[:, 0][:predictions]
    assert len(chosen) == predictions
    kinds = ["insert", "delete", "relabel", "replace"]
    if isinstance(method, TemporalAggregation):
        kinds = ["insert"]  # which there means everything in a period
    flips = 0
    for index in chosen.tolist():
        adversary, r = Adversary(trainer, rows, images[index]), int(radius[index])
        plans = adversary.plans(r)
        for rival, targets in plans:
            assert not adversary.moved(adversary.attack("insert", rival, targets)), f"image {index}, radius {r}"
        for kind in kinds[1:]:
            assert not adversary.moved(adversary.attack(kind, *plans[0])), f"{kind}: image {index}, radius {r}"
        if not flips:
            beyond = adversary.plans(r + 1)
            flips += any(adversary.moved(adversary.attack("insert", rival, targets)) for rival, targets in beyond)
        trainer.trained = dict(list(trainer.trained.items())[: len(trainer.method.jobs(rows.data, Recipe(), key=KEY))])
    assert flips >= 1, "no attack with one hit more succeeds: the adversary is too weak to test anything"


@pytest.mark.parametrize("name", METHODS)
def test_certified_predictions_stand(name: str, photographs: tuple[Rows, Tensor]) -> None:
    check(METHODS[name], photographs, predictions=3)


@pytest.mark.slow
@pytest.mark.parametrize("name", METHODS)
def test_two_hundred_certified_predictions_stand(name: str, photographs: tuple[Rows, Tensor]) -> None:
    check(METHODS[name], photographs, predictions=200)
