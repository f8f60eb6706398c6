"""What attacks share that work with a network: a surrogate, trained on clean data by the attacker.

Such an attack is cut in two. ``craft`` trains and optimises, for minutes or more, and gives tensors that can be kept;
``__call__`` takes them as ``state``, or crafts them where there are none. What is made is a trigger, whatever the
budget (:class:`CraftedAttack`), or the poison itself (:class:`CraftedPoison`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Protocol, runtime_checkable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from poisonkit.data.augment import Augment
from poisonkit.errors import require
from poisonkit.models import ResNet
from poisonkit.perturb import Score, ascend, frozen
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
# What one pattern for all images is made with: a network that saw every image in its place is moved by one more easily
PLAIN_SURROGATE = replace(SURROGATE, epochs=6, augment=None)


@runtime_checkable
class CraftedAttack(Protocol):
    """An attack in two parts, of which the first makes what its trigger is made of.

    craft  (data, *, key) to a State. It names ``fit`` where it trains a surrogate, which other attacks may share, and
           ``journal`` where it trains networks of its own
    """

    @property
    def craft(self) -> Callable[..., State]: ...

    def trigger(self, state: State) -> Trigger: ...

    def __call__(self, data: ImageDataset, budget: Budget, *, key: Key, state: State | None = None) -> Poison: ...


@runtime_checkable
class CraftedPoison(Protocol):
    """An attack in two parts, of which the first makes the poison, for a budget.

    needs_victims  whether it is for images that the attacker knows: ``craft`` and the call then take ``victims``
    craft          (data, budget, *, key, journal) to a State; the journal keeps each restart. It names ``fit`` where
                   it trains a surrogate
    """

    needs_victims: ClassVar[bool]

    @property
    def craft(self) -> Callable[..., State]: ...

    def __call__(self, data: ImageDataset, budget: Budget, *, key: Key, **given: Any) -> Poison: ...


def weights_of(networks: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """The weights of several networks as one state, each below its name; :func:`below` takes them out again."""
    return {f"{name}.{part}": tensor for name, each in networks.items() for part, tensor in each.state_dict().items()}


def below(state: State, name: str) -> dict[str, Tensor]:
    """The tensors of ``state`` below ``name``, without it."""
    return {part.removeprefix(f"{name}."): tensor for part, tensor in state.items() if part.startswith(f"{name}.")}


def surrogate(recipe: Recipe, data: ImageDataset, key: Key, fit: Fit = fit) -> nn.Module:
    """The network an attack with this ``key`` crafts with: the same for all attacks of one recipe."""
    return fit(data, recipe, key=key.child("surrogate"))


class Universal(Protocol):
    """An attack whose trigger is one pattern, added to every image, that a network is moved by."""

    @property
    def target(self) -> int: ...
    @property
    def steps(self) -> int: ...
    @property
    def batch_size(self) -> int: ...
    @property
    def surrogate(self) -> Recipe: ...
    def score(self, model: nn.Module) -> Score: ...


def universal(
    attack: Universal,
    data: ImageDataset,
    make: Callable[[Tensor], Tensor],
    *,
    start: Callable[..., Tensor] = torch.randn,
    rate: float,
    key: Key,
    fit: Fit = fit,
) -> State:
    """The ``pattern``, int16 [C, H, W], that raises the attack's score of images of other classes on a surrogate.

    make   free variables, of the shape of an image, to the pattern in pixel steps: what it must obey is written there
    start  where the variables start, as torch.rand takes a shape and a generator
    """
    model, craft = surrogate(attack.surrogate, data, key, fit), key.child("craft")
    with frozen(model):
        found = ascend(
            attack.score(model),
            data.images,
            others(data, attack.target),
            start(data.shape, generator=craft.generator()).to(data.device),
            lambda images, variables: (images + make(variables)).clamp(0, 255),
            steps=attack.steps,
            rate=rate,
            batch_size=attack.batch_size,
            key=craft,
        )
    return {"pattern": make(found).round().to(torch.int16).cpu()}


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
