"""Bounds against large margins: one neuron and linear networks by hand, the Gaussian and the gamma null, resuming."""

from __future__ import annotations

import math
from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import poisonkit as pk
from poisonkit.defenses.detectors.mm_bd import MMBD, fit_gamma, p_values
from poisonkit.defenses.guards.mmdf import MMDF, upper_tail
from poisonkit.defenses.margins import Ascent, margin, noise
from poisonkit.defenses.repair.bounding import settled
from poisonkit.defenses.repair.mm_bm import MMBM
from poisonkit.defenses.repair.mmac import MMAC
from poisonkit.defenses.repair.mmom import MMOM
from poisonkit.errors import ArgumentError
from poisonkit.experiments.presets import RECIPES
from poisonkit.models import VGG, ResNet, ViT
from poisonkit.models.clipping import ceilings
from poisonkit.random import key
from poisonkit.train import Journal
from poisonkit.types import ImageDataset


class Neuron(nn.Module):
    """One pixel x to the logits (0, max(x / 51, 0)), the second at most 5."""

    def __init__(self) -> None:
        super().__init__()
        self.into, self.out = nn.Linear(1, 1, bias=False), nn.Linear(1, 2, bias=False)
        nn.init.constant_(self.into.weight, 1 / 51)
        self.out.weight.data.copy_(torch.tensor([[0.0], [1.0]]))

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.out(torch.relu(self.into(images.flatten(1).float())))
        return logits


def pixels(*values: int, labels: tuple[int, ...]) -> ImageDataset:
    images = torch.tensor(values, dtype=torch.uint8).view(-1, 1, 1, 1)
    return ImageDataset(images, torch.tensor(labels), ("a", "b"))


def bound(network: nn.Module) -> float:
    [only] = ceilings(network)
    return only.value.item()


def test_margin() -> None:
    scores = torch.tensor([[1.0, 5.0, 2.0], [1.0, 5.0, 2.0], [-3.0, -1.0, -7.0]])
    assert margin(scores, torch.tensor([1, 2, 0])).tolist() == [3.0, -3.0, -2.0]


@pytest.mark.parametrize("kind", ["sign", "plain"])
def test_the_largest_margin_of_a_linear_network_is_in_a_corner(kind: str) -> None:
    weight = torch.randn(2, 4, generator=key(0).generator()) / 255

    def scores(images: Tensor) -> Tensor:
        return images.flatten(1) @ weight.T

    start, classes = noise(3, 2, (1, 2, 2), key(1))
    found = Ascent(steps=200, rate=0.02 if kind == "sign" else 1.0, kind=kind)(scores, start, classes)
    slope = 255 * (weight[0] - weight[1])
    largest = torch.tensor([slope.clamp(min=0).sum(), (-slope).clamp(min=0).sum()])
    torch.testing.assert_close(margin(scores(255 * found.clamp(0, 1)), classes), largest[classes])


def test_an_image_climbs_by_itself() -> None:
    model = ResNet(8, 4, stem="small").build((1, 8, 8), 5, key(0)).eval().requires_grad_(False)
    start, classes = noise(4, 5, (1, 8, 8), key(1))
    ascent = Ascent(steps=3, rate=0.05)
    together = ascent(model, start, classes)
    alone = torch.cat(
        [ascent(model, some, wanted) for some, wanted in zip(start.split(4), classes.split(4), strict=True)]
    )
    assert float((together != alone).double().mean()) < 0.01  # a sign may turn where the gradient is next to nothing
    _, before = ascent.step(model, start, classes)
    assert (margin(model(255 * together), classes) > before).double().mean() > 0.9


def test_mmac_on_one_neuron() -> None:
    """Activations 1, 2, 3, 4: a loss of Σ(a − z)₊² / 2n + λ z / 2, least where Σ(a − z)₊ = n λ / 2, so z = 3."""
    model, clean = Neuron(), pixels(51, 102, 153, 204, labels=(0, 0, 1, 1))
    journal = Journal()
    repaired = MMAC(weight=0.5, hold=None, tolerance=0)(model, clean, key=key(0), journal=journal)
    assert bound(repaired) == pytest.approx(3, abs=0.02)
    # at z = 3: (1 / 8 of a square of 1) and λ / 2 of the margin 3, while class a has its largest margin, 0, at x = 0
    assert journal.notes["losses"][-1].item() == pytest.approx(1 / 8 + 0.5 * 3 / 2, abs=0.01)
    assert journal.notes["bounds"].tolist() == pytest.approx([bound(repaired)])
    assert len(journal.notes["losses"]) == 300
    nothing = MMAC(weight=0.0)(model, clean, key=key(0), journal=journal)
    assert bound(nothing) == 4  # the largest clean activation changes nothing
    assert len(journal.notes["losses"]) == 4  # and so the loss, three times, which is the end


def test_a_loss_that_turns_has_not_settled() -> None:
    losses = torch.tensor([1.0, 3.0, 4.0, 4.00001, 3.9, 3.90001, 3.90002, 3.90001])
    assert [settled(losses[:n], 1e-4) for n in range(1, 9)] == [False] * 7 + [True]
    assert not settled(torch.zeros(3), 1e-4)
    assert not settled(torch.zeros(9), 0.0)


def test_mmom_on_one_neuron() -> None:
    """One activation for all: the classes count alike, so the best logits are equal, which only z = 0 gives."""
    clean = pixels(204, 204, 204, 204, labels=(0, 1, 1, 1))
    repaired = MMOM(weight=0.0, tolerance=0)(Neuron(), clean, key=key(0))
    assert bound(repaired) == pytest.approx(0, abs=0.02)  # by rows it would be log 3
    assert bound(repaired) >= 0
    helped = MMOM(weight=0.0)(Neuron(), pixels(0, 204, labels=(0, 1)), key=key(0))
    assert bound(helped) >= 4  # it classifies them as well as bounds let it
    with pytest.raises(ArgumentError, match=r"clean images must be 1 or more of each class, got \[0, 2\]"):
        MMOM()(Neuron(), pixels(1, 2, labels=(1, 1)), key=key(0))


def test_mm_bm_on_one_neuron() -> None:
    """Σ(a − z)₊ = n c: z = 3 at c = 1/4, to which three times 1.2 raise it, as all images are classified right."""
    clean = pixels(51, 102, 153, 204, labels=(1, 1, 1, 1))
    journal = Journal()
    repaired = MMBM(weight=0.25 / 1.2**3, epochs=250)(Neuron(), clean, key=key(0), journal=journal)
    assert bound(repaired) == pytest.approx(3, abs=0.02)
    assert journal.notes["weights"][[0, 20, 21, 31, 41, 250]].tolist() == pytest.approx(
        [0.25 / 1.2**3, 0.25 / 1.2**3, 0.25 / 1.2**2, 0.25 / 1.2, 0.25, 0.25]
    )
    MMBM(epochs=21)(Neuron(), replace(clean, labels=torch.tensor([0, 0, 1, 1])), key=key(0), journal=journal)
    assert journal.notes["weights"][-1].item() == pytest.approx(0.5 / 1.2)  # half of them are wrong


def digits(count: int = 60) -> ImageDataset:
    train, _ = pk.data.load("digits")
    return train.take(torch.arange(count) * len(train) // count)


METHODS = {
    "mmac": MMAC(iterations=6),
    "mmac released": MMAC("released", iterations=6),
    "mmom": MMOM(weight=1e-3, iterations=6),
    "mm_bm": MMBM(epochs=6),
    "mm_bm released": MMBM("released", epochs=6),
}


@pytest.mark.parametrize("name", METHODS)
def test_the_network_given_stays_and_the_key_decides(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poisonkit.defenses.repair.mmac.Ascent", lambda **kinds: Ascent(**{**kinds, "steps": 3}))
    model, clean, method = ResNet(8, 4, stem="small").build((1, 8, 8), 10, key(0)), digits(), METHODS[name]
    model.train()
    state = deepcopy(model.state_dict())
    repaired = method(model, clean, key=key(1))
    assert model.training
    assert not repaired.training
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert all(torch.equal(state[name], tensor) for name, tensor in model.state_dict().items())
    assert state.keys() < repaired.state_dict().keys()
    assert all(torch.equal(state[name], repaired.state_dict()[name]) for name in state)
    values = [each.value for each in ceilings(repaired)]
    assert len(values) == 7
    again = [each.value for each in ceilings(method(model, clean, key=key(1)))]
    assert all(torch.equal(one, other) for one, other in zip(values, again, strict=True))
    if name == "mm_bm released":
        assert [bool(value.isfinite().all()) for value in values] == [True, False, True, False, True, False, False]
    else:
        assert all(bool(value.isfinite().all()) for value in values)


@pytest.mark.parametrize("method", [MMAC(iterations=30, tolerance=0), MMBM(epochs=30)])
def test_killed_work_goes_on_to_the_same_bits(method: MMAC | MMBM, tmp_path: Path) -> None:
    model, clean = ResNet(8, 2, stem="small").build((1, 8, 8), 10, key(0)), digits(20)
    whole = method(model, clean, key=key(1)).state_dict()
    said = []

    def stop(text: str) -> None:
        said.append(text)
        if len(said) == 27:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        method(model, clean, key=key(1), journal=Journal(tmp_path, say=stop))
    again = method(model, clean, key=key(1), journal=Journal(tmp_path, say=said.append)).state_dict()
    assert len(said) == 27 + 5  # from 25 on
    assert all(torch.equal(whole[name], again[name]) for name in whole)


def test_what_has_no_bounds_and_what_is_out_of_range() -> None:
    with pytest.raises(ArgumentError, match="a network with ReLUs, got VisionTransformer without"):
        MMAC()(ViT(1, 8, 2, patch=4).build((1, 8, 8), 10, key(0)), digits(20), key=key(0))
    with pytest.raises(ArgumentError, match=r"a residual network with a stem, .* got VGGNetwork; take mode='paper'"):
        MMBM("released")(VGG(11, 2, stem="small").build((1, 8, 8), 10, key(0)), digits(), key=key(0))
    for kind, field, value in ((MMAC, "weight", -1), (MMOM, "starts", 0), (MMBM, "epochs", 0), (MMDF, "level", 0)):
        with pytest.raises(ArgumentError, match=field):
            kind(**{field: value})


class Said(nn.Module):
    """Images are [two logits, and how much the first falls]: the logits, or those that are left."""

    def __init__(self, clipped: bool) -> None:
        super().__init__()
        self.clipped = clipped

    def forward(self, images: Tensor) -> Tensor:
        first, second, drop = images.flatten(1).unbind(1)
        return torch.stack([first - drop if self.clipped else first, second], 1)


def said(first: Tensor, drop: Tensor) -> ImageDataset:
    images = torch.stack([first, torch.zeros_like(first), drop], 1).float().view(-1, 3, 1, 1)
    return ImageDataset(images, torch.zeros(len(images), dtype=torch.int64), ("a", "b"))


def test_the_gaussian_null() -> None:
    """Drops of mean 1 and deviation 2, the first class sure by far: as many alarms as the level, one sided."""
    assert upper_tail(torch.tensor([0.0, 2.5758293, -1.0]).double()).tolist() == pytest.approx(
        [0.5, 0.005, 0.841344746]
    )
    drops = 1 + 2 * torch.randn(60_000, generator=key(0).generator())
    journal = Journal()
    guarded = MMDF().between(
        Said(False), Said(True), said(torch.full((20_000,), 100.0), drops[:20_000]), journal=journal
    )
    assert (guarded.mean, guarded.sd) == (pytest.approx(1, abs=0.05), pytest.approx(2, abs=0.04))
    others = said(torch.full((40_000,), 100.0), drops[20_000:])
    assert guarded.flagged(others.images).double().mean().item() == pytest.approx(0.005, abs=0.0012)
    assert journal.notes["false_alarms"].item() == pytest.approx(0.005, abs=0.0015)
    p_value = guarded.p_value(others.images).sort().values
    assert (p_value - torch.linspace(0, 1, 40_000)).abs().max() < 0.02  # uniform


def test_false_alarms_leave_the_image_itself_out() -> None:
    """Drops 0, 0, 0 and 9: of those without it, 9 is as far out as can be; with it, only 1.5 deviations."""
    clean, journal = said(torch.full((4,), 100.0), torch.tensor([0.0, 0.0, 0.0, 9.0])), Journal()
    guarded = MMDF().between(Said(False), Said(True), clean, journal=journal)
    assert journal.notes["false_alarms"].item() == 0.25
    assert (guarded.mean, guarded.sd) == (2.25, 4.5)  # unbiased
    assert not guarded.flagged(clean.images).any()


def test_what_is_flagged_gets_another_class() -> None:
    drops = torch.tensor([-1.0, 1.0]).repeat(50)
    pair = {mode: MMDF(mode=mode) for mode in ("paper", "released")}
    clean = said(torch.full((100,), 100.0), drops)
    #       nothing; far out and decided alike; decided otherwise, but not far out
    images = said(torch.tensor([100.0, 100.0, 0.5]), torch.tensor([0.5, 50.0, 1.0])).images
    for mode, flagged in (("paper", [False, True, True]), ("released", [False, True, False])):
        guarded = pair[mode].between(Said(False), Said(True), clean)
        assert guarded.flagged(images).tolist() == flagged
        assert guarded.predict(images).tolist() == [int(each) for each in flagged]  # of the two, never the first again


def test_softmax_by_hand() -> None:
    guarded = MMDF(statistic="softmax").between(Said(False), Said(True), said(torch.rand(5), torch.rand(5)))
    first = torch.tensor([[math.log(3), 0.0]])
    assert guarded.drop(first, torch.zeros(1, 2)).item() == pytest.approx(3 / 4 - 1 / 2)


def test_mmdf_makes_its_own_twin() -> None:
    model, clean = ResNet(8, 4, stem="small").build((1, 8, 8), 10, key(0)), digits()
    guarded = MMDF(MMAC(iterations=4))(model, clean, key=key(1))
    assert guarded.predict(clean.images).shape == (60,)
    assert len(ceilings(guarded.clipped)) == 7


def test_the_gamma_fit_solves_its_equations() -> None:
    values = torch.tensor([3.0, 5.0, 4.0, 8.0, 2.5, 6.0], dtype=torch.float64)
    shape, scale = fit_gamma(values)
    assert (shape * scale).item() == pytest.approx(values.mean().item())
    assert (shape.log() - torch.special.digamma(shape)).item() == pytest.approx(
        (values.mean().log() - values.log().mean()).item(), rel=1e-9
    )


def test_p_values_are_those_of_the_largest_of_all() -> None:
    margins = torch.tensor([3.0, 5.0, 4.0, 8.0, 2.5, 6.0, 12.0], dtype=torch.float64)
    shape, scale = fit_gamma(margins[:6])
    x = torch.linspace(1e-9, 12, 2_000_001, dtype=torch.float64)
    density = ((shape - 1) * x.log() - x / scale - torch.lgamma(shape) - shape * scale.log()).exp()
    below = torch.trapezoid(density, x)
    assert p_values(margins)[6].item() == pytest.approx(1 - below.item() ** 7, rel=1e-6)
    huge = p_values(torch.tensor([3.0, 5.0, 4.0, 60.0], dtype=torch.float64))
    assert 0 < huge[3] < 1e-30  # no rounding to 0
    assert p_values(torch.tensor([-1.0, 2.0, 0.0], dtype=torch.float64)).tolist() == [1, 1, 1]
    assert p_values(torch.tensor([2.0, 2.0, 2.0], dtype=torch.float64)).min() > 0.5


def test_mm_bd_finds_the_class_that_stands_out() -> None:
    """A linear network: margins in the corners, one class with weights six times as large."""
    weight = torch.randn(8, 16, generator=key(3).generator()) / 255
    weight[5] *= 6
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 8, bias=False)).eval()
    model[1].weight.data.copy_(weight)
    clean = ImageDataset(torch.zeros(8, 1, 4, 4, dtype=torch.uint8), torch.arange(8), tuple("abcdefgh"))
    found = MMBD(ascent=Ascent(steps=300, rate=0.02))(model, clean, key=key(0))
    assert found.flagged.tolist() == [each == 5 for each in range(8)]
    assert found.p_value is not None
    assert int(found.p_value.argmin()) == 5
    assert found.score.dtype == found.p_value.dtype == torch.float64
    with pytest.raises(ArgumentError, match="classes must be 3 or more"):
        MMBD()(model, replace(clean, labels=clean.labels % 2, classes=("a", "b")), key=key(0))


@pytest.mark.slow
def test_a_backdoor_in_digits() -> None:
    """Its largest margins fall by more than a half, its attack success by a tenth or more, clean accuracy by little."""
    train, test = pk.data.load("digits")
    clean, test = test.take(torch.arange(100)), test.take(torch.arange(100, len(test)))
    recipe = replace(RECIPES["digits"], model=ResNet(8, 16, stem="small"), epochs=12)
    poison = pk.attacks.BadNetsWhite(target=3, size=2)(train, pk.Budget(rate=0.05), key=key(0).child("attack"))
    model = pk.train.fit(poison.apply(train), recipe, key=key(0))
    repaired = MMAC(tolerance=0)(model, clean, key=key(1))
    before, after = (pk.metrics.attack_success_rate(each, test, poison.goal) for each in (model, repaired))
    assert before > 0.8
    assert after < before - 0.1
    assert pk.metrics.clean_accuracy(repaired, test) > pk.metrics.clean_accuracy(model, test) - 0.08
    largest = [MMBD(starts=10, ascent=Ascent(60, 0.02))(each, clean, key=key(2)).score for each in (model, repaired)]
    assert largest[1].mean() < largest[0].mean() / 2
