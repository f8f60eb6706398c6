"""Attacks on condensation: within their budget, of one class, and better at their aim than chance."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from poisonkit import metrics
from poisonkit.attacks import Direct, DMPoison, DMUntargeted
from poisonkit.data import load
from poisonkit.data.siamese import Siamese
from poisonkit.errors import ArgumentError, BudgetError
from poisonkit.models import ConvNet
from poisonkit.perturb import embedded
from poisonkit.random import key
from poisonkit.train import Journal
from poisonkit.types import Budget, ImageDataset, Victims

Split = tuple[ImageDataset, ImageDataset]
MODEL = ConvNet(2, 8)
ATTACK = DMPoison(target=3, victim_class=5, eps=64, steps=30, restarts=2, rate=4.0, model=MODEL)
TENTH = Budget(0.1, per_class=True)


@pytest.fixture(scope="module")
def digits() -> Split:
    """Thirty of every class."""
    train, test = load("digits")
    return train.take(torch.cat([(train.labels == c).nonzero()[:30, 0] for c in range(10)])), test


def features(images: Tensor, seed: int) -> Tensor:
    """In a network that no attack has seen."""
    return embedded(MODEL.build((1, 8, 8), 10, key(1000 + seed)), images.float()).detach()


def distance(images: Tensor, victim: Tensor) -> float:
    """Of the mean features of ``images`` from those of ``victim``, a mean over networks."""
    found = [(features(images, i).mean(0) - features(victim, i)[0]).square().sum() for i in range(8)]
    return float(torch.stack(found).mean())


def test_dm_poison_moves_the_mean_features_to_the_victim(digits: Split) -> None:
    train, test = digits
    poison = ATTACK(train, TENTH, key=key(0), victims=test)
    assert isinstance(poison.goal, Victims)
    assert poison.goal.labels.tolist() == [3]
    assert (train.labels[poison.rows] == 3).all()
    assert len(poison.rows) == 3
    was = train.images[poison.rows]
    change = (poison.images.int() - was.int()).abs()
    assert 32 < int(change.max()) <= 64
    assert len(poison.apply(train)) == 300  # labels are kept, and it is checked
    victim = poison.goal.images
    assert distance(poison.images, victim) < 0.7 * distance(was, victim)
    noise = (was + 64 * torch.randn(was.shape, generator=key(9).generator()).sign()).clamp(0, 255)
    assert distance(poison.images, victim) < distance(noise, victim)


def test_one_per_cent_of_all_is_a_tenth_of_a_class(digits: Split) -> None:
    train, test = digits
    rows = Direct(target=3)(train, Budget(0.01), key=key(0), victims=test).rows
    share = Direct(target=3)(train, TENTH, key=key(0), victims=test).rows
    assert len(rows) == len(share) == 3


def test_dm_poison_is_a_function_of_its_key(digits: Split, tmp_path: Path) -> None:
    train, test = digits
    quick = replace(ATTACK, steps=3, augment=None, count=2)
    one, same, other = (quick(train, TENTH, key=key(seed), victims=test) for seed in (0, 0, 1))
    assert torch.equal(one.images, same.images)
    assert not torch.equal(one.rows, other.rows)
    # its restarts are kept, and the best is taken
    state = quick.craft(train, TENTH, key=key(0), victims=test, journal=Journal(tmp_path))
    assert len(list(tmp_path.glob("restart-*.safetensors"))) == len(state["loss"]) == 2
    assert torch.equal(quick(train, TENTH, key=key(0), victims=test, state=state).images, one.images)


def test_direct_gives_copies_that_keep_their_label(digits: Split) -> None:
    train, test = digits
    poison = Direct(target=3, victim_class=5, count=2)(train, Budget(0.02), key=key(0), victims=test)
    assert isinstance(poison.goal, Victims)
    assert torch.equal(poison.images, poison.goal.images[torch.tensor([0, 1, 0, 1, 0, 1])])
    dirty = poison.apply(train)
    assert torch.equal(dirty.labels, train.labels)
    victims = (test.images[test.labels == 5] == poison.goal.images[0]).flatten(1).all(1)
    assert victims.any()
    with pytest.raises(ArgumentError, match=r"eps must be at most the budget's 64"):
        Direct()(train, Budget(0.02, eps=64), key=key(0), victims=test)


def test_untargeted_draws_the_means_of_all_classes_away(digits: Split) -> None:
    train, _ = digits
    attack = DMUntargeted(eps=64, steps=20, rate=4.0, batch_size=16, model=MODEL, augment=Siamese(("crop",)))
    poison = attack(train, Budget(0.1), key=key(0))
    assert isinstance(poison.goal, Victims)
    assert len(poison.goal.images) == 0
    assert torch.bincount(train.labels[poison.rows]).tolist() == [3] * 10
    dirty = poison.apply(train)
    assert torch.equal(dirty.labels, train.labels)
    poisoned = torch.zeros(300, dtype=torch.bool)
    poisoned[poison.rows] = True

    def shift(images: Tensor) -> float:
        r = features(images, 0)
        means = [
            r[poisoned & (train.labels == c)].mean(0) - r[~poisoned & (train.labels == c)].mean(0) for c in range(10)
        ]
        return float(torch.stack(means).norm())

    assert shift(dirty.images) > 1.3 * shift(train.images)
    with pytest.raises(ArgumentError, match="rate must be for at least one row of each class"):
        attack(train, Budget(0.01), key=key(0))
    with pytest.raises(ArgumentError, match="eps must be at most the budget's 8"):
        attack(train, Budget(0.1, eps=8), key=key(0))


def test_the_budget_is_checked_where_it_is_applied(digits: Split) -> None:
    train, test = digits
    poison = Direct(target=3)(train, Budget(0.02), key=key(0), victims=test)
    with pytest.raises(BudgetError, match="poisoned rows must be at most 3"):
        replace(poison, budget=TENTH).apply(train)


def test_poisoned_deviation_by_hand() -> None:
    r = torch.tensor([[3.0, 0.0], [1.0, 4.0], [5.0, 5.0], [0.0, 1.0]])
    poisoned = torch.tensor([True, True, False, False])
    assert metrics.poisoned_deviation(r, poisoned) == pytest.approx(32**0.5 / 4)  # |(4, 4)| over four rows
    counted = torch.tensor([True, False, True, True])
    assert metrics.poisoned_deviation(r, poisoned, counted) == pytest.approx(1.0)  # |(3, 0)| over three
    assert metrics.poisoned_deviation(r, ~poisoned, poisoned) == 0
    with pytest.raises(ArgumentError, match=r"of shape \[4\]"):
        metrics.poisoned_deviation(r, poisoned[:3])
    with pytest.raises(ArgumentError, match="counted must be at least one row"):
        metrics.poisoned_deviation(r, poisoned, torch.zeros(4, dtype=torch.bool))
