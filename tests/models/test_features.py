"""What enters the last linear layer of any network."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from poisonkit.errors import ArgumentError
from poisonkit.models import ResNet
from poisonkit.models.features import features, head
from poisonkit.random import key

IMAGES = torch.randint(0, 256, (7, 3, 8, 8), dtype=torch.uint8, generator=key(0).generator())


def test_of_a_residual_network() -> None:
    model = ResNet(8, 4, stem="small").build((3, 8, 8), 5, key(1)).train()
    found, logits = features(model, IMAGES, batch_size=3)
    assert model.training
    assert not head(model)._forward_pre_hooks
    model.eval()
    torch.testing.assert_close(found, model.features(IMAGES))
    torch.testing.assert_close(logits, model(IMAGES))
    torch.testing.assert_close(logits, head(model)(found))


def test_of_somebody_elses_network() -> None:
    class Theirs(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = nn.Linear(192, 6)
            self.top = nn.Linear(6, 2)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.top(self.body(images.flatten(1).float()).relu())

    model = Theirs()
    found, _ = features(model, IMAGES)
    assert head(model) is model.top
    torch.testing.assert_close(found, model.body(IMAGES.flatten(1).float()).relu())
    with pytest.raises(ArgumentError, match="model must be one that ends in a linear layer"):
        head(nn.Conv2d(3, 4, 1))
