"""Sleeper Agent: clean-label rows without a trigger that teach a network one, by gradient matching.

Souri, Fowl, Chellappa, Goldblum and Goldstein, "Sleeper Agent: Scalable Hidden Trigger Backdoors for Neural Networks
Trained from Scratch", arXiv 2106.08970, NeurIPS 2022: equations 3 to 5, algorithm 1. The patch lies at one place.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.nn.functional import cross_entropy

from poisonkit.attacks.crafting import SURROGATE, Fit, State, surrogate
from poisonkit.attacks.gradient_matching import augmented, matching
from poisonkit.attacks.targeted import Case, bases, best, bound, falling
from poisonkit.data.augment import Augment
from poisonkit.perturb import box, descend
from poisonkit.random import Key
from poisonkit.train import Journal, Recipe, fit
from poisonkit.triggers import random_patch
from poisonkit.types import Backdoor, Budget, ImageDataset, OneClass, Poison


@dataclass(frozen=True)
class SleeperAgent:
    """A patch of random colours that no training row carries, clean label.

    target        the class the attacker wants, of which the poisoned rows are
    victim_class  of the images that the patch is to send there; None for any but the target
    size          side of the patch; None for a quarter of the image's height
    eps           largest change of a pixel of a training row
    steps         of Adam on the sign of the gradient
    rate          its first step, in pixel steps
    restarts      from random starts, of which the best is kept
    retrain       how often, evenly in between, the surrogate is trained anew on the poison of that moment
    sources       patched training images whose gradient is matched, at most
    augment       crops and flips drawn anew in every step; None for none
    surrogate     how the attacker's own network is trained
    """

    source: ClassVar[str] = "Souri et al. 2022, arXiv 2106.08970"
    needs_victims: ClassVar[bool] = False

    target: int = 0
    victim_class: int | None = None
    size: int | None = None
    eps: float = 16.0
    steps: int = 250
    rate: float = 4.0
    restarts: int = 1
    retrain: int = 4
    sources: int = 1000
    augment: Augment | None = field(default_factory=Augment)
    surrogate: Recipe = SURROGATE

    def craft(
        self, data: ImageDataset, budget: Budget, *, key: Key, fit: Fit = fit, journal: Journal | None = None
    ) -> State:
        """The poison, as tensors."""
        first = surrogate(self.surrogate, data, key, fit).eval()
        pool = (data.labels == self.target).nonzero()[:, 0]
        rows = hardest(first, data, pool, len(bases(data, budget, self, key)))
        goal = self._goal(data, key)
        sources = (goal.wanted(data.labels) != data.labels).nonzero()[:, 0]
        sources = sources[key.child("sources").permutation(len(sources), data.device)[: self.sources]]
        base, patched = data.images[rows], goal.trigger(data.images[sources])
        what = Case(patched, torch.full_like(sources, self.target), rows, base, data.labels[rows], *box(base, self.eps))
        moments = {self.steps * (n + 1) // (self.retrain + 1): n for n in range(self.retrain)}

        def attempt(i: int) -> tuple[Tensor, float]:
            loss = matching([first], what)

            def each(pixels: Tensor, step: int) -> Tensor:
                nonlocal loss
                if step in moments:
                    now = {"rows": rows, "images": pixels.detach().round().to(torch.uint8)}
                    dirty = self(data, budget, key=key, state=now).apply(data)
                    again = fit(dirty, self.surrogate, key=key.child("retrain", i, moments[step]))
                    loss = matching([again.eval()], what)
                return loss(augmented(pixels, self.augment, key.child("augment", i, step)))

            start = what.random(self.eps, key.child("start", i))
            return descend(each, start, what.low, what.high, steps=self.steps, rate=falling(self.rate), signed=True)

        found = best(what, attempt, self.restarts, data, journal or Journal())
        return {name: tensor for name, tensor in found.items() if name != "victims"}

    def __call__(self, data: ImageDataset, budget: Budget, *, key: Key, state: State | None = None) -> Poison:
        """Poison as many rows as ``budget`` allows."""
        state = state or self.craft(data, budget, key=key)
        rows, goal = state["rows"], self._goal(data, key)
        return Poison(rows, state["images"], data.labels[rows.to(data.device)], goal, bound(budget, self.eps))

    def _goal(self, data: ImageDataset, key: Key) -> Backdoor:
        size = max(1, data.shape[1] // 4) if self.size is None else self.size
        target = self.target if self.victim_class is None else OneClass(self.victim_class, self.target)
        return Backdoor(random_patch(data.shape, size, key.child("trigger")), target)


def hardest(model: nn.Module, data: ImageDataset, pool: Tensor, count: int) -> Tensor:
    """The ``count`` rows of ``pool`` of the largest gradient by the weights of ``model``, each taken alone."""
    weights = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def loss(weights: dict[str, Tensor], image: Tensor, label: Tensor) -> Tensor:
        return cross_entropy(functional_call(model, weights, (image[None],)), label[None])

    def norm(image: Tensor, label: Tensor) -> Tensor:
        slopes = grad(loss)(weights, image, label)
        return torch.stack([slope.square().sum() for slope in slopes.values()]).sum()

    norms = [vmap(norm)(data.images[rows].float(), data.labels[rows]) for rows in torch.split(pool, 64)]
    return pool[torch.cat(norms).argsort(descending=True, stable=True)[:count]]
