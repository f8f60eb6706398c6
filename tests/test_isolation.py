"""The property every certificate rests on: a row touches the partitions it hits, and nothing else, bit for bit."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from poisonkit.data import load
from poisonkit.data.augment import Augment
from poisonkit.defenses import DPA
from poisonkit.errors import PoisonkitError
from poisonkit.models import ResNet
from poisonkit.random import key
from poisonkit.train import Job, Recipe, fit_stack
from poisonkit.train.stacked import _Training
from poisonkit.types import ImageDataset

# augmentation and dropout on: both draw randomness while training
RECIPE = Recipe(
    model=ResNet(8, 16, stem="small", dropout=0.3), epochs=2, batch_size=16, augment=Augment(crop=1, flip=True)
)
PARTITIONS = 4


def trained(data: ImageDataset, defense: DPA, stacked: bool) -> tuple[list[dict[str, Tensor]], list[set[bytes]]]:
    """Weights of every base model, trained alone or together, and what is in every partition."""
    jobs = defense.jobs(data, RECIPE, key=key(3))
    models = fit_stack(jobs) if stacked else [defense.fit(job) for job in jobs]
    weights = [model.state_dict() for model in models]
    contents = [
        {data.images[row].numpy().tobytes() + bytes([int(data.labels[row])]) for row in job.rows} for job in jobs
    ]
    return weights, contents


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.fixture(scope="module")
def data() -> ImageDataset:
    return load("digits")[0].take(torch.arange(160))


Trained = tuple[list[dict[str, Tensor]], list[set[bytes]]]


@pytest.fixture(scope="module", params=[False, True], ids=["alone", "stacked"])
def stacked(request: pytest.FixtureRequest) -> bool:
    return bool(request.param)


@pytest.fixture(scope="module")
def before(data: ImageDataset, stacked: bool) -> dict[bool, Trained]:
    return {label: trained(data, DPA(PARTITIONS, hash_label=label), stacked) for label in (False, True)}


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
    before: dict[bool, Trained],
    change: object,
    most: int,
    hash_label: bool,
    stacked: bool,
) -> None:
    old, old_rows = before[hash_label]
    changed = change(data)  # type: ignore[operator]
    defense = DPA(PARTITIONS, hash_label=hash_label)
    new, new_rows = trained(changed, defense, stacked)
    if change is duplicate:  # sets cannot see it; sizes can
        sizes = [defense.split(each, key(3)).sizes for each in (data, changed)]
        hit = {i for i in range(PARTITIONS) if sizes[0][i] != sizes[1][i]}
    else:
        hit = {i for i in range(PARTITIONS) if old_rows[i] != new_rows[i]}
    assert 1 <= len(hit) <= (1 if change is relabel and not hash_label else most)
    assert {i for i in range(PARTITIONS) if not same(old[i], new[i])} == hit


def test_row_order_is_forgotten(data: ImageDataset, before: dict[bool, Trained], stacked: bool) -> None:
    shuffled = data.take(key(9).permutation(len(data)))
    new, _ = trained(shuffled, DPA(PARTITIONS), stacked)
    assert all(map(same, before[False][0], new))


def test_global_randomness_is_not_used(data: ImageDataset) -> None:
    jobs = DPA(PARTITIONS).jobs(data, RECIPE, key=key(3))
    expected = [DPA(PARTITIONS).fit(job).state_dict() for job in jobs[1:3]]
    torch.manual_seed(1234)
    # the third alone: an engine may train one partition anywhere
    assert same(DPA(PARTITIONS).fit(jobs[2]).state_dict(), expected[1])


def test_seed_is_used(data: ImageDataset) -> None:
    job = DPA(PARTITIONS).jobs(data, RECIPE, key=key(3))[0]
    other = replace(job, key=key(4).child("partition", 0))
    assert not same(DPA(PARTITIONS).fit(other).state_dict(), DPA(PARTITIONS).fit(job).state_dict())


def stack_of(data: ImageDataset, sizes: tuple[int, ...], first: int = 0, recipe: Recipe = RECIPE) -> list[Job]:
    """Jobs on consecutive rows; those of the first end with row 99, and so reach down as far as they are many."""
    ends = torch.tensor([100, *(100 + sum(sizes[1 : i + 1]) for i in range(1, len(sizes)))])
    return [
        Job(i, data, torch.arange(int(end) - size, int(end)) - (first if i == 0 else 0), recipe, key(3).child(i))
        for i, (size, end) in enumerate(zip(sizes, ends, strict=True))
    ]


@pytest.mark.parametrize("channels_last", [True, False], ids=["NHWC", "NCHW"])
def test_a_partition_may_become_anything_beside_others_in_a_stack(data: ImageDataset, channels_last: bool) -> None:
    # The others: two steps an epoch, one step, a single row, none; width 4 has fewer channels than a vector register
    recipe = replace(RECIPE, model=replace(RECIPE.model, width=4), channels_last=channels_last)
    others = (20, 16, 1, 0)
    expected = fit_stack(stack_of(data, (33, *others), recipe=recipe))
    for size, first in [(33, 9), (32, 0), (100, 0), (1, 0), (0, 0)]:
        changed = fit_stack(stack_of(data, (size, *others), first, recipe))
        assert not same(expected[0].state_dict(), changed[0].state_dict())
        for one, other in zip(expected[1:], changed[1:], strict=True):
            assert same(one.state_dict(), other.state_dict())


def test_nan_in_one_network_of_a_stack_stays_there(data: ImageDataset) -> None:
    jobs = stack_of(data, (33, 20, 1, 0))
    well, ill = _Training(jobs), _Training(jobs)
    for name, tensor in ill.state.items():
        if tensor.is_floating_point():
            tensor[0] = float("nan" if "conv" in name else "inf")
    well.epoch(0)
    with pytest.raises(PoisonkitError, match="loss of network 0 must be finite"):
        ill.epoch(0)
    assert not ill.state["model.fc.weight"][0].isfinite().any()
    for name, tensor in well.state.items():
        assert torch.equal(ill.state[name][1:], tensor[1:])
