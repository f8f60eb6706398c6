"""What a classifier says about images, batch by batch, without gradients and without changing the classifier."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Protocol

import torch
from torch import Tensor, nn

from poisonkit.errors import require


class Predictor(Protocol):
    """Anything that votes or decides without being one network, such as an ensemble."""

    def predict(self, images: Tensor) -> Tensor: ...


Classifier = nn.Module | Predictor


def logits(model: nn.Module, images: Tensor, batch_size: int = 512) -> Tensor:
    """The outputs of ``model`` in evaluation mode: uint8 [M, C, H, W] -> float32 [M, K].

    Batches go to the model's device, results return to the images'. Every module is left in the mode
    it was in.
    """
    return _map(model, images, batch_size, Tensor.float)


def predict(model: Classifier, images: Tensor, batch_size: int = 512) -> Tensor:
    """The class of the largest logit, ties to the smaller index: uint8 [M, C, H, W] -> int64 [M]."""
    if isinstance(model, nn.Module):
        return _map(model, images, batch_size, lambda scores: scores.argmax(1))
    return model.predict(images)


def top(model: nn.Module, images: Tensor, n: int = 1, batch_size: int = 512) -> Tensor:
    """The n classes of the largest logits, best first, ties to the smaller index: -> int64 [M, n]."""

    def best(scores: Tensor) -> Tensor:
        require(1 <= n <= scores.shape[1], "n", f"in [1, {scores.shape[1]}], the number of classes", n)
        if n == 1:
            return scores.argmax(1, keepdim=True)
        return scores.sort(dim=1, descending=True, stable=True).indices[:, :n]

    return _map(model, images, batch_size, best)


def ensemble_logits(models: Sequence[nn.Module], images: Tensor, batch_size: int = 512) -> Iterator[Tensor]:
    """The outputs of every model, chunk by chunk of images: uint8 [M, C, H, W] -> float32 [k, m, K] each."""
    for batch in torch.split(images, batch_size):
        yield torch.stack([logits(model, batch, batch_size) for model in models])


@torch.no_grad()
def _map(model: nn.Module, images: Tensor, batch_size: int, reduce: Callable[[Tensor], Tensor]) -> Tensor:
    require(batch_size >= 1, "batch_size", "1 or more", batch_size)
    first = next(model.parameters(), images)
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        # An empty batch tells the shape of no results at all
        parts = [reduce(model(batch.to(first.device))).to(images.device) for batch in torch.split(images, batch_size)]
    finally:
        for module in training:
            module.training = True
    return torch.cat(parts)
