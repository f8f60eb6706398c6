"""Anti-Backdoor Learning from its isolation to its unlearning, and a kill in each of its parts."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from poisonkit.attacks import BadNetsWhite
from poisonkit.data import load
from poisonkit.defenses.training import ABL
from poisonkit.errors import ArgumentError
from poisonkit.models import ResNet, ViT, logits
from poisonkit.random import key
from poisonkit.train import Cosine, Epoch, Journal, OneCycle, Recipe
from poisonkit.types import Budget, ImageDataset

RECIPE = Recipe(ResNet(8, 4, stem="small"), epochs=2, batch_size=16, schedule=OneCycle(0.01, 0.1), augment=None)
SMALL = ABL(isolation_epochs=2, isolation_rate=0.05, ratio=0.05, unlearn_epochs=1, unlearn_rate=0.01)


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


def noise(n: int = 64) -> ImageDataset:
    images = torch.randint(0, 256, (n, 1, 8, 8), dtype=torch.uint8, generator=key(1).generator())
    return ImageDataset(images, torch.arange(n) % 4, tuple("abcd"))


def loss_of(model: nn.Module, data: ImageDataset) -> float:
    return float(cross_entropy(logits(model, data.images), data.labels))


def test_it_isolates_the_trigger_and_unlearns_it() -> None:
    train, _ = load("digits")
    train = train.take(torch.arange(500))
    poison = BadNetsWhite(target=1, size=3)(train, Budget(0.1), key=key(0).child("attack"))
    dirty, journal = poison.apply(train), Journal()
    recipe = replace(RECIPE, epochs=4)
    model = ABL(isolation_epochs=4, isolation_rate=0.02, ratio=0.05, unlearn_epochs=2, unlearn_rate=0.01)(
        dirty, recipe, key=key(0), journal=journal
    )
    flagged = journal.notes["flagged"]
    poisoned = torch.zeros(500, dtype=torch.bool)
    poisoned[poison.rows] = True
    assert int(flagged.sum()) == 25
    assert int((flagged & poisoned).sum()) >= 10, "four times what chance would isolate"
    assert torch.equal(flagged.nonzero()[:, 0], journal.notes["loss"].argsort(stable=True)[:25].sort().values)
    unlearned, kept = (dirty.take(rows.nonzero()[:, 0]) for rows in (flagged, ~poisoned))
    assert loss_of(model, unlearned) > 2 * loss_of(model, kept)


@pytest.mark.parametrize("at", [1, 3, 5])
def test_killed_and_resumed_to_the_same_bits(tmp_path: Path, at: int) -> None:
    straight = SMALL(noise(), RECIPE, key=key(0))
    heard = 0

    def stop(epoch: Epoch) -> None:
        nonlocal heard
        heard += 1
        if heard == at:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        SMALL(noise(), RECIPE, key=key(0), journal=Journal(tmp_path, stop))
    assert same(straight, SMALL(noise(), RECIPE, key=key(0), journal=Journal(tmp_path)))


def test_a_given_network_is_left_as_it_was() -> None:
    vit = ViT(1, 8, 2, patch=4).build((1, 8, 8), 4, key(0))
    before = {name: tensor.clone() for name, tensor in vit.state_dict().items()}
    recipe = replace(RECIPE, model=vit.config, optimizer="adamw", schedule=Cosine(1e-3))
    defense = replace(SMALL, isolation_rate=1e-3, unlearn_rate=1e-3, shape="flooding")
    assert not same(vit, defense(noise(), recipe, key=key(0), model=vit))
    assert all(torch.equal(before[name], tensor) for name, tensor in vit.state_dict().items())


def test_no_rows_to_isolate() -> None:
    journal = Journal()
    replace(SMALL, ratio=0.0)(noise(), RECIPE, key=key(0), journal=journal)
    assert not journal.notes["flagged"].any()


@pytest.mark.parametrize("options", [{"ratio": 1.0}, {"isolation_epochs": 0}, {"unlearn_epochs": 0}, {"shape": "relu"}])
def test_errors(options: dict) -> None:
    with pytest.raises(ArgumentError, match=f"{next(iter(options))} must be"):
        ABL(**options)
