"""What attacks share whose trigger is made with a network: a surrogate, trained on clean data by the attacker.

Such an attack is cut in two. ``craft`` trains and optimises, for minutes or more, and gives tensors that can be kept;
``__call__`` takes them as ``state``, or crafts them where there are none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from poisonkit.data.augment import Augment
from poisonkit.errors import require
from poisonkit.models import ResNet
from poisonkit.perturb import Score, ascend
from poisonkit.random import Key
from poisonkit.train import OneCycle, Recipe, fit
from poisonkit.triggers import Additive, Overlay
from poisonkit.types import Budget, ImageDataset, Poison, Trigger

State = Mapping[str, Tensor]
Fit = Callable[..., nn.Module]  # as poisonkit.train.fit, which a caller may replace by one that keeps its networks

# Small enough for minutes on a CPU; what it learns carries over to larger networks.
SURROGATE = Recipe(
    model=ResNet(8, 16, stem="small"), epochs=10, batch_size=64, schedule=OneCycle(0.02, 0.2), augment=Augment()
)


@runtime_checkable
class CraftedAttack(Protocol):
    """An attack in two parts."""

    surrogate: Recipe

    def craft(self, data: ImageDataset, *, key: Key, fit: Fit = fit) -> State: ...

    def trigger(self, state: State) -> Trigger: ...

    def __call__(self, data: ImageDataset, budget: Budget, *, key: Key, state: State | None = None) -> Poison: ...


def surrogate(recipe: Recipe, data: ImageDataset, key: Key, fit: Fit = fit) -> nn.Module:
    """The network an attack with this ``key`` crafts with: the same for all attacks of one recipe."""
    return fit(data, recipe, key=key.child("surrogate"))


def universal(
    score: Score,
    data: ImageDataset,
    target: int,
    free: Tensor,
    make: Callable[[Tensor], Tensor],
    *,
    steps: int,
    rate: float,
    batch_size: int,
    key: Key,
) -> Tensor:
    """The pattern ``make(variables)`` that, added to images of other classes, raises their score: int16 [C, H, W]."""
    found = ascend(
        score,
        data.images,
        others(data, target),
        free.to(data.device),
        lambda batch, variables: (batch + make(variables)).clamp(0, 255),
        steps=steps,
        rate=rate,
        batch_size=batch_size,
        key=key,
    )
    return make(found).round().to(torch.int16).cpu()


def others(data: ImageDataset, target: int) -> Tensor:
    """The rows of other classes than ``target``, int64. Raises ArgumentError where it is none, or the only one."""
    require(0 <= target < data.num_classes, "target", f"a class in [0, {data.num_classes})", target)
    rows = (data.labels != target).nonzero()[:, 0]
    require(len(rows) > 0, "data", f"not all of the target class {target}", "no other")
    return rows


def log_probability(model: nn.Module, target: int) -> Score:
    """The log probability that ``model`` gives ``target``."""

    def score(images: Tensor) -> Tensor:
        wanted = torch.full((len(images),), target, device=images.device)
        return -cross_entropy(model(images), wanted, reduction="none")

    return score


@torch.no_grad()
def rise(score: Score, images: Tensor, trigger: Trigger) -> float:
    """By how much ``trigger`` raises the mean score of ``images``, uint8 [N, C, H, W]."""
    pairs = [(score(trigger(part).float()) - score(part.float())).double() for part in torch.split(images, 512)]
    return float(torch.cat(pairs).mean())


def twin(trigger: Trigger, key: Key) -> Trigger:
    """A trigger that nobody optimised, of the same mask and norm: the steps of a pattern shuffled, or colours drawn."""
    generator = key.generator()
    if isinstance(trigger, Additive):
        pattern = trigger.pattern.flatten().clone()
        marked = pattern.nonzero()[:, 0]
        pattern[marked] = pattern[marked[torch.randperm(len(marked), generator=generator)]]
        return Additive(pattern.view_as(trigger.pattern))
    assert isinstance(trigger, Overlay), trigger
    colours = torch.randint(0, 2, trigger.pixels.shape, generator=generator) * 255
    return Overlay(colours.to(torch.uint8), trigger.mask)
