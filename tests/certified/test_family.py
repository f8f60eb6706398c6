"""Every certified defense: which rows it gives to whom; and a row reaches no base model beyond its cells."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from poisonkit import certificates
from poisonkit.data import load
from poisonkit.data.augment import Augment
from poisonkit.defenses import DPA, Bagging, FiniteAggregation, HashBagging, RunOffElection, TemporalAggregation
from poisonkit.defenses.certified import Aggregation, Split
from poisonkit.errors import ArgumentError
from poisonkit.models import ResNet
from poisonkit.random import key
from poisonkit.train import Recipe
from poisonkit.types import ImageDataset, TemporalCertificate

# augmentation and dropout on: both draw randomness while training
RECIPE = Recipe(model=ResNet(8, 8, stem="small", dropout=0.3), epochs=2, batch_size=16, augment=Augment(crop=1))
FAMILY = {
    "dpa": DPA(4),
    "dpa, two seeds": DPA(3, seeds=2),
    "finite aggregation": FiniteAggregation(3, spread=2),
    "run-off": RunOffElection(3, spread=2),
    "hash bagging": HashBagging(3, functions=2),
    "temporal": TemporalAggregation(4, span=2),
}


@pytest.fixture(scope="module")
def data() -> ImageDataset:
    return load("digits")[0].take(torch.arange(120))


def insert(data: ImageDataset) -> ImageDataset:
    images, labels = torch.cat([255 - data.images[7:8], data.images]), torch.cat([data.labels[7:8], data.labels])
    return ImageDataset(images, labels, data.classes)


def delete(data: ImageDataset) -> ImageDataset:
    return data.take(torch.tensor([i for i in range(len(data)) if i != 11]))


def relabel(data: ImageDataset) -> ImageDataset:
    labels = data.labels.clone()
    labels[5] = (labels[5] + 1) % 10
    return replace(data, labels=labels)


CHANGES = {"insert": insert, "delete": delete, "relabel": relabel}
PERIODS = torch.arange(120) // 24  # five
CHANGED_PERIODS = {
    "insert": torch.cat([torch.tensor([2]), PERIODS]),  # the new row comes in with the third period
    "delete": torch.cat([PERIODS[:11], PERIODS[12:]]),
    "relabel": PERIODS,
}


def split_of(defense: Aggregation, data: ImageDataset, periods: Tensor) -> Split:
    return (
        defense.split(data, key(3), periods)
        if isinstance(defense, TemporalAggregation)
        else defense.split(data, key(3))
    )


def trained(defense: Aggregation, data: ImageDataset, split: Split) -> list[dict[str, Tensor]]:
    return [defense.fit(job).state_dict() for job in defense.jobs(data, RECIPE, key=key(3), split=split)]


def rows_of(data: ImageDataset, rows: Tensor) -> Counter[bytes]:
    return Counter(data.images[row].numpy().tobytes() + bytes([int(data.labels[row])]) for row in rows)


@pytest.mark.parametrize("change", CHANGES)
@pytest.mark.parametrize("name", FAMILY)
def test_a_row_reaches_only_the_base_models_of_its_cells(name: str, change: str, data: ImageDataset) -> None:
    defense, changed = FAMILY[name], CHANGES[change](data)
    before, after = split_of(defense, data, PERIODS), split_of(defense, changed, CHANGED_PERIODS[change])
    pairs = zip(before.rows, after.rows, strict=True)
    hit = {i for i, (old, new) in enumerate(pairs) if rows_of(data, old) != rows_of(changed, new)}
    reach = getattr(defense, "spread", 1) * getattr(defense, "functions", 1) * getattr(defense, "span", 1)
    assert 1 <= len(hit) <= reach, "more base models than the certificate counts for one row"
    old, new = trained(defense, data, before), trained(defense, changed, after)
    moved = {i for i in range(len(old)) if any(not torch.equal(old[i][n], new[i][n]) for n in old[i])}
    assert moved == {i * defense.seeds + seed for i in hit for seed in range(defense.seeds)}


def test_finite_aggregation_feeds_every_bucket_to_the_shifted_models(data: ImageDataset) -> None:
    defense = FiniteAggregation(4, spread=3)
    split, buckets = defense.split(data, key(1)), DPA(12).split(data, key(1))
    assert len(set(split.shifts)) == 3
    for i, rows in enumerate(split.rows):
        fed = [set(buckets.rows[(i - s) % 12].tolist()) for s in split.shifts]
        assert set(rows.tolist()) == set.union(*fed)
        assert len(rows) == sum(map(len, fed))
    # content order, whatever the buckets: the same rows in another data set order give the same sequence
    shuffled = data.take(key(9).permutation(len(data)))
    for mine, theirs in zip(split.rows, defense.split(shuffled, key(1)).rows, strict=True):
        assert torch.equal(data.images[mine], shuffled.images[theirs])


def test_one_spread_is_dpa(data: ImageDataset) -> None:
    one, other = FiniteAggregation(5, spread=1).split(data, key(1)), DPA(5).split(data, key(1))
    assert all(map(torch.equal, one.rows, other.rows))
    assert one.shifts == (0,)


def test_hash_functions_are_independent(data: ImageDataset) -> None:
    split = HashBagging(4, functions=2).split(data, key(1))
    for f in range(2):
        assert sorted(torch.cat(split.rows[4 * f : 4 * f + 4]).tolist()) == list(range(len(data)))
    sets = [set(rows.tolist()) for rows in split.rows]
    assert (
        max(len(one & other) for one in sets[:4] for other in sets[4:]) < 20
    )  # 7.5 expected; the same partition twice, or shifted, would give about 30


def test_bags_are_drawn_with_replacement_and_know_the_data(data: ImageDataset) -> None:
    split = Bagging(30, bag=120).split(data, key(1))
    assert split.sizes == [120] * 30
    assert split.total == 120
    distinct = [len(rows.unique()) / 120 for rows in split.rows]
    assert 0.60 < sum(distinct) / 30 < 0.66  # 1 - 1/e = 0.632
    assert not torch.equal(split.rows[0], split.rows[1])


def test_periods(data: ImageDataset) -> None:
    split = TemporalAggregation(4, span=2).split(data, key(0), PERIODS)
    assert [PERIODS[rows].unique().tolist() for rows in split.rows] == [[0, 1], [1, 2], [2, 3], [3, 4]]
    assert split.sizes == TemporalAggregation(4, span=2).split(data, key(0)).sizes  # in order of arrival, cut evenly
    with pytest.raises(ArgumentError, match=r"periods must be of shape \[120\], one per row"):
        TemporalAggregation().split(data, key(0), PERIODS[:5])


def test_a_split_survives_being_written_down(data: ImageDataset) -> None:
    split = FiniteAggregation(3, spread=2).split(data, key(1))
    again = Split.of(split.tensors())
    assert all(map(torch.equal, split.rows, again.rows))
    assert (split.shifts, split.total, split.collisions, split.duplicates) == (
        *(again.shifts, again.total),
        *(again.collisions, again.duplicates),
    )


class Says(nn.Module):
    """Gives fixed logits to every image."""

    def __init__(self, *logits: float) -> None:
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, images: Tensor) -> Tensor:
        return self.logits.expand(len(images), -1)


IMAGES = torch.zeros(3, 1, 4, 4, dtype=torch.uint8)


def test_ensembles_count_as_their_certificates_do() -> None:
    says = [Says(5.0, 4.0, 0.0), Says(0.0, 5.0, 4.0), Says(4.0, 0.0, 5.0), Says(5.0, 4.0, 0.0)]
    votes = torch.tensor([0, 1, 2, 0])[:, None].expand(-1, 3)
    models, split = dict(enumerate(says)), Split((torch.arange(0),) * 4, 100, shifts=(0, 1))
    spread = FiniteAggregation(2, spread=2).gather(models, 3, split).certify(IMAGES)
    assert torch.equal(spread.radius, certificates.finite_aggregation(votes, 3, (0, 1))[1])
    rankings = torch.tensor([[0, 1, 2], [1, 2, 0], [2, 0, 1], [0, 1, 2]])[:, None].expand(-1, 3, -1)
    run_off = RunOffElection(2, spread=2).gather(models, 3, split).certify(IMAGES)
    expected = certificates.run_off(rankings, (0, 1))
    assert torch.equal(run_off.prediction, expected[0])
    assert torch.equal(run_off.radius, expected[1])
    bagged = HashBagging(2, functions=2).gather(models, 3, split).certify(IMAGES)
    assert torch.equal(bagged.radius, certificates.hash_bagging(votes, 3, 2)[1])
    temporal = TemporalAggregation(4).gather(models, 3, split).certify(IMAGES)
    assert isinstance(temporal, TemporalCertificate)
    assert torch.equal(temporal.earliness, certificates.temporal(votes, 3, 1)[1])
    assert (Bagging(4, bag=5).gather(models, 3, split).certify(IMAGES).radius == -1).all()  # four votes prove nothing


def test_seeds_add_their_logits() -> None:
    models = dict(enumerate([Says(3.0, 0.0), Says(0.0, 2.0), Says(0.0, 1.0), Says(0.0, 1.0)]))
    ensemble = DPA(2, seeds=2).gather(models, 2, Split((torch.arange(0),) * 2, 0))
    assert ensemble.top(IMAGES)[:, 0, 0].tolist() == [0, 1]
    with pytest.raises(ArgumentError, match=r"models must be all 4, got none for \[3\]; train those first"):
        DPA(2, seeds=2).gather({i: models[i] for i in range(3)}, 2, Split((torch.arange(0),) * 2, 0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DPA(0), "partitions must be at least 1, got 0"),
        (lambda: DPA(seeds=0), "seeds must be at least 1, got 0"),
        (lambda: FiniteAggregation(spread=0), "spread must be at least 1, got 0"),
        (lambda: HashBagging(functions=0), "functions must be at least 1, got 0"),
        (lambda: HashBagging(hash="pixel_sum"), "hash must be weighted_sum for several functions, got pixel_sum"),
        (lambda: Bagging(bag=0), "bag must be 1 row or more, got 0"),
        (lambda: Bagging(alpha=1.0), "alpha must be between 0 and 1, got 1.0"),
        (lambda: TemporalAggregation(span=0), "span must be 1 period or more, got 0"),
    ],
)
def test_bad_options(make: object, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()  # type: ignore[operator]


def test_more_networks_than_were_split_for_may_not_vote() -> None:
    models = dict(enumerate([Says(3.0, 0.0)] * 3))
    with pytest.raises(ArgumentError, match="models must be 2, as many as were split for, got 3"):
        DPA(2).gather(models, 2, Split((torch.arange(0),) * 2, 0))


@pytest.mark.parametrize("defense", [DPA(2), HashBagging(1, functions=2), TemporalAggregation(2), Bagging(2)])
def test_ballots_answer_for_no_more_guesses_than_they_hold(defense: Aggregation) -> None:
    models = dict(enumerate([Says(3.0, 0.0, 1.0)] * 2))
    ensemble = defense.gather(models, 3, Split((torch.arange(0),) * 2, 10))
    with pytest.raises(ArgumentError, match=r"n must be in \[1, 1\], the classes that the ballots hold, got 2"):
        ensemble.count_top(ensemble.ballots(IMAGES), torch.zeros(3, dtype=torch.int64), 2)
