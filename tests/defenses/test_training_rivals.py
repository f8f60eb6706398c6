"""Defenses that change the steps of training: each by its parts, and what all of them owe the loop."""

from __future__ import annotations

import re
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, log_softmax, one_hot

from poisonkit import data, metrics
from poisonkit.defenses import TRAINING
from poisonkit.defenses.training.adversarial_poisoning import AdversarialPoisoning
from poisonkit.defenses.training.adversarial_training import AdversarialTraining
from poisonkit.defenses.training.dp_sgd import DPSGD, Shaped, ShapedPerSample
from poisonkit.defenses.training.mixup import Mixup
from poisonkit.errors import ArgumentError, MissingError
from poisonkit.models import ConvNet, Model, ResNet, ViT
from poisonkit.perturb import gradient, misalignment
from poisonkit.random import key
from poisonkit.train import Adversarial, Batch, Epoch, Journal, OneCycle, Procedure, Recipe, fit
from poisonkit.types import ImageDataset

SMALL = ResNet(8, 4, stem="small")
NORMLESS = ConvNet(2, 16, "none")

METHODS = [
    (AdversarialPoisoning(steps=1), SMALL),
    (AdversarialTraining(steps=1), SMALL),
    (DPSGD(), SMALL),
    (DPSGD(10.0, mode="per_sample"), NORMLESS),
    (Mixup(), SMALL),
]


def recipe(model: Model, epochs: int = 2) -> Recipe:
    return Recipe(model, epochs, 32, schedule=OneCycle(0.02, 0.2), augment=None)


@pytest.fixture(scope="module")
def digits() -> tuple[ImageDataset, ImageDataset]:
    train, test = data.load("digits")
    return train.take(torch.arange(256)), test


def batch_of(n: int = 8, side: int = 8, classes: int = 3, smoothing: float = 0.0) -> Batch:
    images = torch.randint(0, 256, (n, 3, side, side), dtype=torch.uint8, generator=key(1).generator())
    labels = torch.arange(n) % classes
    return Batch(images, labels, torch.arange(n), 0, 0, key(2), smoothing)


def gradients(procedure: Procedure, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
    """Those a step is taken with."""
    model.zero_grad()
    loss, _ = procedure.loss(model, batch)
    loss.backward()  # type: ignore[no-untyped-call]
    procedure.gradients(model, batch)
    return {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}


def norm(tensors: Any) -> float:
    return float(torch.stack([each.square().sum() for each in tensors]).sum().sqrt())


# ------------------------------------------------------------------------------------------ what all owe


@pytest.mark.parametrize(("method", "model"), METHODS, ids=lambda value: type(value).__name__)
def test_learns_resumes_and_leaves_the_global_generator_alone(
    method: Any, model: Model, digits: tuple[ImageDataset, ImageDataset], tmp_path: Path
) -> None:
    train, test = digits
    before = torch.get_rng_state()
    straight = method(train, recipe(model), key=key(0))
    assert torch.equal(torch.get_rng_state(), before)
    assert not straight.training
    assert metrics.clean_accuracy(straight, test) > 0.2  # chance is 0.1

    def stop(epoch: Epoch) -> None:
        if epoch.number == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        method(train, recipe(model), key=key(0), journal=Journal(tmp_path, stop))
    resumed = method(train, recipe(model), key=key(0), journal=Journal(tmp_path))
    assert all(map(torch.equal, straight.state_dict().values(), resumed.state_dict().values()))
    ordinary = fit(train, recipe(model), key=key(0))
    assert not all(map(torch.equal, straight.state_dict().values(), ordinary.state_dict().values()))


@pytest.mark.parametrize(("method", "model"), METHODS, ids=lambda value: type(value).__name__)
def test_trains_a_given_network_further_where_it_may(
    method: Any, model: Model, digits: tuple[ImageDataset, ImageDataset]
) -> None:
    """The scenario of transfer: only the last layer is free."""
    train = digits[0].take(torch.arange(64))
    given = model.build(train.shape, 10, key(5)).requires_grad_(False)
    given.fc.requires_grad_(True)
    before = {name: tensor.clone() for name, tensor in given.state_dict().items()}
    found = dict(method(train, recipe(model, 1), key=key(0), model=given).named_parameters())
    assert all(torch.equal(tensor, before[name]) for name, tensor in given.state_dict().items())
    changed = {name for name, tensor in found.items() if not torch.equal(tensor, before[name])}
    assert changed == {"fc.weight", "fc.bias"}


def test_they_are_listed() -> None:
    assert {type(method) for method, _ in METHODS} <= set(TRAINING.values())


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: DPSGD(clip=0), "clip must be above 0, got 0"),
        (lambda: DPSGD(noise=-1), "noise must be 0 or more, got -1"),
        (lambda: DPSGD(per_sample="jax"), "per_sample must be func or opacus, got jax"),  # type: ignore[arg-type]
        (lambda: DPSGD(mode="row"), "mode must be batch or per_sample, got row"),  # type: ignore[arg-type]
        (lambda: Mixup(0), "alpha must be above 0, got 0"),
        (lambda: AdversarialPoisoning(share=1), "share must be in (0, 1), got 1"),
        (lambda: AdversarialPoisoning(eps=-1), "eps must be 0 or more pixel steps, got -1"),
        (lambda: Adversarial(8, 2, -1), "steps must be 0 or more, got -1"),
    ],
)
def test_options_out_of_range(make: Any, message: str) -> None:
    with pytest.raises(ArgumentError, match=re.escape(message)):
        make()


# --------------------------------------------------------------------------------------- gradient shaping


def test_the_gradient_of_a_batch_is_clipped_over_all_parameters_together() -> None:
    model, batch = SMALL.build((3, 8, 8), 3, key(0)), batch_of()
    plain = gradients(Procedure(), model, batch)
    size = norm(plain.values())
    clipped = gradients(Shaped(clip=size / 4, noise=0), model, batch)
    for name, each in plain.items():
        torch.testing.assert_close(clipped[name], each / 4, rtol=1e-4, atol=1e-6)
    untouched = gradients(Shaped(clip=size * 2, noise=0), model, batch)
    for name, each in plain.items():
        torch.testing.assert_close(untouched[name], each)


@pytest.mark.parametrize(("kind", "share"), [(Shaped, 1.0), (ShapedPerSample, 1 / 8)])
def test_the_noise_has_the_deviation_it_should(kind: Any, share: float) -> None:
    model, batch = ConvNet(1, 64, "none").build((3, 8, 8), 3, key(0)), batch_of()
    quiet, loud = (gradients(kind(2.0, noise), model, batch) for noise in (0.0, 0.5))
    noise = torch.cat([(loud[name] - quiet[name]).flatten() for name in quiet])
    assert len(noise) > 4000
    assert float(noise.std()) == pytest.approx(2.0 * 0.5 * share, rel=0.05)
    assert abs(float(noise.mean())) < 0.1 * float(noise.std())
    again = gradients(kind(2.0, 0.5), model, batch)
    assert all(torch.equal(again[name], loud[name]) for name in loud)


@pytest.mark.parametrize("config", [NORMLESS, ConvNet(2, 4), ViT(1, 16, 2, patch=4)], ids=str)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradients_of_rows_are_those_of_one_row_at_a_time(
    config: Model, smoothing: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, batch = config.build((3, 8, 8), 3, key(0)).train(), batch_of(smoothing=smoothing)
    parameters = list(model.parameters())
    rows = []
    for i in range(8):
        loss = cross_entropy(model(batch.images[i : i + 1]), batch.labels[i : i + 1], label_smoothing=smoothing)
        rows.append(torch.autograd.grad(loss, parameters))
    clip = sorted(map(norm, rows))[4]  # half of them are clipped
    expected = [
        sum(each * min(1.0, clip / norm(row)) / 8 for row in rows for each in row[i : i + 1])
        for i in range(len(parameters))
    ]
    found = gradients(ShapedPerSample(clip, 0.0), model, batch)
    for one, other in zip(found.values(), expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    monkeypatch.setattr("poisonkit.defenses.training.dp_sgd._CHUNK", 1)  # a row at a time
    apart = gradients(ShapedPerSample(clip, 0.0), model, batch)
    for name, each in found.items():
        torch.testing.assert_close(apart[name], each, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("config", [NORMLESS, ConvNet(2, 4)], ids=str)  # group norms have weights of their own
def test_gradients_of_rows_by_opacus(config: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its hooks give what torch.func gives, in chunks and with channels last too, and so does its own optimiser."""
    opacus = pytest.importorskip("opacus", reason="opacus is not installed")
    model, batch = config.build((3, 8, 8), 3, key(0)).train(), batch_of(16)
    ours = gradients(ShapedPerSample(0.5, 0.0), model, batch)
    assert max(norm([each]) for each in ours.values()) > 0
    last = deepcopy(model).to(memory_format=torch.channels_last)
    for each, chunk in ((model, 1 << 26), (model, 1), (last, 1 << 26)):
        monkeypatch.setattr("poisonkit.defenses.training.dp_sgd._CHUNK", chunk)
        found = gradients(ShapedPerSample(0.5, 0.0, "opacus"), each, batch)
        for name, each in ours.items():
            torch.testing.assert_close(found[name], each, rtol=1e-4, atol=1e-6)
    model.zero_grad()
    for module in model.modules():
        if isinstance(module, nn.ReLU):
            module.inplace = False
    hooked = opacus.GradSampleModule(model)
    optimizer = opacus.optimizers.DPOptimizer(
        torch.optim.SGD(model.parameters(), lr=1.0), noise_multiplier=0.0, max_grad_norm=0.5, expected_batch_size=16
    )
    cross_entropy(hooked(batch.images.float().requires_grad_()), batch.labels).backward()
    optimizer.pre_step()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(ours[name], parameter.grad, rtol=1e-4, atol=1e-6)


def test_opacus_trains_or_says_why_not(digits: tuple[ImageDataset, ImageDataset]) -> None:
    pytest.importorskip("opacus", reason="opacus is not installed")
    train, one = digits[0].take(torch.arange(64)), recipe(NORMLESS, epochs=1)
    by_func, by_opacus = (
        DPSGD(10.0, 0.0, "per_sample", each)(train, one, key=key(0)).state_dict()  # type: ignore[arg-type]
        for each in ("func", "opacus")
    )
    for name, each in by_func.items():
        torch.testing.assert_close(by_opacus[name], each, rtol=1e-3, atol=1e-5)
    with pytest.raises(ArgumentError, match="model must be one that Opacus takes, got VisionTransformer; take per_s"):
        DPSGD(mode="per_sample", per_sample="opacus")(train, recipe(ViT(1, 16, 2, patch=4)), key=key(0))


def test_opacus_is_asked_for_where_it_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("poisonkit.defenses.training.dp_sgd.find_spec", lambda name: None)
    DPSGD(mode="per_sample")
    with pytest.raises(MissingError, match="opacus must be installed for per_sample opacus, got no module; pip"):
        DPSGD(per_sample="opacus")


def test_batch_norms_have_no_gradients_of_rows() -> None:
    train = ImageDataset(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.arange(4) % 2, ("a", "b"))
    message = "model must be without batch norms for mode per_sample, got bn1, layer1.0.bn1, layer1.0.bn2; take"
    with pytest.raises(ArgumentError, match=re.escape(message)):
        DPSGD(mode="per_sample")(train, recipe(SMALL), key=key(0))


# -------------------------------------------------------------------------------------------------- mixup


def test_mixup_is_the_cross_entropy_of_mixed_labels() -> None:
    model, batch = NORMLESS.build((3, 8, 8), 3, key(0)), batch_of()
    mixup = Mixup(0.4)
    loss, logits = mixup.loss(model, batch)
    share, other = mixup.share(batch.key), batch.key.child("other").permutation(8)
    assert 0 < share < 1
    mixed = share * batch.images.float() + (1 - share) * batch.images.float()[other]
    torch.testing.assert_close(logits, model(mixed))
    wanted = share * one_hot(batch.labels, 3) + (1 - share) * one_hot(batch.labels[other], 3)
    torch.testing.assert_close(loss, -(wanted * log_softmax(model(mixed), 1)).sum(1).mean())


@pytest.mark.parametrize("alpha", [0.2, 1.0, 4.0])
def test_shares_are_of_the_beta_distribution(alpha: float) -> None:
    shares = torch.tensor([Mixup(alpha).share(key(i)) for i in range(1000)], dtype=torch.float64)
    assert float(shares.mean()) == pytest.approx(0.5, abs=0.05)
    assert float(shares.var()) == pytest.approx(1 / (4 * (2 * alpha + 1)), rel=0.15)


# ----------------------------------------------------------------------------------- adversarial training


def test_adversarial_steps_are_taken_on_images_within_eps_that_are_harder() -> None:
    model, batch = SMALL.build((3, 8, 8), 3, key(0)), batch_of()
    seen: list[Tensor] = []
    hook = model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach()))
    loss, logits = Adversarial(8, 2, 5).loss(model.train(), batch)
    hook.remove()
    assert len(seen) == 6
    change = (seen[-1] - batch.images).abs()
    assert 4 < float(change.max()) <= 8
    assert 0 <= float(seen[-1].min()) <= float(seen[-1].max()) <= 255
    with torch.no_grad():
        hard, easy = (cross_entropy(model.eval()(images), batch.labels) for images in (seen[-1], batch.images))
    assert hard > easy
    torch.testing.assert_close(loss, cross_entropy(logits, batch.labels))


# ---------------------------------------------------------------------------------- adversarial poisoning


def test_poisons_lie_within_eps_and_turn_their_gradient_to_the_victims() -> None:
    model, batch = SMALL.build((3, 8, 8), 3, key(0)).train(), batch_of(12)
    images = batch.images.float()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    found = {
        steps: AdversarialPoisoning(eps=16, steps=steps).poisons(model, images, batch.labels, 4, key(0))
        for steps in (0, 20)
    }
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert model.training
    assert torch.equal(images, batch.images.float())
    model.eval()
    wanted = torch.zeros(8, dtype=torch.int64)  # the labels of the first four are 0, 1, 2, 0
    aim = gradient(model, images[4:], wanted)
    apart = {}
    for steps, poisons in found.items():
        change = poisons - images[:4]
        assert 8 < float(change.abs().max()) <= 16
        assert 0 <= float(poisons.min()) <= float(poisons.max()) <= 255
        apart[steps] = float(misalignment(gradient(model, poisons, batch.labels[:4]), aim))
    assert apart[20] < apart[0] - 0.05


@pytest.mark.parametrize(("share", "count"), [(0.25, 3), (0.5, 6), (0.75, 9), (0.01, 1), (0.99, 11)])
def test_a_share_of_the_batch_is_poisoned_and_all_labels_stay_true(share: float, count: int) -> None:
    model, batch = SMALL.build((3, 8, 8), 3, key(0)).train(), batch_of(12)
    seen: list[Tensor] = []
    model.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0].detach().clone()))
    loss, logits = AdversarialPoisoning(share, steps=1).loss(model, batch)
    changed = (seen[-1] != batch.images).flatten(1).any(1)
    assert changed.tolist() == [True] * count + [False] * (12 - count)
    torch.testing.assert_close(loss, cross_entropy(logits, batch.labels))
