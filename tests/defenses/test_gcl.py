"""Gaussian clouded logits by hand, the even drawing of classes, and a long tail of digits."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn.functional import normalize

from poisonkit import data, metrics
from poisonkit.data.augment import Augment
from poisonkit.data.priors import PRIORS
from poisonkit.defenses.training.clouded import Clouded, Stage, clouds
from poisonkit.defenses.training.gcl import GCL
from poisonkit.errors import ArgumentError
from poisonkit.models import ResNet, predict
from poisonkit.models.features import features, head
from poisonkit.random import key
from poisonkit.train import Batch, Journal, OneCycle, Recipe, fit
from poisonkit.types import ImageDataset

RECIPE = Recipe(ResNet(8, 4, stem="small"), 2, 16, schedule=OneCycle(0.02, 0.2), augment=Augment(1, flip=False))


def test_clouds_by_hand() -> None:
    assert clouds(torch.tensor([100, 10, 1])).tolist() == pytest.approx([0, 0.5, 1])
    assert clouds(torch.tensor([7, 7, 7])).tolist() == [0, 0, 0]


def test_logits_by_hand() -> None:
    stage = Stage(scale=20, cloud=0.5, margin=0.1, focus=0, mixup=0)
    cosines, noise = torch.tensor([[0.5, 0.5, 0.5]]), torch.tensor([[0.9, -0.4, 3.0]])
    # 20·(0.5), 20·(0.5 - 0.1 - 0.5·0.4·0.5), 20·(0.5 - 0.5·1·1)
    found = stage.logits(cosines, noise, torch.tensor([0.0, 0.5, 1.0]), torch.tensor([1]))
    assert found[0].tolist() == pytest.approx([10, 6, 0], abs=1e-5)


class Identity(nn.Module):
    """Two pixels are the features."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(2, 2)
        self.fc.weight.data = torch.tensor([[2.0, 0.0], [0.0, 5.0]])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.fc(images.flatten(1).float())  # type: ignore[no-any-return]


def test_loss_by_hand() -> None:
    batch = Batch(torch.tensor([[[[3.0, 4.0]]]]), torch.tensor([0]), torch.tensor([0]), 0, 0, key(0))
    # Cosines 0.6 and 0.8, whatever the norms of rows and features; without clouds the loss is ln(1 + e^{0.2 s})
    for focus in (0.0, 2.0):
        stage = Stage(scale=10, cloud=0, margin=0, focus=focus, mixup=0)
        loss, cosines = Clouded(stage, torch.tensor([5, 1])).loss(Identity(), batch)
        assert cosines[0].tolist() == pytest.approx([0.6, 0.8])
        plain = torch.tensor(2.0).exp().add(1).log()
        assert loss.item() == pytest.approx(float((1 - (-plain).exp()) ** focus * plain))


def test_mixup_of_a_batch_weighs_both_labels() -> None:
    batch = Batch(torch.tensor([[[[1.0, 0.0]]], [[[0.0, 1.0]]]]), torch.tensor([0, 1]), torch.arange(2), 0, 0, key(0))
    stage = Stage(scale=10, cloud=0, margin=0, focus=0, mixup=1)
    losses = []
    for seed in range(20):
        found, cosines = Clouded(stage, torch.tensor([1, 1])).loss(Identity(), replace(batch, key=key(seed)))
        share = cosines[0, 0] / cosines[0].sum()  # of an image with itself it is 1
        logits = 10 * cosines
        wanted = share * nn.functional.cross_entropy(logits, batch.labels)
        wanted = wanted + (1 - share) * nn.functional.cross_entropy(logits, batch.labels.flip(0))
        losses.append(abs(found.item() - wanted.item()))
    assert max(losses) < 1e-5


def test_classes_are_drawn_evenly() -> None:
    labels = torch.tensor([2] * 900 + [0] * 90 + [1] * 10)
    skewed = ImageDataset(torch.zeros(1000, 1, 1, 1), labels, ("a", "b", "c"))
    procedure = Clouded(Stage(1, 0, 0, 0, 0), torch.bincount(labels), balanced=True)
    rows = procedure.rows(Identity(), skewed, 0, key(0))
    assert rows is not None
    assert len(rows) == 1000
    assert torch.bincount(labels[rows]).sub(333).abs().max() < 60, "four standard deviations"
    assert len(rows[labels[rows] == 1].unique()) == 10, "every row of the rarest class comes in time"
    other = procedure.rows(Identity(), skewed, 1, key(0))
    assert other is not None
    assert not torch.equal(rows, other)
    assert Clouded(Stage(1, 0, 0, 0, 0), torch.bincount(labels)).rows(Identity(), skewed, 0, key(0)) is None


@pytest.mark.slow
def test_a_long_tail_of_digits() -> None:
    train, test = data.load("digits")
    tail, recipe = PRIORS["lt-100"](train, key=key(0)), replace(RECIPE, model=ResNet(8, 8, stem="small"), epochs=20)
    plain = fit(tail, recipe, key=key(0))
    found = GCL(epochs=5)(tail, recipe, key=key(0))
    rare = test.take((test.labels >= 6).nonzero()[:, 0])
    assert metrics.clean_accuracy(found, test) > metrics.clean_accuracy(plain, test) + 0.05
    assert metrics.clean_accuracy(found, rare) > metrics.clean_accuracy(plain, rare) + 0.1


def test_the_last_layer_is_an_ordinary_one_that_decides_by_cosines() -> None:
    train = data.load("digits")[0].take(torch.arange(100))
    model = GCL(epochs=1)(train, RECIPE, key=key(0))
    last = head(model)
    torch.testing.assert_close(last.weight.norm(dim=1), torch.ones(10))
    assert last.bias is not None
    assert (last.bias == 0).all()
    assert all(parameter.requires_grad for parameter in model.parameters())
    inner, _ = features(model, train.images)
    cosines = normalize(inner) @ normalize(last.weight).T
    assert torch.equal(predict(model, train.images), cosines.argmax(1))


def test_the_second_stage_leaves_the_features_alone(tmp_path: Path) -> None:
    train = data.load("digits")[0].take(torch.arange(100))
    one, both = (GCL(epochs=epochs)(train, RECIPE, key=key(0)) for epochs in (0, 2))
    changed = [name for name, tensor in one.state_dict().items() if not torch.equal(tensor, both.state_dict()[name])]
    assert changed == ["fc.weight"]
    count = 0

    def die(epoch: object) -> None:
        nonlocal count
        count += 1
        if count == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        GCL(epochs=2)(train, RECIPE, key=key(0), journal=Journal(tmp_path, die))
    again = GCL(epochs=2)(train, RECIPE, key=key(0), journal=Journal(tmp_path))
    assert all(torch.equal(tensor, again.state_dict()[name]) for name, tensor in both.state_dict().items())


def test_errors() -> None:
    empty = ImageDataset(torch.zeros(2, 1, 8, 8), torch.tensor([0, 2]), ("a", "b", "c"))
    with pytest.raises(ArgumentError, match="data must be of every class, got none of class 1"):
        GCL()(empty, RECIPE, key=key(0))
    with pytest.raises(ArgumentError, match="mixup must be 0 or more, got -1"):
        GCL(mixup=-1)
