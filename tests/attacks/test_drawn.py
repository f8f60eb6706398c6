"""Triggers that a network draws for each image: ISSBA's secret is read, an input-aware patch serves its image alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from poisonkit import data, metrics
from poisonkit.__main__ import main
from poisonkit.attacks import InputAware, Issba
from poisonkit.attacks.crafting import SURROGATE, CraftedAttack, below
from poisonkit.engine import Progress
from poisonkit.engine.crafting import crafted
from poisonkit.errors import ArgumentError
from poisonkit.models import ResNet
from poisonkit.models.unet import UNet
from poisonkit.random import key
from poisonkit.train import new_model
from poisonkit.train.checkpoints import load_tensors
from poisonkit.train.loop import Checkpoint
from poisonkit.types import Backdoor, Budget, ImageDataset

RECIPE = replace(SURROGATE, model=ResNet(8, 8, stem="small"), epochs=8, batch_size=32, augment=None)
PATCHES = InputAware(surrogate=RECIPE, width=6, share=0.2, mask_epochs=4, target=3)
QUICK = replace(PATCHES, surrogate=replace(RECIPE, epochs=1), mask_epochs=1)
SECRET = Issba(bits=8, steps=270, change=200.0, target=3)


@pytest.fixture(scope="module")
def digits() -> tuple[ImageDataset, ImageDataset]:
    return data.load("digits")


@pytest.fixture(scope="module")
def patches(digits: tuple[ImageDataset, ImageDataset]) -> Mapping[str, Tensor]:
    return QUICK.craft(digits[0].take(torch.arange(60)), key=key(0))


@pytest.fixture(scope="module")
def secret(digits: tuple[ImageDataset, ImageDataset]) -> Mapping[str, Tensor]:
    return SECRET.craft(digits[0], key=key(0))


def test_the_secret_is_read_from_test_images(
    digits: tuple[ImageDataset, ImageDataset], secret: Mapping[str, Tensor]
) -> None:
    images, trigger = digits[1].images, SECRET.trigger(secret)
    hidden = trigger(images)

    def right(seen: Tensor) -> float:
        return float((SECRET.read(secret, seen) == trigger.secret).double().mean())

    assert right(hidden) >= 0.95
    assert right(images) < 0.8
    change = (hidden.double() - images.double()).square().mean().sqrt()
    assert change < 20
    # each image is changed in its own way
    steps = hidden.int() - images.int()
    assert len({each.numpy().tobytes() for each in steps}) > 0.9 * len(images)


@pytest.mark.slow
def test_an_image_s_own_patch_is_what_counts(digits: tuple[ImageDataset, ImageDataset]) -> None:
    train, test = digits
    state = PATCHES.craft(train, key=key(0))
    trigger = PATCHES.trigger(state)
    model = new_model(RECIPE, train, key(0))
    model.load_state_dict(below(state, "surrogate"))
    assert metrics.clean_accuracy(model.eval(), test) > 0.85

    def success(images: Tensor) -> float:
        return metrics.attack_success_rate(model, test, Backdoor(lambda _: images, 3))

    own, other = success(trigger(test.images)), success(trigger.crossed(test.images, test.images.roll(1, 0)))
    assert own > 0.5
    assert own > 2 * other


def test_input_aware_poison_by_its_parts(
    digits: tuple[ImageDataset, ImageDataset], patches: Mapping[str, Tensor]
) -> None:
    train, _ = digits
    trigger = PATCHES.trigger(patches)
    for cross, stamped, crossed in ((1, 7, 7), (0, 14, 0), (2, 4, 8)):
        poison = replace(PATCHES, cross=cross)(train, Budget(0.01), key=key(0), state=patches)
        rows = train.images[poison.rows]
        assert len(poison.rows) == stamped + crossed <= 14
        assert poison.labels[:stamped].tolist() == [3] * stamped
        assert torch.equal(poison.labels[stamped:], train.labels[poison.rows[stamped:]])
        assert torch.equal(poison.images[:stamped], trigger(rows[:stamped]))
        donors = rows[:stamped].repeat(cross, 1, 1, 1)
        assert torch.equal(poison.images[stamped:], trigger.crossed(rows[stamped:], donors))
        poison.apply(train)
    with pytest.raises(ArgumentError, match="cross must be 0 or more rows, got -1"):
        InputAware(cross=-1)
    with pytest.raises(ArgumentError, match=r"share must be above 0, and at most a third, got 0.5"):
        InputAware(share=0.5)


def test_issba_poison(digits: tuple[ImageDataset, ImageDataset], secret: Mapping[str, Tensor]) -> None:
    poison = SECRET(digits[0], Budget(0.01), key=key(0), state=secret)
    assert poison.labels.tolist() == [3] * 14
    assert torch.equal(poison.images, SECRET.trigger(secret)(digits[0].images[poison.rows]))
    assert set(secret["secret"].tolist()) <= {0.0, 1.0}
    with pytest.raises(ArgumentError, match="bits must be 1 or more, got 0"):
        Issba(bits=0)


@pytest.mark.parametrize("attack", [QUICK, replace(SECRET, steps=1)], ids=lambda attack: type(attack).__name__)
def test_the_same_key_makes_the_same_trigger(attack: CraftedAttack, digits: tuple[ImageDataset, ImageDataset]) -> None:
    few = digits[0].take(torch.arange(40))
    one, same, other = (attack.craft(few, key=key(seed)) for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("kept", [1, 2, 3])
@pytest.mark.parametrize(
    "attack",
    [replace(PATCHES, width=2, surrogate=replace(RECIPE, epochs=2), mask_epochs=2), replace(SECRET, steps=8, width=2)],
    ids=lambda attack: type(attack).__name__,
)
def test_a_killed_craft_goes_on_with_the_epoch_it_was_in(
    attack: CraftedAttack,
    kept: int,
    tmp_path: Path,
    digits: tuple[ImageDataset, ImageDataset],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few, save, saved = digits[0].take(torch.arange(40)), Checkpoint.save, [0]

    def killed(self: Checkpoint, tensors: Mapping[str, Tensor], epochs: int) -> None:
        if saved[0] == kept:
            raise KeyboardInterrupt
        save(self, tensors, epochs)
        saved[0] += 1

    monkeypatch.setattr(Checkpoint, "save", killed)
    with pytest.raises(KeyboardInterrupt):
        crafted(attack, few, tmp_path, key(0), Progress())
    kept = 4  # epochs in all, so that one done twice would raise again
    resumed = crafted(attack, few, tmp_path, key(0), Progress())
    assert saved == [4]
    straight = attack.craft(few, key=key(0))
    assert all(torch.equal(resumed[name], straight[name]) for name in straight)
    assert [path.suffix for path in tmp_path.iterdir() if path.name != ".locks"] == [".safetensors"]


@pytest.mark.parametrize("shape", [(1, 8, 8), (3, 20, 31)])
def test_a_unet_keeps_the_size(shape: tuple[int, int, int]) -> None:
    assert UNet(shape[0], 2, 3).eval()(torch.zeros(2, *shape)).shape == (2, 2, *shape[1:])
    with pytest.raises(ArgumentError, match="images must be of 8x8 pixels or more, got 7x9"):
        UNet(1, 1, 1)(torch.zeros(1, 1, 7, 9))


@pytest.mark.parametrize(
    ("name", "options", "shown"),
    [
        ("issba", ["--attack.steps", "1", "--attack.width", "2"], "bits of the secret read"),
        (
            "input_aware",
            ["--attack.width", "2", "--attack.surrogate.epochs", "1", "--attack.surrogate.model.width", "2"],
            "with the patch of another image",
        ),
    ],
)
def test_craft_shows_it_and_keeps_it(
    name: str, options: list[str], shown: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = tmp_path / "copy.safetensors"
    some = ["--data", "digits", "--limit", "60", "--triggers", str(tmp_path), "--out", str(copy)]
    assert main(["craft", name, *some, *options]) == 0
    assert shown in capsys.readouterr().out
    assert {"issba": "secret", "input_aware": "mask.last.bias"}[name] in load_tensors(copy)
