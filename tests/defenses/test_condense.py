"""Condensation: means and gradient by hand, classes together as one by one, killed and resumed, poison left out."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from poisonkit.attacks import Direct
from poisonkit.data import load
from poisonkit.data.siamese import Siamese
from poisonkit.defenses import CONDENSE, DM, RdmDc
from poisonkit.defenses.condense import Calibrated, Mean, Median, RobustMean, Trimmed, Truncated, matching
from poisonkit.defenses.condense.matching import GREY, UNIT, Matching, by_class
from poisonkit.defenses.condense.means import drops
from poisonkit.errors import ArgumentError, PoisonkitError, RunError
from poisonkit.models import ConvNet
from poisonkit.perturb import embedded
from poisonkit.random import Key, key
from poisonkit.train import Journal
from poisonkit.types import Budget, ImageDataset

SMALL = DM(images=3, iterations=8, batch_size=20, model=ConvNet(2, 6))
ROBUST = RdmDc(**(vars(SMALL) | {"mean": Calibrated()}))


@pytest.fixture(scope="module")
def digits() -> ImageDataset:
    return load("digits")[0].take(torch.arange(400))


# --- means

# Centred at (1, 1): (-1, 0), (0, 1), (0, -1), (4, 0), (-3, 0)
ROWS = torch.tensor([[[0.0, 1.0], [1.0, 2.0], [1.0, 0.0], [5.0, 1.0], [-2.0, 1.0]]])


@pytest.mark.parametrize(
    ("mean", "drop", "expected", "dropped"),
    [
        (Mean(), 0, [1.0, 1.0], []),
        (Median(), 0, [1.0, 1.0], []),
        (Trimmed(), 2, [2 / 3, 1.0], []),  # 0, 1, 1 and 1, 1, 1
        (Trimmed(), 3, [1.0, 1.0], []),  # two of each end
        (Truncated(), 1, [0.0, 1.0], [3]),
        (Truncated(), 2, [2 / 3, 1.0], [3, 4]),
        (Truncated(), 3, [1.0, 1.0], [0, 3, 4]),  # of three that are equally far, the first
        (Calibrated(), 2, [2 / 3, 1.0], [3, 4]),
        (Calibrated(), 3, [1.0, 1.0], [0, 3, 4]),
    ],
)
def test_means_by_hand(mean: RobustMean, drop: int, expected: list[float], dropped: list[int]) -> None:
    """Two classes, of which the second is the first moved: each has its own number of rows to drop."""
    both, drops = torch.cat([ROWS, ROWS + 10]), [drop, 0] if mean.drops else [0, 0]
    found, left_out = mean(both, drops, key=key(0))
    torch.testing.assert_close(found[0], torch.tensor(expected))
    assert left_out[0].nonzero()[:, 0].tolist() == dropped
    assert not left_out[1].any()
    if mean.drops:
        torch.testing.assert_close(found[1], torch.tensor([11.0, 11.0]))


def test_an_even_median_is_between_two() -> None:
    found, _ = Median()(torch.tensor([[[1.0], [9.0], [2.0], [4.0]]]), [0], key=key(0))
    assert found.item() == 3


def test_all_may_lie_in_one_class() -> None:
    cifar = torch.arange(50_000) % 10
    assert drops(Budget(0.01), cifar, 10, 256) == [77] * 10  # a tenth of a class
    assert drops(Budget(0.1, per_class=True), cifar, 10, 256) == [77] * 10
    assert drops(Budget(0.01, per_class=True), cifar, 10, 256) == [8] * 10
    uneven = torch.tensor([0] * 100 + [1] * 300)
    assert drops(Budget(0.05), uneven, 2, 50) == [30, 10]  # 20 rows are a fifth of one, a fifteenth of the other
    with pytest.raises(ArgumentError, match="n must be more than the"):
        drops(Budget(0.01), torch.arange(25_000) % 50, 50, 256)  # 250 rows are half a class


# --- the step


@dataclass(frozen=True)
class Linear:
    """Two pixels to the features A x, in no network's way of normalising."""

    def build(self, shape: Any, num_classes: int, key: Key) -> nn.Module:
        layer = nn.Linear(2, 2, bias=False)
        with torch.no_grad():
            layer.weight.copy_(torch.tensor([[1.0, 2.0], [0.0, 3.0]]))
        return nn.Sequential(nn.Flatten(), layer, nn.Linear(2, num_classes))


def test_the_gradient_by_hand() -> None:
    """Of |A (m - μ)|², by each of two images: 2 AᵀA (m - μ) / 2, in units of 63.75 pixel steps."""
    images = torch.tensor([[10.0, 20.0], [30.0, 40.0], [0.0, 0.0], [4.0, 8.0]]).view(4, 1, 1, 2)
    data = ImageDataset(images, torch.tensor([0, 0, 1, 1]), ("a", "b"))
    units = (torch.tensor([[20.0, 30.0], [22.0, 32.0], [2.0, 5.0], [2.0, 5.0]]).view(4, 1, 1, 2) - GREY) / UNIT
    made = Matching(data, 2, 2, Linear(), None, Mean(), [0, 0], key(0))  # type: ignore[arg-type]
    step = made.step(units, torch.tensor([[0, 1], [2, 3]]), 0)
    # means 21, 31 against 20, 30, and 2, 5 against 2, 4: A (1, 1) = (3, 3), A (0, 1) = (2, 3)
    assert float(step.loss) == pytest.approx(18 + 13, rel=1e-4)
    expected = [[3.0, 15.0]] * 2 + [[2.0, 13.0]] * 2  # AᵀA (1, 1) and AᵀA (0, 1)
    torch.testing.assert_close(step.slope.flatten(1), UNIT * torch.tensor(expected), rtol=1e-3, atol=1e-2)
    assert not step.dropped.any()


def matched(data: ImageDataset, mean: RobustMean, model: ConvNet, augment: Siamese | None) -> Matching:
    return Matching(data, 3, 20, model, augment, mean, [6] * 10, key(1))


@pytest.mark.parametrize("augment", [None, Siamese()], ids=["plain", "augmented"])
@pytest.mark.parametrize("mean", [Mean(), Median(), Trimmed(), Truncated(), Calibrated()], ids=repr)
def test_classes_together_are_the_classes_one_by_one(
    digits: ImageDataset, mean: RobustMean, augment: Siamese | None
) -> None:
    """Against the reference's loop, written out: a class at a time, one network and one augmentation for both sides."""
    made, units = matched(digits, mean, ConvNet(2, 6), augment), torch.randn(30, 1, 8, 8, generator=key(2).generator())
    rows = made.rows(by_class(digits), 5)
    step = made.step(units, rows, 5)
    network = ConvNet(2, 6).build((1, 8, 8), 10, key(1).child("network", 5))
    drawn = augment.draw(10, key(1).child("augment", 5)) if augment else None
    loss, free = torch.zeros(()), units.clone().requires_grad_(True)
    for c in range(10):
        real, synthetic = digits.images[rows[c]].float(), free[3 * c : 3 * c + 3] * UNIT + GREY
        if augment and drawn is not None:
            real, synthetic = (augment.apply(each, drawn[c : c + 1]) for each in (real, synthetic))
        drop = [6] if mean.drops else [0]
        target, dropped = mean(embedded(network, real).detach()[None], drop, key=key(1).child("mean", 5))
        loss = loss + (embedded(network, synthetic).mean(0) - target[0]).square().sum()
        assert torch.equal(step.dropped[c], dropped[0])
    (slope,) = torch.autograd.grad(loss, free)
    torch.testing.assert_close(step.loss, loss.detach(), rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(step.slope, slope, rtol=1e-3, atol=1e-4 * float(slope.abs().max()))


@pytest.mark.parametrize("norm", ["instance", "batch"])
def test_how_many_go_together_does_not_matter(digits: ImageDataset, norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    made = matched(digits, Mean(), ConvNet(2, 6, norm), Siamese())  # type: ignore[arg-type]
    units, rows = torch.randn(30, 1, 8, 8, generator=key(2).generator()), made.rows(by_class(digits), 0)
    found = []
    for together in (1, 7, 64, 10**6):
        monkeypatch.setitem(matching.TOGETHER, "cpu", together)
        found.append(made.step(units, rows, 0).slope)
    scale = float(found[0].abs().max())
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=1e-3, atol=1e-4 * scale)


def test_rows_are_of_their_class_and_distinct() -> None:
    labels = torch.tensor([0] * 30 + [1] * 5 + [2] * 12)[torch.randperm(47, generator=key(0).generator())]
    data = ImageDataset(torch.zeros(47, 1, 8, 8, dtype=torch.uint8), labels, ("a", "b", "c"))
    made = Matching(data, 1, 5, ConvNet(2, 2), None, Mean(), [0] * 3, key(0))
    drawn = torch.stack([made.rows(by_class(data), i) for i in range(40)])
    assert all((labels[drawn[:, c]] == c).all() for c in range(3))
    assert all(len(rows.unique()) == 5 for rows in drawn.flatten(0, 1))
    assert len(drawn[:, 0].unique()) == 30  # all have their turn
    # of one class the same rows are drawn whatever the size of another
    fewer = by_class(data)[:, :12].clone()
    assert torch.equal(made.rows(fewer, 3)[1:], drawn[3, 1:])


# --- the method


def test_the_set_it_gives(digits: ImageDataset) -> None:
    journal = Journal()
    found = replace(SMALL, iterations=40)(digits, key=key(0), journal=journal)
    assert found.images.dtype == torch.float32
    assert found.images.shape == (30, 1, 8, 8)
    assert found.labels.tolist() == [c for c in range(10) for _ in range(3)]
    assert float(found.images.min()) < 0  # nothing is cut off
    assert float(found.images.max()) > 255
    loss = journal.notes["loss"]
    assert float(loss[-5:].mean()) < 0.5 * float(loss[:5].mean())
    # the images of a class look like that class: the nearest class mean is its own
    centres = torch.stack([digits.images[digits.labels == c].float().mean(0) for c in range(10)])
    means = torch.stack([found.images[found.labels == c].mean(0) for c in range(10)])
    nearest = torch.cdist(means.flatten(1), centres.flatten(1)).argmin(1)
    assert int((nearest == torch.arange(10)).sum()) >= 8


@pytest.mark.parametrize(
    "method", [SMALL, replace(SMALL, augment=None), RdmDc(**vars(replace(SMALL, mean=Calibrated())))]
)
def test_a_function_of_data_and_key(digits: ImageDataset, method: DM) -> None:
    one, same, other = (method(digits, key=key(seed)) for seed in (0, 0, 1))
    assert torch.equal(one.images, same.images)
    assert not torch.equal(one.images, other.images)


class Killed(BaseException):
    pass


@pytest.mark.parametrize("method", [SMALL, ROBUST], ids=["dm", "rdm-dc"])
def test_killed_and_resumed_it_gives_the_same_bits(digits: ImageDataset, method: DM, tmp_path: Path) -> None:
    method = replace(method, iterations=20)

    def stop(text: str) -> None:
        if text.startswith("iteration 12/"):
            raise Killed

    whole, again = Journal(tmp_path / "whole"), Journal(tmp_path / "killed")
    straight = method(digits, key=key(0), journal=whole)
    with pytest.raises(Killed):
        method(digits, key=key(0), journal=Journal(tmp_path / "killed", say=stop))
    said: list[str] = []
    resumed = method(digits, key=key(0), journal=replace(again, say=said.append))
    assert said[0].startswith("iteration 12/20")  # what was not kept is done again, and no more
    assert torch.equal(straight.images, resumed.images)
    assert straight.digest() == resumed.digest()
    assert whole.notes.keys() == again.notes.keys()
    assert all(torch.equal(whole.notes[name], again.notes[name]) for name in whole.notes)
    assert len(list((tmp_path / "killed" / "condense").glob("snapshot-*"))) == 10
    finished = method(digits, key=key(0), journal=replace(again, say=said.clear))  # type: ignore[arg-type]
    assert torch.equal(straight.images, finished.images)
    with pytest.raises(RunError, match="the iterations of"):
        replace(method, iterations=21)(digits, key=key(0), journal=again)


def test_copies_of_an_image_are_left_out(digits: ImageDataset) -> None:
    """Six rows of a class become copies of an image of another: they dominate its variance, and calibration sees it."""
    test = load("digits")[1]
    budget = Budget(0.15, per_class=True)
    poison = Direct(target=3, victim_class=5)(digits, budget, key=key(4), victims=test)
    poisoned = torch.zeros(400, dtype=torch.bool)
    poisoned[poison.rows] = True
    mine, dirty = (digits.labels == 3) & ~poisoned, poison.apply(digits)
    share = {}
    for name, method in (("dm", SMALL), ("rdm_dc", ROBUST)):
        journal = Journal()
        method = replace(method, iterations=12, batch_size=36, rate=0.15, per_class=True)
        found = method(dirty, key=key(0), journal=journal)
        assert len(found) == 30
        share[name] = journal.notes["drop_share"]
    assert not share["dm"].any()
    assert float(share["rdm_dc"][poisoned].mean()) > 0.9
    assert 0.3 < float(share["rdm_dc"][mine].mean()) < 0.45  # 17 of 36 are dropped, 6 of them poisoned
    assert journal.notes["top_share"].shape == journal.notes["top_gap"].shape == (10,)


def test_real_images_carry_poison_over(digits: ImageDataset) -> None:
    with pytest.raises(
        ArgumentError, match=r"start must be 'noise' for data that may be poisoned, got real; .*trusted"
    ):
        DM(start="real")
    trusted = replace(SMALL, start="real", trusted=True, iterations=1, learning_rate=1e-9)
    found = trusted(digits, key=key(0))
    distance = torch.cdist(found.images.flatten(1), digits.images.float().flatten(1))
    nearest = distance.argmin(1)
    assert float(distance.min(1).values.max()) < 1e-2
    assert torch.equal(digits.labels[nearest], found.labels)
    assert len(nearest.unique()) == 30
    with pytest.raises(ArgumentError, match=r"images must be at most \d+, as the smallest class has, got 300"):
        replace(trusted, images=300)(digits, key=key(0))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda data: DM(images=0), "images must be 1 or more"),
        (lambda data: DM(iterations=0), "iterations must be 1 or more"),
        (lambda data: DM(learning_rate=0.0), "learning_rate must be above 0"),
        (lambda data: DM(momentum=1.0), r"momentum must be in \[0, 1\)"),
        (lambda data: DM(rate=1.5), r"rate must be a fraction"),
        (lambda data: Calibrated(0), "iterations must be 1 or more"),
        (lambda data: SMALL(data.take(data.labels.nonzero()[:, 0]), key=key(0)), "data must be of at least one row"),
        (lambda data: replace(ROBUST, rate=0.05)(data, key=key(0)), "n must be more than the"),
    ],
)
def test_what_is_refused(digits: ImageDataset, make: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=message):
        make(digits)


def test_a_plain_mean_takes_no_notice_of_the_rate(digits: ImageDataset) -> None:
    assert torch.equal(replace(SMALL, rate=1.0)(digits, key=key(0)).images, SMALL(digits, key=key(0)).images)


def test_diverging_images_are_named(digits: ImageDataset) -> None:
    with pytest.raises(PoisonkitError, match="synthetic images must be finite, got others at iteration"):
        replace(SMALL, model=ConvNet(2, 6, "none"), learning_rate=1e6, iterations=60)(digits, key=key(0))


def test_names() -> None:
    assert {"dm": DM, "rdm_dc": RdmDc}.items() <= CONDENSE.items()
    assert RdmDc().mean == Calibrated(50)
    assert (DM().images, DM().iterations, DM().batch_size, DM().learning_rate, DM().momentum) == (
        50,
        20_000,
        256,
        1,
        0.5,
    )
