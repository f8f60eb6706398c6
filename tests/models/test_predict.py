"""Prediction: ties, batches, modes."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from poisonkit.errors import ArgumentError
from poisonkit.models import ResNet, logits, predict, top
from poisonkit.random import key


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
