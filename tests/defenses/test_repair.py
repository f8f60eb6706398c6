"""Repairs from a few clean images: their steps by hand, and a backdoor in digits before and after each of them."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from poisonkit import data, metrics
from poisonkit.attacks import BadNetsWhite
from poisonkit.data.augment import Augment
from poisonkit.defenses.detectors.neural_cleanse import NeuralCleanse
from poisonkit.defenses.repair.fine_pruning import FinePruning, dormant
from poisonkit.defenses.repair.fine_tuning import FineTuning
from poisonkit.defenses.repair.i_bau import IBAU
from poisonkit.defenses.repair.implicit import implicit_gradient
from poisonkit.defenses.repair.nad import NAD, _Distillation, attention, stages
from poisonkit.defenses.repair.neural_cleanse import NeuralCleanseMitigation
from poisonkit.defenses.repair.rnp import RNP, filtering
from poisonkit.defenses.repair.tuning import TUNING
from poisonkit.errors import ArgumentError
from poisonkit.models import VGG, ConvNet, Model, ResNet, ViT
from poisonkit.models.features import features
from poisonkit.random import Key, key
from poisonkit.train import Batch, Journal, OneCycle, Recipe, Step, fit
from poisonkit.types import Backdoor, Budget, ImageDataset

DIGITS = Augment(1, flip=False)
TUNE = replace(TUNING, augment=DIGITS, epochs=10, batch_size=50)
SEARCH = NeuralCleanse(rounds=10, steps=5, batch_size=16)
# What each may leave of an attack success of 0.86
REPAIRS: dict[str, tuple[Any, float]] = {
    "fine_tuning": (FineTuning(TUNE), 0.5),
    "fine_pruning": (FinePruning(recipe=TUNE), 0.5),
    "nad": (NAD(teacher=replace(TUNE, epochs=5), recipe=TUNE), 0.5),
    "i_bau": (IBAU(steps=10, terms=2, at_once=100, rms=23), 0.7),
    "neural_cleanse_mitigation": (NeuralCleanseMitigation(SEARCH, recipe=TUNE), 0.2),
}


@pytest.fixture(scope="module")
def dirty() -> tuple[nn.Module, ImageDataset, ImageDataset, Backdoor]:
    """A network with a backdoor, 20 clean images a class that it was not trained on, a test set, and the goal."""
    train, test = data.load("digits")
    attacked, clean = train.take(torch.arange(200, len(train))), train.take(torch.arange(200))
    poison = BadNetsWhite(size=2)(attacked, Budget(rate=0.1), key=key(0))
    recipe = Recipe(ResNet(8, 8, stem="small"), 4, 32, schedule=OneCycle(0.02, 0.2), augment=DIGITS)
    model = fit(poison.apply(attacked), recipe, key=key(0))
    assert isinstance(poison.goal, Backdoor)
    assert metrics.clean_accuracy(model, test) > 0.85
    assert metrics.attack_success_rate(model, test, poison.goal) > 0.8
    return model, clean, test, poison.goal


def same(one: nn.Module, other: nn.Module) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one.state_dict().values(), other.state_dict().values(), strict=True))


@pytest.mark.parametrize("name", REPAIRS)
def test_a_backdoor_in_digits(name: str, dirty: tuple[nn.Module, ImageDataset, ImageDataset, Backdoor]) -> None:
    model, clean, test, goal = dirty
    repair, most = REPAIRS[name]
    before = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    mended = repair(model, clean, key=key(0))
    assert all(torch.equal(before[key], tensor) for key, tensor in model.state_dict().items())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert not mended.training
    assert metrics.clean_accuracy(mended, test) > metrics.clean_accuracy(model, test) - 0.15
    assert metrics.attack_success_rate(mended, test, goal) < most


def tiny() -> tuple[nn.Module, ImageDataset]:
    """A network and 12 images, for what does not depend on learning anything."""
    images = torch.randint(0, 256, (12, 1, 8, 8), dtype=torch.uint8, generator=key(0).generator())
    return ResNet(8, 2, stem="small").build((1, 8, 8), 3, key(0)), ImageDataset(
        images, torch.arange(12) % 3, ("a", "b", "c")
    )


@pytest.mark.parametrize("name", REPAIRS)
def test_a_killed_repair_ends_with_the_same_bits(name: str, tmp_path: Path) -> None:
    model, clean = tiny()
    short = replace(TUNE, epochs=3, batch_size=4)
    repair: Any = {
        "fine_tuning": FineTuning(short),
        "fine_pruning": FinePruning(recipe=short),
        "nad": NAD(teacher=short, recipe=short),
        "i_bau": IBAU(rounds=3, batch_size=6, steps=1, terms=1),
        "neural_cleanse_mitigation": NeuralCleanseMitigation(replace(SEARCH, rounds=1, threshold=-9), recipe=short),
    }[name]
    whole = repair(model, clean, key=key(0))
    epochs = 0

    def die(epoch: object) -> None:
        nonlocal epochs
        epochs += 1
        if epochs == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        repair(model, clean, key=key(0), journal=Journal(tmp_path, die))
    assert same(whole, repair(model, clean, key=key(0), journal=Journal(tmp_path)))
    assert not same(whole, repair(model, clean, key=key(1)))


def test_attention_by_hand() -> None:
    # Two channels of 1×2: squares 9 + 16 and 0 + 0
    assert attention(torch.tensor([[[[3.0, 0.0]], [[4.0, 0.0]]]])).tolist() == [[1, 0]]
    # Squares 1 + 4 = 5 and 9 + 1 = 10, of norm √125
    both = attention(torch.tensor([[[[1.0, 3.0]], [[-2.0, 1.0]]]]))
    torch.testing.assert_close(both, torch.tensor([[5.0, 10.0]]) / 125**0.5)
    # The same as tokens, whose channels come last
    torch.testing.assert_close(attention(torch.tensor([[[1.0, -2.0], [3.0, 1.0]]])), both)


class Tokens(nn.Module):
    """As many blocks as asked, over 4 tokens of 6 numbers."""

    def __init__(self, depth: int) -> None:
        super().__init__()
        layers = [nn.Sequential(nn.LayerNorm(6), nn.Linear(6, 6), nn.Linear(6, 6)) for _ in range(depth)]
        self.embed, self.blocks, self.head = nn.Conv2d(1, 6, 4, 4), nn.ModuleList(layers), nn.Linear(6, 3)

    def forward(self, images: Tensor) -> Tensor:
        x = self.embed(images.float() / 255).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x.mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("model", "names"),
    [
        (ResNet(8, 2, stem="small").build((1, 8, 8), 3, key(0)), ["layer1", "layer2", "layer3"]),
        (ResNet(18, 2, stem="small").build((1, 16, 16), 3, key(0)), ["layer2", "layer3", "layer4"]),
        (nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Flatten(), nn.Linear(72, 3)), ["1"]),
        (VGG(11).build((1, 32, 32), 3, key(0)), ["features.13", "features.20", "features.27"]),
        (ViT(3, 8, 2, 4).build((1, 8, 8), 3, key(0)), ["blocks.0", "blocks.1", "blocks.2"]),
        (Tokens(6), ["blocks.1", "blocks.3", "blocks.5"]),
        (Tokens(4), ["blocks.1", "blocks.2", "blocks.3"]),
        (Tokens(2), ["blocks.0", "blocks.1"]),
    ],
    ids=["resnet8", "resnet18", "one size", "vgg11", "vit", "6 blocks", "4 blocks", "2 blocks"],
)
def test_layers_that_are_compared(model: nn.Module, names: list[str]) -> None:
    size = {"layer4": 16, "features.27": 32}.get(names[-1], 8)
    assert stages(model, torch.zeros(1, 1, size, size), 3) == names


def test_nothing_to_compare() -> None:
    with pytest.raises(ArgumentError, match="model must be one with feature maps or tokens to compare, got Sequential"):
        stages(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), torch.zeros(1, 1, 8, 8), 3)


def test_distillation_by_hand() -> None:
    """A 1×1 convolution as the one layer: attention is of its squared outputs, whatever its scale."""
    teacher, student = (nn.Sequential(nn.Conv2d(1, 1, 1), nn.Flatten(), nn.Linear(2, 2)) for _ in range(2))
    for model, shift in ((teacher, 0.0), (student, 1.0)):
        model[0].weight.data.fill_(2.0)
        model[0].bias.data.fill_(shift)
    student[2].load_state_dict(teacher[2].state_dict())
    images, labels = torch.tensor([[[[1.0, 0.0]]]]), torch.tensor([0])
    batch = Batch(images, labels, labels, 0, 0, key(0))
    # Teacher: outputs 2, 0, so attention 1, 0. Student: outputs 3, 1, squares 9, 1, of norm √82
    gap = (1 - 9 / 82**0.5) ** 2 + (1 / 82**0.5) ** 2
    loss, logits = _Distillation(teacher, {"0": 500.0}).loss(student, batch)
    assert loss.item() == pytest.approx(cross_entropy(logits, labels).item() + 500 * gap)


def test_channels_go_in_the_order_of_their_activity() -> None:
    last = nn.Linear(4, 2, bias=False)
    # Of mean |activation| 0.5, 6, 0, 4; the last layer tells class 1 by channel 3, and ties go to class 0
    last.weight.data = torch.tensor([[0.0, 0.1, 0.0, 0.0], [0.0, 0.0, 0.0, 1.0]])
    activations = torch.tensor([[0.5, 9.0, 0.0, -5.0], [0.5, -9.0, 0.0, 5.0], [-0.5, 0.0, 0.0, 2.0]])
    labels = torch.tensor([0, 1, 1])
    given = activations.clone()
    assert dormant(activations, labels, last, 0.0).tolist() == [2, 0]
    # Without channel 3 the last row ties and is wrong: 2 of 3 are left
    assert dormant(activations, labels, last, 0.32).tolist() == [2, 0]
    assert dormant(activations, labels, last, 0.34).tolist() == [2, 0, 3]
    # Without any all are class 0: 1 of 3
    assert dormant(activations, labels, last, 0.67).tolist() == [2, 0, 3, 1]
    assert torch.equal(activations, given)


def test_pruned_channels_stay_pruned(dirty: tuple[nn.Module, ImageDataset, ImageDataset, Backdoor]) -> None:
    model, clean, _, _ = dirty
    assert isinstance(model.fc, nn.Linear)
    before, journal = features(model, clean.images)[0], Journal()
    mended = FinePruning(recipe=replace(TUNE, epochs=1))(model, clean, key=key(0), journal=journal)
    pruned = journal.notes["pruned"]
    assert 0 < len(pruned) < 32
    assert pruned.tolist() == before.double().mean(0).argsort(stable=True)[: len(pruned)].tolist()
    weight = mended.fc.weight.detach()  # type: ignore[union-attr]
    kept = torch.ones(32, dtype=torch.bool).index_fill(0, pruned, value=False)
    assert (weight[:, pruned] == 0).all()
    assert (weight[:, kept] != model.fc.weight[:, kept]).all()
    assert (model.fc.weight[:, pruned] != 0).all()


def planted() -> tuple[nn.Module, ImageDataset]:
    """Images of a left and of a right pixel, and a filter for each; a third one calls half of the right ones left."""
    bright = torch.tensor([[200, 0], [0, 200], [100, 0], [0, 100]], dtype=torch.uint8).repeat(4, 1)
    model = nn.Sequential(Bright(), nn.Conv2d(1, 3, (1, 2), bias=False), nn.ReLU(), nn.Flatten(), nn.Linear(3, 2))
    model[1].weight.data = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]]).view(3, 1, 1, 2)
    model[4].weight.data = torch.tensor([[1.0, 0.0, 3.0], [0.0, 1.0, 0.0]])
    model[4].bias.data.zero_()
    return model, ImageDataset(bright.view(-1, 1, 1, 2), torch.arange(16) % 2, ("left", "right"))


class Bright(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.float() / 255


def test_recovery_masks_the_filter_that_was_planted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loss falls with the two filters that are right, whose masks stay at 1, and with less of the one planted."""
    model, clean = planted()
    assert metrics.clean_accuracy(model, clean) == 0.5
    steps = replace(TUNE, augment=None, batch_size=16, schedule=Step(1.0, ()), weight_decay=0.0)
    repair, journal = RNP(recovering=steps), Journal()
    [mask] = repair.recover(model, clean, key=key(0), journal=journal)
    assert mask.tolist() == [1, 1, 0]
    monkeypatch.setattr(RNP, "unlearn", lambda self, model, *_, **__: model)
    mended = repair(model, clean, key=key(0), journal=journal)
    assert journal.notes["pruned"].tolist() == [False, False, True]
    assert metrics.clean_accuracy(mended, clean) == 1
    assert (mended[1].weight[2] == 0).all()  # type: ignore[index]
    assert torch.equal(mended[1].weight[:2], model[1].weight[:2])  # type: ignore[index]
    # a filter that is needed is not pruned, whatever its mask
    monkeypatch.setattr(RNP, "recover", lambda *_, **__: [torch.tensor([1.0, 0.5, 0.2])])
    RNP(tolerance=0.4)(mended, clean, key=key(0), journal=journal)
    assert journal.notes["pruned"].tolist() == [False, False, True]


@pytest.mark.parametrize("killed", [1, 2, 3, 4])
def test_a_killed_mask_ends_with_the_same_bits(killed: int, tmp_path: Path) -> None:
    model, clean = tiny()
    short = replace(TUNE, epochs=2, batch_size=4)
    repair, epochs = RNP(floor=0.0, unlearning=short, recovering=short), 0

    def mask(key: Key, directory: Path | None, on_epoch: Any = None) -> Tensor:
        journal = Journal(directory, on_epoch)
        repair(model, clean, key=key, journal=journal)
        return journal.notes["mask"]

    def die(epoch: object) -> None:
        nonlocal epochs
        epochs += 1
        if epochs == killed:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        mask(key(0), tmp_path, die)
    whole = mask(key(0), None)
    assert torch.equal(mask(key(0), tmp_path), whole)
    assert not torch.equal(mask(key(1), None), whole)


def test_unlearning_climbs_the_loss_until_little_is_known(
    dirty: tuple[nn.Module, ImageDataset, ImageDataset, Backdoor],
) -> None:
    model, clean, _, _ = dirty
    seen: list[float] = []
    repair = RNP(floor=0.5, unlearning=replace(TUNE, epochs=20, schedule=Step(0.02, ())))
    journal = Journal(None, lambda epoch: seen.append(epoch.accuracy))
    unlearned = repair.unlearn(model, clean, key=key(0), journal=journal)
    assert 1 < len(seen) < 20
    assert seen[-1] <= 0.5 < min(seen[:-1])
    losses = [cross_entropy(each.eval()(clean.images), clean.labels).item() for each in (model, unlearned)]
    assert losses[1] > losses[0] + 0.5


@pytest.mark.parametrize(
    ("model", "kind", "count"),
    [
        (ResNet(8, 2, stem="small"), nn.BatchNorm2d, 9),
        (ConvNet(2, 4), nn.GroupNorm, 2),
        (ViT(2, 8, 2, 4), (nn.Conv2d, nn.Linear), 1 + 2 * 4),
    ],
    ids=["batch norms", "group norms", "no norms of channels"],
)
def test_filters_are_of_norms_where_there_are_any(model: Model, kind: Any, count: int) -> None:
    found = filtering(model.build((1, 8, 8), 3, key(0)))
    assert len(found) == count
    assert all(isinstance(each, kind) for each in found)


@pytest.mark.parametrize("parts", [1, 3])
def test_the_implicit_gradient_of_a_quadratic(parts: int) -> None:
    """g = δᵀAδ/2 - δᵀBθ has its minimum at δ = A⁻¹Bθ, so H(δ(θ)) has the gradient BᵀA⁻¹ ∂H/∂δ."""
    generator = key(0).generator()
    root, mixed = (torch.randn(4, size, generator=generator, dtype=torch.float64) for size in (4, 3))
    curve = root @ root.T + 2 * torch.eye(4, dtype=torch.float64)
    theta = torch.randn(3, generator=generator, dtype=torch.float64).requires_grad_(True)
    delta = torch.linalg.solve(curve, mixed @ theta).detach().requires_grad_(True)
    slope = torch.randn(4, generator=generator, dtype=torch.float64)
    inner = [lambda d: (d @ curve @ d / 2 - d @ mixed @ theta) / parts] * parts
    rate = 1 / float(torch.linalg.eigvalsh(curve).max())
    [found] = implicit_gradient(inner, delta, [theta], slope, steps=300, rate=rate)
    torch.testing.assert_close(found, mixed.T @ torch.linalg.solve(curve, slope), rtol=1e-8, atol=1e-8)
    # A few steps give as many terms of the series
    [few] = implicit_gradient(inner, delta, [theta], slope, steps=3, rate=rate)
    shrink = torch.eye(4, dtype=torch.float64) - rate * curve
    series = slope + shrink @ slope + shrink @ shrink @ slope
    torch.testing.assert_close(few, rate * mixed.T @ series)


def test_unlearning_takes_the_whole_gradient() -> None:
    """On a small smooth network: δ of one step of Φ, through which autograd can follow the weights itself."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)).double()
    images = torch.rand(6, 1, 2, 2, dtype=torch.float64, generator=key(0).generator())
    parameters = list(model.parameters())
    delta = torch.full((1, 2, 2), 0.1, dtype=torch.float64, requires_grad=True)
    labels = torch.arange(6) % 3

    def inner(at: Tensor) -> Tensor:
        return 0.01 * at.square().sum() - cross_entropy(model(images + at), labels)

    def outer(at: Tensor) -> Tensor:
        return cross_entropy(model(images + at), labels.flip(0))

    [slope] = torch.autograd.grad(outer(delta), delta)
    found = implicit_gradient([inner], delta, parameters, slope, steps=1, rate=0.3)
    [first] = torch.autograd.grad(inner(delta), delta, create_graph=True)
    stepped = delta.detach() - 0.3 * first
    expected = torch.autograd.grad(stepped, parameters, slope)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)


def test_second_derivatives_do_not_depend_on_how_many_images_are_taken_at_once() -> None:
    model, clean = tiny()
    whole, parts = (
        IBAU(rounds=1, batch_size=12, steps=1, terms=2, at_once=count)(model, clean, key=key(0)) for count in (100, 5)
    )
    for name, tensor in whole.state_dict().items():
        torch.testing.assert_close(tensor, parts.state_dict()[name], rtol=1e-3, atol=1e-4)


def test_a_vision_transformer_is_differentiated_twice() -> None:
    _, clean = tiny()
    model = ViT(2, 8, 2, 4).build((1, 8, 8), 3, key(0))
    mended = IBAU(rounds=1, batch_size=6, steps=1, terms=1)(model, clean, key=key(0))
    assert not any(torch.equal(a, b) for a, b in zip(model.parameters(), mended.parameters(), strict=True))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: FinePruning(tolerance=1.0), r"tolerance must be a share in \[0, 1\), got 1.0"),
        (lambda: RNP(floor=1.0), r"floor must be a share in \[0, 1\), got 1.0"),
        (lambda: RNP(tolerance=-1.0), r"tolerance must be a share in \[0, 1\), got -1.0"),
        (lambda: IBAU(share=2.0), r"share must be a fraction in \[0, 1\], got 2.0"),
        (lambda: NAD(layers=("a",) * 4)(*tiny(), key=key(0)), "layers must be at most 3, one for each beta, got 4"),
        (
            lambda: FineTuning()(tiny()[0], tiny()[1].take(torch.arange(0)), key=key(0)),
            "clean must be 1 or more images",
        ),
    ],
)
def test_errors(make: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make()
