"""The property every certificate rests on: a row touches the partitions it hits, and nothing else, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from poisonkit.data import load
from poisonkit.data.augment import Augment
from poisonkit.defenses import DPA
from poisonkit.models import ResNet
from poisonkit.random import key
from poisonkit.train import Recipe
from poisonkit.types import ImageDataset

# augmentation and dropout on: both draw randomness while training
RECIPE = Recipe(
    model=ResNet(8, 16, stem="small", dropout=0.3), epochs=2, batch_size=16, augment=Augment(crop=1, flip=True)
)
PARTITIONS = 4


def trained(data: ImageDataset, defense: DPA) -> tuple[list[dict[str, Tensor]], list[set[bytes]]]:
    """Weights of every base model, and what is in every partition."""
    jobs = defense.jobs(data, RECIPE, key=key(3))
    weights = [defense.fit(job).state_dict() for job in jobs]
    contents = [
        {data.images[row].numpy().tobytes() + bytes([int(data.labels[row])]) for row in job.rows} for job in jobs
    ]
    return weights, contents


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def data() -> ImageDataset:
    return load("digits")[0].take(torch.arange(160))


@pytest.fixture(scope="module")
def before(data: ImageDataset) -> dict[bool, tuple[list[dict[str, Tensor]], list[set[bytes]]]]:
    return {label: trained(data, DPA(PARTITIONS, hash_label=label)) for label in (False, True)}


def insert_at_0(data: ImageDataset) -> ImageDataset:
    image = 255 - data.images[7:8]
    return ImageDataset(torch.cat([image, data.images]), torch.cat([data.labels[7:8], data.labels]), data.classes)


def delete(data: ImageDataset) -> ImageDataset:
    return data.take(torch.tensor([i for i in range(len(data)) if i != 11]))


def repaint(data: ImageDataset) -> ImageDataset:
    images = data.images.clone()
    images[5, 0, 3:5, 3:5] = 255 - images[5, 0, 3:5, 3:5]
    return replace(data, images=images)


def relabel(data: ImageDataset) -> ImageDataset:
    labels = data.labels.clone()
    labels[5] = (labels[5] + 1) % 10
    return replace(data, labels=labels)


def duplicate(data: ImageDataset) -> ImageDataset:
    return data.take(torch.tensor([*range(len(data)), 20]))


@pytest.mark.parametrize("hash_label", [False, True], ids=["image", "image+label"])
@pytest.mark.parametrize(
    ("change", "most"), [(insert_at_0, 1), (delete, 1), (repaint, 2), (relabel, 2), (duplicate, 1)]
)
def test_a_row_changes_the_partitions_it_hits(
    data: ImageDataset,
    before: dict[bool, tuple[list[dict[str, Tensor]], list[set[bytes]]]],
    change: object,
    most: int,
    hash_label: bool,
) -> None:
    old, old_rows = before[hash_label]
    changed = change(data)  # type: ignore[operator]
    defense = DPA(PARTITIONS, hash_label=hash_label)
    new, new_rows = trained(changed, defense)
    if change is duplicate:  # sets cannot see it; sizes can
        sizes = [defense.split(each, key(3)).sizes for each in (data, changed)]
        hit = {i for i in range(PARTITIONS) if sizes[0][i] != sizes[1][i]}
    else:
        hit = {i for i in range(PARTITIONS) if old_rows[i] != new_rows[i]}
    assert 1 <= len(hit) <= (1 if change is relabel and not hash_label else most)
    assert {i for i in range(PARTITIONS) if not same(old[i], new[i])} == hit


def test_row_order_is_forgotten(
    data: ImageDataset, before: dict[bool, tuple[list[dict[str, Tensor]], list[set[bytes]]]]
) -> None:
    shuffled = data.take(key(9).permutation(len(data)))
    new, _ = trained(shuffled, DPA(PARTITIONS))
    assert all(map(same, before[False][0], new))


def test_global_randomness_is_not_used(
    data: ImageDataset, before: dict[bool, tuple[list[dict[str, Tensor]], list[set[bytes]]]]
) -> None:
    torch.manual_seed(1234)
    jobs = DPA(PARTITIONS).jobs(data, RECIPE, key=key(3))
    # the third alone: an engine may train one partition anywhere
    assert same(DPA(PARTITIONS).fit(jobs[2]).state_dict(), before[False][0][2])


def test_seed_is_used(data: ImageDataset, before: dict[bool, tuple[list[dict[str, Tensor]], list[set[bytes]]]]) -> None:
    job = DPA(PARTITIONS).jobs(data, RECIPE, key=key(3))[0]
    other = replace(job, key=key(4).child("partition", 0))
    assert not same(DPA(PARTITIONS).fit(other).state_dict(), before[False][0][0])
