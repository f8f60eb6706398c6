"""What a network computes before its last layer, for any network that ends in a linear one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from poisonkit.errors import require


def head(model: nn.Module) -> nn.Linear:
    """The last linear layer of ``model``, which gives its logits. Raises ArgumentError where it has none."""
    layers = [module for module in model.modules() if isinstance(module, nn.Linear)]
    require(len(layers) > 0, "model", "one that ends in a linear layer", type(model).__name__)
    return layers[-1]


@contextmanager
def watched(model: nn.Module) -> Iterator[list[Tensor]]:
    """A list that holds, after every forward pass in the block, what entered the last layer, [B, d]."""
    seen: list[Tensor] = []
    hook = head(model).register_forward_pre_hook(lambda layer, inputs: seen.__setitem__(slice(None), inputs[:1]))
    try:
        yield seen
    finally:
        hook.remove()


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """``model`` in evaluation mode; every module as it was afterwards."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, mode in modes:
            module.training = mode


@torch.no_grad()
def features(model: nn.Module, images: Tensor, batch_size: int = 512) -> tuple[Tensor, Tensor]:
    """The inputs of the last layer, float32 [M, d], and the logits, float32 [M, K], in evaluation mode.

    Batches of ``images`` (uint8 [M, C, H, W]) go to the model's device, results return to the images'.
    """
    device = next(model.parameters(), images).device
    found: list[Tensor] = []
    scores: list[Tensor] = []
    with evaluating(model), watched(model) as seen:
        for batch in torch.split(images, batch_size):
            scores.append(model(batch.to(device)).float().to(images.device))
            found.append(seen[0].float().to(images.device))
    return torch.cat(found), torch.cat(scores)
