"""Triggers made with a network: what they obey, that they do what they were made for, and that they are made once."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from poisonkit import data, metrics
from poisonkit.attacks import ATTACKS, L0Invisible, L2Invisible, LabelConsistent, Smooth, TrojanSquare, TrojanWatermark
from poisonkit.attacks.crafting import SURROGATE, CraftedAttack, rise, surrogate, twin
from poisonkit.attacks.smooth import gaussian
from poisonkit.attacks.trojan import letters, square
from poisonkit.data.augment import Augment
from poisonkit.engine import Progress
from poisonkit.engine.crafting import Ready, crafted, kept_at
from poisonkit.errors import ArgumentError, DataError
from poisonkit.models import ResNet, predict
from poisonkit.perturb import frozen, projected_descent
from poisonkit.random import key
from poisonkit.triggers import Additive, Corners, Overlay
from poisonkit.types import Backdoor, Budget, ImageDataset

RECIPE = replace(SURROGATE, model=ResNet(8, 8, stem="small"), epochs=4, batch_size=32, augment=Augment(1, flip=False))
QUICK: dict[str, Any] = {"surrogate": RECIPE, "steps": 60, "batch_size": 32}


def doubled(part: ImageDataset) -> ImageDataset:
    """Digits of 3×16×16."""
    large = part.images.repeat_interleave(2, 2).repeat_interleave(2, 3).expand(-1, 3, -1, -1)
    return replace(part, images=large.contiguous())


@pytest.fixture(scope="module")
def digits() -> tuple[ImageDataset, ImageDataset]:
    train, test = data.load("digits")
    return doubled(train), doubled(test)


@pytest.fixture(scope="module")
def model(digits: tuple[ImageDataset, ImageDataset]) -> nn.Module:
    """A surrogate on digits: seconds."""
    found = surrogate(RECIPE, digits[0], key(0))
    assert metrics.clean_accuracy(found, digits[1]) > 0.9
    return found


def craft(attack: Any, train: ImageDataset, model: nn.Module) -> Any:
    return attack.trigger(attack.craft(train, key=key(0), fit=lambda *_, **__: model))


def test_masks_by_hand() -> None:
    at = square(32, 32).nonzero()
    assert (at.amin().item(), at.amax().item(), len(at)) == (21, 29, 81)
    at = square(64, 64).nonzero()
    assert (at.amin().item(), at.amax().item(), len(at)) == (42, 59, 324)
    page = letters("LIT I", 32, 32)
    assert page[:7, :5].int().tolist() == [[1, 0, 0, 0, 0]] * 6 + [[1] * 5]
    assert page[:7, 6:11].int().tolist() == [[0, 1, 1, 1, 0], *[[0, 0, 1, 0, 0]] * 5, [0, 1, 1, 1, 0]]
    assert torch.equal(page[8:15, :5], page[:7, 6:11])
    assert int(page.sum()) == 11 + 11 + 11 + 11
    large = letters("LIT I", 64, 64)
    assert torch.equal(large, page.repeat_interleave(2, 0).repeat_interleave(2, 1))
    default = letters(TrojanWatermark().text, 32, 32).nonzero()
    assert default.amax(0).tolist() == [30, 28]
    with pytest.raises(ArgumentError, match="text must be one to four lines of five letters or fewer, got 'SIXTEEN'"):
        letters("SIXTEEN", 32, 32)


def test_the_neurons_that_stand_out() -> None:
    network = ResNet(8, 2, stem="small").build((3, 16, 16), 3, key(0)).eval()
    with torch.no_grad():
        network.fc.weight.zero_()
        network.fc.weight[1, :3] = torch.tensor([3.0, 6.0, 1.5])
        network.fc.weight[2, 1] = 3.0
    images = torch.rand(4, 3, 16, 16) * 255
    found = network.features(images)
    # above the mean of the three classes: 3 - 1, 6 - 3, 1.5 - 0.5
    torch.testing.assert_close(TrojanSquare(target=1, neurons=1).score(network)(images), 3 * found[:, 1])
    both = TrojanSquare(target=1, neurons=2).score(network)(images)
    torch.testing.assert_close(both, 3 * found[:, 1] + 2 * found[:, 0])
    every = TrojanSquare(target=2).score(network)(images)  # 0 - 1, 3 - 3, 0 - 0.5
    torch.testing.assert_close(every, -found[:, 0] - 0.5 * found[:, 2])


def test_gaussian_by_hand() -> None:
    weights = gaussian(3, 1.0)
    e = 2.718281828
    ends, middle = [1, e**-0.5, e**-2], [e**-0.5, 1, e**-0.5]
    expected = torch.tensor([[w / sum(row) for w in row] for row in (ends, middle, ends[::-1])])
    torch.testing.assert_close(weights, expected)


def test_a_twin_keeps_mask_and_norm() -> None:
    pattern = torch.zeros(3, 8, 8, dtype=torch.int16)
    pattern[:, 2:5, 3] = torch.arange(1, 10, dtype=torch.int16).view(3, 3)
    other = twin(Additive(pattern), key(0))
    assert isinstance(other, Additive)
    assert torch.equal(other.pattern != 0, pattern != 0)
    assert sorted(other.pattern[pattern != 0].tolist()) == list(range(1, 10))
    assert not torch.equal(other.pattern, pattern)
    mask = torch.rand(1, 8, 8) < 0.5
    colours = twin(Overlay(torch.zeros(3, 8, 8, dtype=torch.uint8), mask), key(0))
    assert isinstance(colours, Overlay)
    assert colours.mask is mask
    assert colours.pixels.unique().tolist() == [0, 255]


def test_triggers_obey_their_bounds(digits: tuple[ImageDataset, ImageDataset], model: nn.Module) -> None:
    train, _ = digits
    few = {**QUICK, "steps": 3}
    masks = [(TrojanSquare(**few), square(16, 16)), (TrojanWatermark(**few, text="A"), letters("A", 16, 16))]
    for attack, mask in masks:
        pattern = craft(attack, train, model).pattern
        assert pattern.min() == 0
        assert pattern.max() <= 255
        assert torch.equal((pattern != 0).any(0), mask)
    faint = craft(L2Invisible(**few, rms=20), train, model).pattern
    assert faint.min() >= 0
    assert float(faint.double().square().mean().sqrt()) == pytest.approx(20, abs=0.1)
    few_pixels = craft(L0Invisible(**few), train, model)
    assert int(few_pixels.mask.sum()) == 2  # 9 of 1024, of 256
    assert set(few_pixels.pixels.unique().tolist()) <= {0, 255}
    smooth = craft(Smooth(**few), train, model).pattern
    assert smooth.min() == 0
    assert smooth.max() <= 51
    power = torch.fft.fft2(smooth.double()).abs().square()
    power[:, 0, 0] = 0  # the mean apart, the rest lies at low frequencies
    low = torch.fft.fftfreq(16, 1 / 16).abs() <= 3
    assert float(power[:, low][:, :, low].sum() / power.sum()) > 0.85


@pytest.mark.parametrize("side", [32, 64])
def test_bounds_scale_with_the_image(side: int) -> None:
    """What docs/attacks.md says of 32×32 and of 64×64."""
    images = torch.randint(0, 256, (8, 3, side, side), dtype=torch.uint8, generator=key(0).generator())
    train = ImageDataset(images, torch.arange(8) % 4, tuple("abcd"))
    model = ResNet(8, 4, stem="small").build(train.shape, 4, key(1)).eval()
    few, fold = {"steps": 4, "batch_size": 4}, side // 32

    def norm(pattern: torch.Tensor) -> float:
        return float((pattern.double() / 255).norm())

    assert norm(craft(Smooth(**few), train, model).pattern) <= 3.9 * fold + 0.1
    assert int(craft(Smooth(**few, norm=1000), train, model).pattern.max()) == 51
    assert norm(craft(L2Invisible(**few), train, model).pattern) == pytest.approx(3.2 * fold, abs=0.05)
    assert int(craft(L0Invisible(**few), train, model).mask.sum()) == 9 * fold**2
    block = (craft(TrojanSquare(**few), train, model).pattern != 0).any(0).nonzero()
    assert (block.amin(0).tolist(), block.amax(0).tolist()) == ([21 * fold] * 2, [30 * fold - 1] * 2)
    marked = (craft(TrojanWatermark(**few), train, model).pattern != 0).any(0)
    assert torch.equal(
        marked, letters("TRUST NOISE WATER MARKS", 32, 32).repeat_interleave(fold, 0).repeat_interleave(fold, 1)
    )


@pytest.mark.parametrize(
    "attack",
    [
        TrojanWatermark(**QUICK),
        L2Invisible(**QUICK, rms=40),
        L0Invisible(**QUICK, pixels=16, target=3),
        Smooth(**QUICK, amplitude=150, norm=12),
    ],
    ids=lambda attack: type(attack).__name__,
)
def test_a_trigger_beats_random_ones_threefold(
    attack: Any, digits: tuple[ImageDataset, ImageDataset], model: nn.Module
) -> None:
    """Digits are told apart so well that the patterns need a larger norm than on photographs to show it."""
    trigger = craft(attack, digits[0], model)
    random = [twin(trigger, key(i)) for i in range(5)]

    def success(each: Any) -> float:
        return metrics.attack_success_rate(model, digits[1], Backdoor(each, attack.target))

    assert success(trigger) > 0.15
    assert success(trigger) >= 3 * sum(map(success, random)) / 5


@pytest.mark.slow
@pytest.mark.parametrize("target", [0, 3])
def test_trojans_excite_their_neurons_on_photographs(data_root: Path, target: int) -> None:
    """Where random patterns within the same mask do not, or not a third as much."""
    train, test = data.load("cifar10", data_root)
    train, test = train.take(torch.arange(3000)), test.take(torch.arange(500))
    recipe = replace(SURROGATE, model=ResNet(8, 8, stem="small"), epochs=4)
    model = surrogate(recipe, train, key(0))
    images = test.images[test.labels != target]
    for kind in (TrojanSquare, TrojanWatermark):
        attack = kind(surrogate=recipe, target=target, neurons=16, steps=100, batch_size=32)
        trigger, score = craft(attack, train, model), attack.score(model)
        random = sum(rise(score, images, twin(trigger, key(i))) for i in range(5)) / 5
        assert rise(score, images, trigger) > max(0, 3 * random)


def test_perturbations_stay_in_their_bounds_and_make_images_hard(
    digits: tuple[ImageDataset, ImageDataset], model: nn.Module
) -> None:
    test = digits[1].take(torch.arange(100))
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    hard = projected_descent(model, test.images, test.labels, eps=60, step=15, steps=8, key=key(0))
    change = hard - test.images
    assert float(change.abs().max()) <= 60
    assert 0 <= float(hard.min()) <= float(hard.max()) <= 255
    assert metrics.accuracy(predict(model, hard.round().to(torch.uint8)), test.labels) < 0.5
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())


def test_frozen_gives_back_what_it_took(model: nn.Module) -> None:
    model.fc.train()
    with frozen(model):
        assert not model.fc.training
        assert not any(parameter.requires_grad for parameter in model.parameters())
    assert model.fc.training
    assert not model.bn1.training
    model.eval()


def test_label_consistent_by_its_parts(digits: tuple[ImageDataset, ImageDataset], model: nn.Module) -> None:
    train, _ = digits
    attack = LabelConsistent(surrogate=RECIPE, target=4, steps=3)
    poison = attack(train, Budget(0.02), key=key(0), state=model.state_dict())
    assert len(poison.rows) == 28
    assert train.labels[poison.rows].unique().tolist() == poison.labels.unique().tolist() == [4]
    marked = Corners()(train.images[poison.rows])
    change = (poison.images.int() - marked.int()).abs()
    assert 0 < int(change.max()) <= 8
    assert int(change[..., :3, :3].max()) == int(change[..., -3:, -3:].max()) == 0
    assert isinstance(poison.goal, Backdoor)
    assert poison.goal.trigger == Corners()


@pytest.mark.slow
def test_a_network_trained_on_perturbations_withstands_them(
    digits: tuple[ImageDataset, ImageDataset], model: nn.Module
) -> None:
    train, test = digits
    attack = LabelConsistent(surrogate=RECIPE, eps=40)
    robust = surrogate(RECIPE, train, key(0), fit=lambda *_, **__: model.__class__(RECIPE.model, 3, 10))
    robust.load_state_dict(attack.craft(train, key=key(0)))

    def withstands(network: nn.Module) -> float:
        hard = projected_descent(network.eval(), test.images, test.labels, eps=40, step=10, steps=10, key=key(0))
        return metrics.accuracy(predict(network, hard.round().to(torch.uint8)), test.labels)

    assert withstands(robust) > withstands(model) + 0.2


def test_a_trigger_is_made_once(tmp_path: Path, digits: tuple[ImageDataset, ImageDataset]) -> None:
    train = digits[0].take(torch.arange(64))
    quick = replace(RECIPE, epochs=1, model=ResNet(8, 2, stem="small"))
    attack = L2Invisible(surrogate=quick, steps=2, batch_size=4)
    made = crafted(attack, train, tmp_path, key(0), Progress())
    files = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*-*")}
    assert sorted(name.split("-")[0] for name in files) == ["L2Invisible", "surrogate"]
    again = Ready(attack, tmp_path, Progress())(train, Budget(0.1), key=key(0))
    assert isinstance(again.goal, Backdoor)
    assert isinstance(again.goal.trigger, Additive)
    assert torch.equal(again.goal.trigger.pattern, made["pattern"])
    assert torch.equal(attack(train, Budget(0.1), key=key(0)).images, again.images)  # as without a folder
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*-*")} == files
    # another attack of the same key takes the same surrogate; all else is another trigger
    crafted(Smooth(surrogate=quick, steps=2, batch_size=4), train, tmp_path, key(0), Progress())
    assert sum(path.name.startswith("surrogate") for path in tmp_path.iterdir()) == 1
    other_data = replace(train, images=train.images.flip(0))
    others = [(replace(attack, rms=15.0), train, key(0)), (attack, other_data, key(0)), (attack, train, key(1))]
    places = {kept_at(a, d, tmp_path, k) for a, d, k in [(attack, train, key(0)), *others]}
    assert len(places) == 4
    path = kept_at(attack, train, tmp_path, key(0))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(DataError, match="must be a whole safetensors file"):
        crafted(attack, train, tmp_path, key(0), Progress())


def test_attacks_without_a_network_pass_through(tmp_path: Path, digits: tuple[ImageDataset, ImageDataset]) -> None:
    attack = ATTACKS["badnets_white"]()
    assert not isinstance(attack, CraftedAttack)
    one, two = (each(digits[0], Budget(0.1), key=key(0)) for each in (attack, Ready(attack, tmp_path, Progress())))
    assert torch.equal(one.images, two.images)
    assert not list(tmp_path.iterdir())


def test_a_surrogate_trained_otherwise_is_kept_apart(tmp_path: Path, digits: tuple[ImageDataset, ImageDataset]) -> None:
    train = digits[0].take(torch.arange(64))
    quick = replace(RECIPE, epochs=1, model=ResNet(8, 2, stem="small"))
    robust = crafted(LabelConsistent(surrogate=quick, train_steps=1), train, tmp_path, key(0), Progress())
    crafted(L2Invisible(surrogate=quick, steps=2, batch_size=4), train, tmp_path, key(0), Progress())
    assert sum(path.name.startswith("surrogate") for path in tmp_path.iterdir()) == 2
    plain = surrogate(quick, train, key(0)).state_dict()
    assert not all(torch.equal(robust[name], plain[name]) for name in plain)
