"""Attacks on known images: their steps worked by hand, their bounds, and that the same call gives the same poison."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from targeted_attacks import trials
from torch import Tensor, nn

from poisonkit import data
from poisonkit.attacks import (
    AdaptiveMatching,
    BullseyePolytope,
    ConvexPolytope,
    FeatureCollision,
    GradientMatching,
    MetaPoison,
    SleeperAgent,
)
from poisonkit.attacks.adaptive_matching import proxy, spread
from poisonkit.attacks.bullseye_polytope import bullseye
from poisonkit.attacks.convex_polytope import coefficients, simplex
from poisonkit.attacks.crafting import SURROGATE, CraftedAttack, CraftedPoison, surrogate
from poisonkit.attacks.feature_collision import collide
from poisonkit.attacks.gradient_matching import mean_gradient
from poisonkit.attacks.meta_poison import ahead
from poisonkit.attacks.sleeper_agent import hardest
from poisonkit.attacks.targeted import Case, case, falling
from poisonkit.data.augment import Augment
from poisonkit.engine import Progress
from poisonkit.engine.crafting import Ready
from poisonkit.errors import ArgumentError, BudgetError
from poisonkit.models import ResNet
from poisonkit.perturb import box, descend, gradient, misalignment
from poisonkit.random import key
from poisonkit.train import fit
from poisonkit.types import Budget, ImageDataset, OneClass, Victims

RECIPE = replace(SURROGATE, model=ResNet(8, 4, stem="small"), epochs=1, batch_size=32, augment=Augment(1, flip=False))
SMALL = {"target": 3, "victim_class": 8, "eps": 20.0, "surrogate": RECIPE}
NEAR = {"augment": Augment(1), "steps": 3, "restarts": 2}
ATTACKS = [
    GradientMatching(**SMALL, **NEAR, networks=2),
    AdaptiveMatching(**SMALL, augment=None, steps=3, restarts=1),
    BullseyePolytope(**SMALL, steps=3, networks=2, restarts=2),
    ConvexPolytope(**SMALL, steps=3, inner=2, count=2),
    FeatureCollision(**SMALL, steps=3),
    MetaPoison(**SMALL, steps=2, networks=2),
    SleeperAgent(**SMALL, augment=None, steps=4, retrain=1, sources=20),
]
BUDGET = Budget(0.03)

every = pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: type(attack).__name__)


@pytest.fixture(scope="module")
def digits() -> tuple[ImageDataset, ImageDataset]:
    train, test = data.load("digits")
    return train.take(torch.arange(300)), test


@pytest.fixture(scope="module")
def kept() -> Any:
    """``fit`` that trains each network once for this module."""
    networks: dict[Any, nn.Module] = {}

    def once(data: ImageDataset, recipe: Any, *, key: Any) -> nn.Module:
        name = repr((data.digest(), recipe, key))
        if name not in networks:
            networks[name] = fit(data, recipe, key=key)
        return networks[name]

    return once


def call(attack: Any, train: ImageDataset, test: ImageDataset, fit: Any, seed: int = 0, budget: Budget = BUDGET) -> Any:
    given = {"victims": test} if attack.needs_victims else {}
    state = attack.craft(train, budget, key=key(seed), fit=fit, **given)
    return attack(train, budget, key=key(seed), state=state, **given)


class Flat(nn.Module):
    """A linear network of images [B, 1, 1, d], of no bias."""

    def __init__(self, *layers: list[list[float]]) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(nn.Linear(len(layer[0]), len(layer), bias=False) for layer in layers))
        for module, layer in zip(self.layers, layers, strict=True):
            module.weight.data = torch.tensor(layer)

    def forward(self, images: Tensor) -> Tensor:
        return self.layers(images.float().flatten(1))


def test_gradients_by_hand() -> None:
    # logits (x, -x) of one pixel x = 0: the softmax is one half each, and the slope (p - y) x of a weight 0; at x = 2
    model = Flat([[0.5], [-0.5]])
    [slope] = gradient(model, torch.full((1, 1, 1, 1), 2.0), torch.tensor([1]))
    p = 1 / (1 + math.exp(-2))
    torch.testing.assert_close(slope, torch.tensor([[2 * p], [-2 * p]]))
    batch, labels = torch.tensor([2.0, 0.0, 4.0]).view(3, 1, 1, 1), torch.tensor([1, 0, 0])
    torch.testing.assert_close(mean_gradient(model, batch, labels, 2), gradient(model, batch, labels))
    deep = Flat([[0.5], [-0.5]], [[1.0, 2.0], [3.0, 4.0]])
    both = gradient(deep, batch, labels)
    deep.layers[0].weight.requires_grad_(False)  # as where only the last layer is trained
    [last] = gradient(deep, batch, labels)
    assert torch.equal(last, both[1])


def test_misalignment_by_hand() -> None:
    one = [torch.tensor([3.0, 0.0]), torch.tensor([[4.0]])]
    assert float(misalignment(one, [2 * each for each in one])) == pytest.approx(0, abs=1e-6)
    assert float(misalignment(one, [-each for each in one])) == pytest.approx(2)
    # over all parameters together: (3·1 + 4·0) / (5·1), where tensor by tensor it would be one half of 1 + 0
    assert float(misalignment(one, [torch.tensor([1.0, 0.0]), torch.tensor([[0.0]])])) == pytest.approx(1 - 3 / 5)
    gone = [torch.zeros(2, requires_grad=True), torch.zeros(1, 1)]
    lost = misalignment(gone, one)
    assert float(lost.detach()) == 1
    assert bool(torch.autograd.grad(lost, gone[0])[0].isfinite().all())


def test_a_box_is_whole_and_within_pixels() -> None:
    images = torch.tensor([0, 3, 100, 250], dtype=torch.uint8)
    low, high = box(images, 7.9)
    assert low.tolist() == [0, 0, 93, 243]
    assert high.tolist() == [7, 10, 107, 255]


def test_descent_by_hand() -> None:
    """Adam of a sign takes whole steps; the loss is the last that was looked at; bounds hold after every step."""
    start, wide = torch.tensor([10.0, 10.0]), torch.tensor([0.0, 0.0])
    slope = torch.tensor([1e-3, -5.0])
    found, last = descend(
        lambda x, step: (slope * x).sum(),
        start,
        wide,
        torch.tensor([255.0, 12.0]),
        steps=3,
        rate=lambda step, steps: 2.0 if step < 2 else 0.5,
        signed=True,
    )
    torch.testing.assert_close(found, torch.tensor([10 - 2 - 2 - 0.5, 12.0]), atol=1e-4, rtol=0)
    assert last == pytest.approx(1e-3 * 6 - 5 * 12, abs=1e-3)
    assert [falling(8.0)(step, 250) for step in (0, 93, 94, 156, 219)] == [
        8,
        8,
        *map(pytest.approx, (0.8, 0.08, 0.008)),
    ]


def test_bullseye_by_hand() -> None:
    poisons, centre = torch.tensor([[1.0, 0.0], [3.0, 0.0]]), torch.tensor([2.0, 4.0])
    assert float(bullseye([poisons], [centre])) == pytest.approx(4 / math.sqrt(20))
    assert float(bullseye([poisons, poisons], [centre, torch.tensor([2.0, 0.0])])) == pytest.approx(2 / math.sqrt(20))


def test_the_simplex_by_hand() -> None:
    for vector, nearest in [
        ([0.2, 0.8], [0.2, 0.8]),
        ([1.0, 1.0], [0.5, 0.5]),
        ([3.0, 1.0, 0.0], [1.0, 0.0, 0.0]),
        ([0.9, 0.5, -4.0], [0.7, 0.3, 0.0]),
    ]:
        torch.testing.assert_close(simplex(torch.tensor(vector)), torch.tensor(nearest))


def test_coefficients_find_the_victim_in_the_hull() -> None:
    corners = torch.tensor([[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]])
    even = torch.full((3,), 1 / 3)
    inside = coefficients(corners, torch.tensor([1.0, 2.0]), even, 500)
    torch.testing.assert_close(inside, torch.tensor([0.25, 0.25, 0.5]), atol=1e-4, rtol=0)
    outside = coefficients(corners, torch.tensor([4.0, 4.0]), even, 500)  # the nearest of the hull is (2, 2)
    torch.testing.assert_close(outside, torch.tensor([0.0, 0.5, 0.5]), atol=1e-4, rtol=0)


def test_collision_by_hand() -> None:
    """One step on a linear map f(x) = 2x of one pixel: forward, backward, and the end of many steps."""
    base, low, high = (torch.full((1, 1, 1, 1), value) for value in (0.5, 0.0, 1.0))
    distance = lambda x: (2 * x - 1.6).square().flatten(1).sum(1)  # noqa: E731
    found, left = collide(distance, base, base, low, high, beta=2.0, steps=1, rate=0.1)
    forward = 0.5 - 0.1 * 2 * 2 * (2 * 0.5 - 1.6)
    backward = (forward + 0.1 * 2 * 0.5) / (1 + 0.1 * 2)
    assert float(found) == pytest.approx(backward)
    assert float(left) == pytest.approx((2 * backward - 1.6) ** 2 + (backward - 0.5) ** 2)
    found, _ = collide(distance, base, base, low, high, beta=2.0, steps=200, rate=0.1)
    assert float(found) == pytest.approx((4 * 1.6 + 2 * 0.5) / (8 + 2), abs=1e-4)  # 4(2x - 1.6) + 2(x - 0.5) = 0
    found, _ = collide(distance, base, base, low, torch.full_like(high, 0.6), beta=0.0, steps=200, rate=0.1)
    assert float(found) == pytest.approx(0.6)
    # from 0.5 a step of 1 would land on 0.5 + 2.4 - a worse place - and is undone; the fifth of it is taken
    found, _ = collide(distance, base, base, low - 9, high + 9, beta=0.0, steps=2, rate=1.0)
    assert float(found) == pytest.approx(0.5 + 0.2 * 2.4)


def test_looking_ahead_by_hand() -> None:
    """One weight each for two classes, one poison: the victim's loss after one step of descent, and its slope."""
    model = Flat([[0.0], [0.0]])
    one = torch.full((1, 1, 1, 1), 1.0)
    clean = ImageDataset(torch.zeros(1, 1, 1, 1, dtype=torch.uint8), torch.tensor([0]), ("a", "b"))
    what = Case(one, torch.tensor([1]), torch.tensor([0]), one, torch.tensor([1]), one - 9, one + 9)
    pixels = torch.full((1, 1, 1, 1), 3.0, requires_grad=True)
    after = ahead(model, pixels, what, clean, 1, 0.1)
    # the mean over poison and clean image: the weights become -+0.1·0.5·3/2, their difference 0.15
    torch.testing.assert_close(after, torch.tensor(math.log(1 + math.exp(-0.15))))
    [slope] = torch.autograd.grad(after, pixels)
    assert float(slope) == pytest.approx(-0.05 / (1 + math.exp(0.15)))
    assert model.layers[0].weight.tolist() == [[0.0], [0.0]]


def test_proxies_by_hand() -> None:
    found = proxy(torch.tensor([[0.0, 0.0], [math.log(3), 0.0]]), torch.tensor([0, 1]))
    torch.testing.assert_close(found, torch.tensor([[-0.5, 0.5], [0.75, -0.75]]))
    assert float(spread(found)) == pytest.approx(math.hypot(0.625, 0.625))
    assert float(spread(found[:1])) < 1e-5


def test_the_hardest_rows_have_the_largest_gradients(digits: tuple[ImageDataset, ImageDataset], kept: Any) -> None:
    train, _ = digits
    model = surrogate(RECIPE, train, key(0), kept).eval()
    pool = (train.labels == 2).nonzero()[:, 0]
    alone = []
    for row in pool.tolist():
        slopes = gradient(model, train.images[row : row + 1], train.labels[row : row + 1])
        alone.append(sum(float(slope.square().sum()) for slope in slopes))
    expected = pool[torch.tensor(alone).argsort(descending=True)[:5]]
    assert hardest(model, train, pool, 5).tolist() == expected.tolist()


@every
def test_a_poison_keeps_to_its_bounds(attack: Any, digits: tuple[ImageDataset, ImageDataset], kept: Any) -> None:
    train, test = digits
    poison = call(attack, train, test, kept)
    dirty = poison.apply(train)
    assert poison.budget == replace(BUDGET, eps=20.0, clean_label=True)
    assert len(poison.rows) == len(poison.rows.unique()) == 9
    assert train.labels[poison.rows].unique().tolist() == [3]
    assert torch.equal(dirty.labels, train.labels)
    change = (poison.images.int() - train.images[poison.rows].int()).abs()
    assert 0 < int(change.max()) <= 20
    if isinstance(attack, SleeperAgent):
        assert poison.goal.target == OneClass(8, 3)
        assert poison.goal.wanted(torch.tensor([8, 3, 5])).tolist() == [3, 3, 5]
        assert poison.goal.trigger.pixels.shape == (1, 2, 2)
    else:
        assert isinstance(poison.goal, Victims)
        assert poison.goal.labels.tolist() == [3] * attack.count
        eights = test.images[test.labels == 8]
        assert all(bool((eights == image).flatten(1).all(1).any()) for image in poison.goal.images)
    with pytest.raises(BudgetError, match="pixel change must be at most 1"):
        replace(poison, budget=replace(poison.budget, eps=1.0)).apply(train)


@every
def test_the_same_call_gives_the_same_poison(
    attack: Any, digits: tuple[ImageDataset, ImageDataset], kept: Any, tmp_path: Path
) -> None:
    train, test = digits
    poison, other = call(attack, train, test, kept), call(attack, train, test, kept, seed=1)
    given = {"victims": test} if attack.needs_victims else {}
    ready = Ready(attack, tmp_path, Progress())
    assert ready.needs_victims == attack.needs_victims
    made = ready(train, BUDGET, key=key(0), **given)
    files = {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*-*")}
    again = ready(train, BUDGET, key=key(0), **given)  # from what was kept
    for one in (made, again):
        assert torch.equal(one.rows, poison.rows)
        assert torch.equal(one.images, poison.images)
    assert {path.name: path.stat().st_mtime_ns for path in tmp_path.glob("*-*")} == files
    assert not [path for path in tmp_path.iterdir() if path.is_dir() and not path.name.startswith(".")]
    assert not torch.equal(other.images, poison.images)


def test_a_killed_craft_goes_on_with_its_restart(digits: tuple[ImageDataset, ImageDataset], tmp_path: Path) -> None:
    train, test = digits
    attack = replace(ATTACKS[0], networks=1)
    whole = attack(train, BUDGET, key=key(0), victims=test)

    class Killed(Progress):
        def status(self, text: str) -> None:
            if "restart 2" in text:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Ready(attack, tmp_path, Killed())(train, BUDGET, key=key(0), victims=test)
    [first] = tmp_path.glob("GradientMatching-*/restart-0.safetensors")
    before = first.stat().st_mtime_ns
    said: list[str] = []

    class Told(Progress):
        def status(self, text: str) -> None:
            said.append(text)
            if "restart" in text:
                assert first.stat().st_mtime_ns == before

    resumed = Ready(attack, tmp_path, Told())(train, BUDGET, key=key(0), victims=test)
    assert [text for text in said if "restart" in text] == [text for text in said if "restart 2 of 2" in text] != []
    assert torch.equal(resumed.images, whole.images)


@pytest.mark.parametrize("attack", ATTACKS[:5], ids=lambda attack: type(attack).__name__)
def test_crafting_lowers_its_loss(attack: Any, digits: tuple[ImageDataset, ImageDataset], kept: Any) -> None:
    train, test = digits
    losses = [
        float(
            replace(attack, steps=steps, restarts=1)
            .craft(train, BUDGET, key=key(0), victims=test, fit=kept)["loss"]
            .min()
        )
        for steps in (1, 20)
    ]
    assert losses[1] < losses[0]


def test_colliding_without_bounds_is_held_back_by_beta(digits: tuple[ImageDataset, ImageDataset], kept: Any) -> None:
    train, test = digits
    far, near = (
        call(FeatureCollision(target=3, eps=None, beta=beta, steps=40, surrogate=RECIPE), train, test, kept)
        for beta in (0.01, 10.0)
    )
    assert far.budget == replace(BUDGET, clean_label=True)

    def change(poison: Any) -> float:
        return float((poison.images.int() - train.images[poison.rows].int()).abs().float().mean())

    assert change(near) < change(far)
    with pytest.raises(ArgumentError, match=r"eps must be at most the budget's 8.0, got any; lower it"):
        FeatureCollision(eps=None)(train, Budget(0.03, eps=8.0), key=key(0), victims=test)


@pytest.mark.parametrize(
    ("changed", "budget", "message"),
    [
        (
            {"victim_class": 3},
            BUDGET,
            r"victim_class must be None, or a class in \[0, 10\) other than the target, got 3",
        ),
        ({"victim_class": 10}, BUDGET, "victim_class must be None, or a class in"),
        ({"count": 0}, BUDGET, "count must be from 1 to the 33 images to pick from, got 0"),
        ({"count": 99}, BUDGET, "count must be from 1 to the 33 images to pick from, got 99"),
        ({"target": 11}, BUDGET, r"target must be a class in \[0, 10\), got 11"),
        ({"eps": 0.5}, BUDGET, "eps must be at least one pixel step, got 0.5"),
        ({}, Budget(0.03, eps=8), "eps must be at most the budget's 8, got 20.0; lower it"),
        ({}, Budget(0.001), "rate must be for at least one row, got 0.001"),
        ({}, Budget(0.9), "rate must be for at most the 29 rows to pick from"),
        ({"restarts": 0}, BUDGET, "restarts must be 1 or more, got 0"),
        ({"networks": 0}, BUDGET, "networks must be 1 or more, got 0"),
    ],
)
def test_what_cannot_be_done_is_refused(
    digits: tuple[ImageDataset, ImageDataset], kept: Any, changed: dict[str, Any], budget: Budget, message: str
) -> None:
    train, test = digits
    with pytest.raises(ArgumentError, match=message):
        replace(ATTACKS[0], **changed).craft(train, budget, key=key(0), victims=test, fit=kept)


def test_rows_may_be_named(digits: tuple[ImageDataset, ImageDataset], kept: Any) -> None:
    train, test = digits
    rows = (train.labels == 3).nonzero()[:4, 0]
    what = case(ATTACKS[2], train, BUDGET, test, key(0), rows)
    assert what.rows.tolist() == rows.tolist()
    with pytest.raises(ArgumentError, match="rows must be of the target class 3, since labels stay, got others"):
        case(ATTACKS[2], train, BUDGET, test, key(0), torch.arange(4))
    with pytest.raises(ArgumentError, match="victims must be a pool of images that the attacker knows"):
        ATTACKS[2](train, BUDGET, key=key(0))
    with pytest.raises(ArgumentError, match="victims must be of shape"):
        case(ATTACKS[2], train, BUDGET, replace(test, images=test.images[..., :4]), key(0), rows)


def test_rates_may_be_of_the_target_class(digits: tuple[ImageDataset, ImageDataset], kept: Any) -> None:
    train, test = digits
    poison = call(ATTACKS[2], train, test, kept, budget=Budget(0.2, per_class=True))
    assert int((train.labels == 3).sum()) == 29
    assert len(poison.rows) == 5  # of them
    assert len(poison.apply(train)) == len(train)


@pytest.mark.parametrize("attack", ATTACKS, ids=lambda attack: type(attack).__name__)
def test_it_is_known_for_what_it_is(attack: Any) -> None:
    assert isinstance(attack, CraftedPoison)
    assert not isinstance(attack, CraftedAttack)


@pytest.mark.slow
def test_bullseye_polytope_succeeds_on_photographs(data_root: Path) -> None:
    """All three where it was measured, by a network that saw a quarter of the example's rows."""
    found = list(trials(data_root, "transfer", "bullseye_polytope", seeds=range(1, 4), rate=0.01, known=10_000))
    assert sum(each["undefended"]["success"] for each in found) >= 2
    assert not any(each["clean"]["success"] for each in found)
    assert min(each["undefended"]["accuracy"] - each["clean"]["accuracy"] for each in found) > -0.05
