"""The poisoning convention: which rows, how many, with which label, and what the goal asks at test time."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from poisonkit import metrics
from poisonkit.attacks import (
    ATTACKS,
    BadNetsAllToAll,
    BadNetsWhite,
    Blended,
    BlendedPatch,
    Sig,
    SigWrapped,
    WaNet,
)
from poisonkit.errors import ArgumentError, BudgetError
from poisonkit.random import key
from poisonkit.types import Backdoor, Budget, ImageDataset, NextClass, Poison

PLAIN = [name for name, kind in ATTACKS.items() if not hasattr(kind, "craft")]
CLEAN_LABEL = {"sig", "sig_wrapped"}

plain = pytest.mark.parametrize("name", PLAIN)


def some_data(n: int = 200, classes: int = 4, side: int = 32, channels: int = 3) -> ImageDataset:
    generator = torch.Generator().manual_seed(n)
    images = torch.randint(0, 256, (n, channels, side, side), dtype=torch.uint8, generator=generator)
    return ImageDataset(images, torch.arange(n) % classes, tuple("abcdefghij"[:classes]))


def changed(data: ImageDataset, poison: Poison) -> Tensor:
    dirty = poison.apply(data)
    return (dirty.images != data.images).flatten(1).any(1) | (dirty.labels != data.labels)


@plain
@pytest.mark.parametrize(("side", "channels"), [(32, 3), (64, 3), (8, 1)])
def test_every_attack_fits_common_images(name: str, side: int, channels: int) -> None:
    data = some_data(side=side, channels=channels)
    poison = ATTACKS[name]()(data, Budget(0.15), key=key(0))
    assert len(poison.rows) == 30
    assert int(changed(data, poison).sum()) <= 30
    assert isinstance(poison.goal, Backdoor)
    assert not torch.equal(poison.goal.trigger(data.images), data.images)


@plain
def test_an_attack_is_a_function_of_its_key(name: str) -> None:
    data, attack = some_data(), ATTACKS[name]()
    one, same, other = (attack(data, Budget(0.15), key=key(seed)) for seed in (0, 0, 1))
    assert torch.equal(one.rows, same.rows)
    assert torch.equal(one.images, same.images)
    assert not torch.equal(one.rows, other.rows)


@plain
def test_labels_follow_the_rule(name: str) -> None:
    data = some_data()
    poison = ATTACKS[name]()(data, Budget(0.15), key=key(0))
    was = data.labels[poison.rows]
    if name == "wanet":
        assert poison.labels[:10].tolist() == [0] * 10
        assert torch.equal(poison.labels[10:], was[10:])
    elif name == "badnets_all_to_all":
        assert torch.equal(poison.labels, (was + 1) % 4)
    elif name in CLEAN_LABEL:
        assert poison.labels.tolist() == was.tolist() == [0] * 30
        replace(poison, budget=Budget(0.15, clean_label=True)).apply(data)
    else:
        assert poison.labels.tolist() == [0] * 30
        assert was.unique().tolist() == [0, 1, 2, 3]
        with pytest.raises(BudgetError, match=r"labels must be unchanged \(clean_label\)"):
            replace(poison, budget=Budget(0.15, clean_label=True)).apply(data)


@pytest.mark.parametrize(("rows", "classes"), [("any", [0, 1, 2, 3]), ("others", [0, 1, 3]), ("target", [2])])
def test_rows_may_be_of_any_class_of_others_or_of_the_target(rows: Any, classes: list[int]) -> None:
    data = some_data()
    poison = BadNetsWhite(target=2, rows=rows)(data, Budget(0.2), key=key(0))
    assert data.labels[poison.rows].unique().tolist() == classes
    assert len(poison.rows) == len(poison.rows.unique()) == 40
    assert poison.labels.tolist() == [2] * 40


def test_what_cannot_be_picked_is_refused() -> None:
    data = some_data()
    with pytest.raises(ArgumentError, match=r"rate must be for at most the 50 rows to pick from, got 60 rows; lower"):
        Sig()(data, Budget(0.3), key=key(0))
    assert len(Sig()(data, Budget(0.25), key=key(0)).rows) == 50
    with pytest.raises(ArgumentError, match=r"target must be a class in \[0, 4\), got 4"):
        Sig(target=4)(data, Budget(0.3), key=key(0))


def test_a_rate_may_be_of_the_target_class() -> None:
    data = some_data(202)  # classes of 51, 51, 50, 50
    poison = Sig(target=1)(data, Budget(1.0, per_class=True), key=key(0))
    assert sorted(poison.rows.tolist()) == list(range(1, 202, 4))
    assert int(changed(data, poison).sum()) == 51
    half = BadNetsWhite(target=1)(data, Budget(0.5, per_class=True), key=key(0))
    assert len(half.rows) == 25  # of 51, truncated
    greedy = replace(half, budget=Budget(0.4, per_class=True))
    with pytest.raises(BudgetError, match=r"poisoned rows must be at most 20 \(0.4 of class 1\), got 25"):
        greedy.apply(data)
    with pytest.raises(ArgumentError, match="target must be one class, for a rate per class"):
        BadNetsAllToAll()(data, Budget(0.5, per_class=True), key=key(0))


@pytest.mark.parametrize(("noise", "stamped", "noisy"), [(2, 10, 20), (0, 31, 0), (5, 5, 25)])
def test_rows_of_noise_are_paid_for(noise: int, stamped: int, noisy: int) -> None:
    data = some_data(208)
    poison = WaNet(noise=noise)(data, Budget(0.15), key=key(0))  # 31 rows
    assert len(poison.rows) == stamped + noisy <= 31
    assert isinstance(poison.goal, Backdoor)
    marked = poison.goal.trigger(data.images[poison.rows])
    assert torch.equal(marked[:stamped], poison.images[:stamped])
    assert bool((marked[stamped:] != poison.images[stamped:]).flatten(1).any(1).all())
    assert int(changed(data, poison).sum()) == stamped + noisy


def test_all_to_all_is_measured_against_the_next_class() -> None:
    class Told(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return nn.functional.one_hot(images[:, 0, 0, 0].long() % 4, 4).float()

    data = some_data(8)
    goal = Backdoor(lambda images: images, NextClass(4))
    data.images[:, 0, 0, 0] = torch.tensor([1, 2, 3, 0, 0, 1, 1, 1], dtype=torch.uint8)
    assert data.labels.tolist() == [0, 1, 2, 3, 0, 1, 2, 3]
    assert goal.wanted(data.labels).tolist() == [1, 2, 3, 0, 1, 2, 3, 0]
    assert metrics.attack_success_rate(Told(), data, goal) == 4 / 8
    assert metrics.poison_accuracy(Told(), data, goal) == 2 / 8
    one = replace(goal, target=1)
    # of the six images of other classes, three are called 1 (the first, the seventh, the eighth)
    assert metrics.attack_success_rate(Told(), data, one) == 3 / 6
    assert metrics.attack_success_rate(Told(), data, one, include_target=True) == 4 / 8


def test_strength_may_differ_at_test_time() -> None:
    data = replace(some_data(), images=torch.full((200, 3, 32, 32), 100, dtype=torch.uint8))
    blended = Blended(alpha=0.1, test_alpha=0.2)(data, Budget(0.1), key=key(0))
    assert isinstance(blended.goal, Backdoor)
    # at the upper left the texture is (0, 255, 0)
    assert blended.images[0, :, 0, 0].tolist() == [90, 116, 90]
    assert blended.goal.trigger(data.images)[0, :, 0, 0].tolist() == [80, 131, 80]
    waves = Sig(amplitude=20, test_amplitude=40)(data, Budget(0.1), key=key(0))
    assert isinstance(waves.goal, Backdoor)
    assert waves.images.amax() == 120
    assert waves.goal.trigger(data.images).amax() == 140
    patch = BlendedPatch(alpha=0.2, test_alpha=1.0)(data, Budget(0.1), key=key(0))
    assert isinstance(patch.goal, Backdoor)
    faint, full = (x.int() - 100 for x in (patch.images[:1], patch.goal.trigger(data.images)[:1]))
    assert int((faint - 0.2 * full).abs().max()) <= 0.5


def test_any_picture_may_be_blended(tmp_path: Path) -> None:
    path = tmp_path / "red.png"
    Image.new("RGB", (50, 20), (255, 0, 55)).save(path)
    data = replace(some_data(), images=torch.full((200, 3, 32, 32), 100, dtype=torch.uint8))
    poison = Blended(picture=str(path), alpha=0.4)(data, Budget(0.1), key=key(0))
    assert poison.images[0, :, 7, 9].tolist() == [162, 60, 82]
    digits = some_data(side=8, channels=1)
    poison = Blended(picture=str(path), alpha=1.0)(digits, Budget(0.1), key=key(0))
    assert poison.images.unique().tolist() == [103]  # (255 + 0 + 55)/3


def test_wrapped_waves_by_hand() -> None:
    data = replace(some_data(), images=torch.full((200, 3, 32, 32), 100, dtype=torch.uint8))
    poison = SigWrapped()(data, Budget(0.1), key=key(0))
    levels = [int(20 * math.sin(0.8 * j)) % 256 for j in range(32)]
    assert poison.images[0, 1, 17].tolist() == [round(80 + 0.2 * level) for level in levels]
