"""Data at the edge: a row a class, one class, ten thousand, a pixel, no rows; and weights that are nan."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from poisonkit.__main__ import main
from poisonkit.defenses import DPA
from poisonkit.defenses.certified import CERTIFIED, Ensemble
from poisonkit.errors import ArgumentError
from poisonkit.models import ResNet
from poisonkit.random import key
from poisonkit.train import Recipe
from poisonkit.types import ImageDataset

RECIPE = Recipe(ResNet(8, 4, stem="small"), epochs=1, batch_size=4, augment=None)


def some(rows: int, classes: int, channels: int = 3, side: int = 8) -> ImageDataset:
    shape = (rows, channels, side, side)
    images = torch.randint(0, 256, shape, dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return ImageDataset(images, torch.arange(rows) % classes, tuple(map(str, range(classes))))


EDGES = {
    "a row a class": some(6, 6),
    "grey": some(6, 2, 1),
    "a pixel": some(6, 2, 3, 1),
    "10,000 classes": some(6, 10_000),
    "one row": some(1, 2),
}


@pytest.mark.parametrize("edge", EDGES)
@pytest.mark.parametrize("name", CERTIFIED)
def test_every_certified_defense(name: str, edge: str) -> None:
    data = EDGES[edge]
    ensemble = CERTIFIED[name](partitions=3)(data, RECIPE, key=key(0))
    certificate = ensemble.certify(data.images)
    votes = ensemble.top(data.images)[..., 0]
    for column, (prediction, radius) in enumerate(zip(certificate.prediction, certificate.radius, strict=True)):
        named = torch.bincount(votes[:, column], minlength=data.num_classes)
        assert 0 <= int(prediction) < data.num_classes
        assert name == "run_off_election" or named[prediction] == named.max()
        assert -1 <= int(radius) <= len(votes)


def test_base_models_without_rows_vote_as_initialised() -> None:
    data = some(2, 3)
    split = DPA(8).split(data, key(0))
    assert min(split.sizes) == 0
    ensemble = DPA(8)(data, RECIPE, key=key(0))
    empty = split.sizes.index(0)
    recipe = DPA(8).base(RECIPE)
    untrained = recipe.model.build(data.shape, 3, key(0).child("partition", empty).child("init"))
    trained = ensemble.models[empty].state_dict()
    assert all(torch.equal(tensor, trained[name]) for name, tensor in untrained.state_dict().items())


def test_one_class_is_no_vote() -> None:
    with pytest.raises(ArgumentError, match="num_classes must be at least 2, got 1"):
        DPA(2)(some(4, 1), RECIPE, key=key(0)).certify(some(1, 1).images)


def test_a_step_of_one_pixel_has_no_variance() -> None:
    with pytest.raises(ArgumentError, match="batch_size must be 2 or more: batch normalisation needs a variance"):
        DPA(1)(some(4, 2, 3, 1), replace(RECIPE, batch_size=1), key=key(0))


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_have_no_vote(value: float) -> None:
    models = {i: nn.Sequential(nn.Flatten(), nn.Linear(4, 3)) for i in range(3)}
    Ensemble(models, 3)
    with torch.no_grad():
        models[1][1].weight[2, 1] = value
    with pytest.raises(ArgumentError, match=r"models\[1\] must be a network of finite weights, got inf or nan in 1."):
        Ensemble(models, 3)


def test_a_network_of_nan_is_not_repaired(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    state = ResNet(8, 4, stem="small").build((1, 8, 8), 10, key(0)).state_dict()
    state["fc.bias"][3] = float("nan")
    save_file(state, tmp_path / "model.safetensors")
    command = ["repair", str(tmp_path / "model.safetensors"), "--arch", "resnet8:4", "--data", "digits"]
    assert main([*command, "--limit", "120", "--clean", "2", "--out", str(tmp_path / "out")]) == 2
    assert "MODEL must be a network of finite weights, got inf or nan in fc.bias" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
