"""Prediction: ties, batches, modes."""

from __future__ import annotations

import sys

import pytest
import torch
from torch import Tensor, nn

from poisonkit.errors import ArgumentError
from poisonkit.models import ResNet, logits, predict, top
from poisonkit.models.predict import ensemble_logits, multiply_adds
from poisonkit.models.resnet import fold_into, folded
from poisonkit.random import key

MODULE = sys.modules[ensemble_logits.__module__]  # whose name in the package is that of the function


class Scores(nn.Module):
    """Returns the pixels of a 1 x K image as its logits."""

    def forward(self, images: Tensor) -> Tensor:
        assert not torch.is_grad_enabled()
        return images.flatten(1).double()


ROWS = torch.tensor([[3, 9, 9, 1], [5, 5, 5, 5], [0, 1, 2, 2]], dtype=torch.uint8).view(3, 1, 1, 4)


@pytest.mark.parametrize("batch_size", [1, 2, 3, 512])
def test_ties_go_to_the_smaller_class(batch_size: int) -> None:
    assert predict(Scores(), ROWS, batch_size).tolist() == [1, 0, 2]
    assert top(Scores(), ROWS, 1, batch_size).tolist() == [[1], [0], [2]]
    assert top(Scores(), ROWS, 3, batch_size).tolist() == [[1, 2, 0], [0, 1, 2], [2, 3, 1]]
    scores = logits(Scores(), ROWS, batch_size)
    assert (scores.dtype, scores.tolist()) == (torch.float32, ROWS.flatten(1).tolist())


def test_no_images() -> None:
    model = ResNet(8, 4).build((3, 8, 8), 6, key(0))
    none = torch.empty(0, 3, 8, 8, dtype=torch.uint8)
    assert logits(model, none).shape == (0, 6)
    assert (predict(model, none).shape, predict(model, none).dtype) == ((0,), torch.int64)
    assert top(model, none, 2).shape == (0, 2)


def test_modes_and_statistics_are_left_as_found() -> None:
    model = ResNet(8, 4, stem="small", dropout=0.5).build((1, 8, 8), 6, key(0)).train()
    model.layer1.eval()
    modes = [module.training for module in model.modules()]
    before = {name: value.clone() for name, value in model.state_dict().items()}
    images = torch.randint(0, 256, (5, 1, 8, 8), dtype=torch.uint8, generator=key(1).generator())
    assert torch.equal(logits(model, images), logits(model, images))
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_mode_is_restored_after_an_error() -> None:
    model = ResNet(8, 4).build((3, 8, 8), 6, key(0)).train()
    with pytest.raises(RuntimeError):
        predict(model, torch.zeros(1, 2, 8, 8))
    assert all(module.training for module in model.modules())


def test_anything_that_predicts_is_a_classifier() -> None:
    class Constant:
        def predict(self, images: Tensor) -> Tensor:
            return torch.full((len(images),), 7)

    assert predict(Constant(), ROWS).tolist() == [7, 7, 7]


def test_rejects() -> None:
    with pytest.raises(ArgumentError, match="batch_size"):
        predict(Scores(), ROWS, 0)
    for n in (0, 5):
        with pytest.raises(ArgumentError, match="n must be"):
            top(Scores(), ROWS, n)


NETWORKS = [ResNet(8, 4, stem="small", dropout=0.5), ResNet(18, 8), ResNet(50, 4), ResNet(50, 8, "bottleneck")]


def trained(config: ResNet, seed: int) -> nn.Module:
    """A network whose batch norms are not the identity."""
    model = config.build((3, 16, 16), 7, key(seed))
    with key(seed).child("statistics").ambient():
        for name, tensor in model.state_dict().items():
            if "bn" in name or "downsample.1" in name:
                tensor.copy_(torch.rand(tensor.shape) + 0.5)
    return model.train()


def pixels(count: int) -> Tensor:
    return torch.randint(0, 256, (count, 3, 16, 16), dtype=torch.uint8, generator=key(1).generator())


@pytest.mark.parametrize("config", NETWORKS, ids=repr)
def test_folding_changes_nothing(config: ResNet) -> None:
    model = trained(config, 0)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    copy = folded(trained(config, 1))
    fold_into(copy, model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in copy.modules())
    torch.testing.assert_close(copy(pixels(5)), logits(model, pixels(5)), rtol=1e-3, atol=1e-4)
    inside = nn.Sequential(nn.Identity(), model)
    assert torch.equal(folded(inside)(pixels(5)), folded(model)(pixels(5)))
    assert model.training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("threshold", [0, 10**18])
@pytest.mark.parametrize("chunk", [4 * 3 * 7 * 2, 1 << 28], ids=["2 images", "all"])
@pytest.mark.parametrize("count", [0, 1, 5])
def test_an_ensemble_says_what_its_models_say(
    monkeypatch: pytest.MonkeyPatch, threshold: int, chunk: int, count: int
) -> None:
    monkeypatch.setattr(MODULE, "FOLDED", threshold)
    monkeypatch.setattr(MODULE, "_CHUNK", chunk)
    models = [trained(NETWORKS[0], seed) for seed in range(3)]
    parts = list(ensemble_logits(models, pixels(count), 3))
    in_pairs = {0: [0], 1: [1], 5: [2, 2, 1]}
    assert [part.shape[1] for part in parts] == (in_pairs[count] if chunk < 1000 else [count])
    expected = torch.stack([logits(model, pixels(count)) for model in models])
    torch.testing.assert_close(torch.cat(parts, 1), expected, rtol=1e-3, atol=1e-4)
    assert all(model.training and isinstance(model.bn1, nn.BatchNorm2d) for model in models)


def test_one_graph_serves_all_models(monkeypatch: pytest.MonkeyPatch) -> None:
    made = []

    def compiling(model: nn.Module, *, dynamic: bool) -> nn.Module:
        made.append(dynamic)
        model.register_forward_hook(lambda _, inputs, __: sizes.append(len(inputs[0])))
        return model

    sizes: list[int] = []
    monkeypatch.setattr(torch, "compile", compiling)  # which takes half a minute
    models = [trained(NETWORKS[0], seed) for seed in range(3)]
    (ours,) = ensemble_logits(models, pixels(5), 4, compiled=True)
    torch.testing.assert_close(ours, torch.stack([logits(m, pixels(5)) for m in models]), rtol=1e-3, atol=1e-4)
    assert (made, sizes) == ([False], [4] * 6)


def test_networks_of_several_architectures_share_no_graph(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(MODULE, "FOLDED", 0)
    models = [trained(NETWORKS[0], 0), trained(NETWORKS[1], 1)]
    (ours,) = ensemble_logits(models, pixels(5))
    assert torch.equal(ours, torch.stack([logits(model, pixels(5)) for model in models]))
    with pytest.raises(ArgumentError, match="one architecture"):
        next(ensemble_logits(models, pixels(5), compiled=True))


def test_multiply_adds_are_those_counted_by_hand() -> None:
    # A count from the formula of every layer: 3.431 million
    assert multiply_adds(ResNet(18, 8).build((3, 64, 64), 1000, key(0)), (3, 64, 64)) == pytest.approx(
        3.431e6, rel=1e-3
    )
    one = nn.Sequential(nn.Conv2d(2, 3, 3, padding=1), nn.Flatten(), nn.Linear(3 * 4 * 5, 7)).double()
    assert multiply_adds(nn.Sequential(_ToDouble(), one), (2, 4, 5)) == 2 * 3 * 9 * 20 + 60 * 7


class _ToDouble(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.double()
