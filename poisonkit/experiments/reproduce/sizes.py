"""What a reproduction would cost, on paper: arithmetic, hours, memory, disk."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from math import prod

import torch
from torch import nn

from poisonkit.experiments.reproduce.registry import Training
from poisonkit.models import Model, logits
from poisonkit.models.predict import multiply_adds
from poisonkit.random import Key

# A training step does the arithmetic of a prediction three times: forward, for the inputs, for the weights.
STEP = 3
# Floating-point operations a second, two a multiply-add, that Table 3 of arXiv 2306.16415 implies for an RTX A4000:
# from width 128 to 256, 3.91 G more multiply-adds an image and 7.5 h more for 20 epochs of 1,281,167 images.
TERAFLOPS = 22.3
# data set -> image, classes, training rows: what is known of those that need not be at hand
SHAPES = {
    "digits-32": ((3, 32, 32), 10, 1437),
    "cifar10": ((3, 32, 32), 10, 50_000),
    "tiny-imagenet": ((3, 64, 64), 200, 100_000),
    "tiny-imagenet-50": ((3, 64, 64), 50, 25_000),
    "imagenet64": ((3, 64, 64), 1000, 1_281_167),
}


@dataclass(frozen=True)
class Size:
    """What training takes.

    networks      how many
    multiply_adds of all of it
    hours         on one GPU, of arithmetic alone
    hours_on_8    on eight of them, a network on one GPU at a time
    gpu_bytes     the data, and the largest network with its gradients, momenta and kept activations
    disk_bytes    the networks
    """

    networks: int
    multiply_adds: float
    hours: float
    hours_on_8: float
    gpu_bytes: float
    disk_bytes: float


def size(
    trainings: Sequence[Training],
    shape: tuple[int, int, int],
    num_classes: int,
    rows: int,
    teraflops: float = TERAFLOPS,
) -> Size:
    """The size of ``trainings`` on images [C, H, W] of ``rows`` training rows in all."""
    each: list[float] = []
    largest = disk = 0.0
    for training in trainings:
        recipe = training.recipe
        work, parameters, kept = _network(recipe.model, shape, num_classes)
        each += [STEP * work * training.rows * recipe.epochs] * training.count
        number = 2 if recipe.precision == "bfloat16" else 4
        largest = max(largest, 12.0 * parameters + number * kept * recipe.batch_size)
        disk += 4.0 * parameters * training.count
    rate = teraflops * 1e12 / 2 * 3600
    total = sum(each)
    return Size(
        len(each),
        total,
        total / rate,
        max(total / 8, max(each, default=0.0)) / rate,
        largest + rows * prod(shape),
        disk,
    )


@lru_cache(maxsize=64)
def _network(model: Model, shape: tuple[int, int, int], num_classes: int) -> tuple[int, int, int]:
    """Multiply-adds of an image, parameters, and activations of an image that the backward pass needs."""
    network = model.build(shape, num_classes, Key(0))
    kept = 0

    def count(layer: nn.Module, inputs: tuple[torch.Tensor, ...], out: torch.Tensor) -> None:
        nonlocal kept
        kept += out[0].numel()

    # what enters a norm and what enters a convolution, which is what left a norm; of tokens, what every layer gives
    kinds = (nn.Conv2d, nn.BatchNorm2d, nn.GroupNorm, nn.LayerNorm, nn.Linear, nn.GELU)
    hooks = [m.register_forward_hook(count) for m in network.modules() if isinstance(m, kinds)]
    logits(network, torch.zeros(1, *shape, dtype=torch.uint8))
    for hook in hooks:
        hook.remove()
    return multiply_adds(network, shape), sum(p.numel() for p in network.parameters()), kept
