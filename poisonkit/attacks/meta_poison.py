"""MetaPoison: poisons that lower the victim's loss for the wrong label after a few steps of training on them.

Huang, Geiping, Fowl, Taylor and Goldstein, "MetaPoison: Practical General-purpose Clean-label Data Poisoning", arXiv
2004.00225, NeurIPS 2020: algorithm 1. Changes of pixels only: the paper also bends colours, which no ``eps`` bounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from poisonkit.attacks.crafting import SURROGATE, Fit, State
from poisonkit.attacks.targeted import Case, KnownImages, best, falling, poisoned
from poisonkit.errors import require
from poisonkit.perturb import descend
from poisonkit.random import Key
from poisonkit.train import Journal, Recipe, new_model, train_epoch
from poisonkit.train.loop import new_optimizer
from poisonkit.types import Budget, ImageDataset


@dataclass(frozen=True)
class MetaPoison(KnownImages):
    """Clean-label images found by looking through a few steps of training, at every age of a network.

    eps           largest change of a pixel
    steps         of Adam, after each of which every network is trained for one more epoch on the poison
    rate          its first step, in pixel steps
    networks      of as many ages; one that is of full age starts anew
    unroll        steps of training that are looked through
    inner         their learning rate
    restarts      of which the best is kept
    surrogate     how the attacker's own networks are trained
    """

    source: ClassVar[str] = "Huang et al. 2020, arXiv 2004.00225"

    eps: float = 16.0
    steps: int = 60
    rate: float = 4.0
    networks: int = 8
    unroll: int = 2
    inner: float = 0.1
    restarts: int = 1
    surrogate: Recipe = SURROGATE

    def solve(self, what: Case, data: ImageDataset, budget: Budget, key: Key, fit: Fit, journal: Journal) -> State:
        """``fit`` is not used: these networks learn while the poison is made."""
        require(self.networks >= 1, "networks", "1 or more", self.networks)

        def attempt(i: int) -> tuple[Tensor, float]:
            learners = [Learner(self.surrogate, data, key.child("network", i, m)) for m in range(self.networks)]
            for m, learner in enumerate(learners):
                for _ in range(m * self.surrogate.epochs // self.networks):
                    learner.advance(data)

            def loss(pixels: Tensor, step: int) -> Tensor:
                if step:
                    now = poisoned(data, budget, what.state(pixels.detach(), []), self).apply(data)
                    for learner in learners:
                        learner.advance(now)
                draw = key.child("clean", i, step).permutation(len(data), data.device)
                clean = data.take(draw[: self.surrogate.batch_size])
                after = [ahead(each.model, pixels, what, clean, self.unroll, self.inner) for each in learners]
                return torch.stack(after).mean()

            start = what.random(self.eps, key.child("start", i))
            return descend(loss, start, what.low, what.high, steps=self.steps, rate=falling(self.rate))

        return best(what, attempt, self.restarts, data, journal)


class Learner:
    """A network somewhere in its training, which starts anew when that is over."""

    def __init__(self, recipe: Recipe, data: ImageDataset, key: Key) -> None:
        self.recipe, self.key, self.epochs = recipe, key, 0
        self.start(data)

    def start(self, data: ImageDataset) -> None:
        self.model = new_model(self.recipe, data, self.life())
        self.optimizer = new_optimizer(self.model, self.recipe)

    def life(self) -> Key:
        return self.key.child("life", self.epochs // self.recipe.epochs)

    def advance(self, data: ImageDataset) -> None:
        """One more epoch."""
        epoch = self.epochs % self.recipe.epochs
        train_epoch(self.model, self.optimizer, data, self.recipe, key=self.life(), epoch=epoch)
        self.epochs += 1
        if self.epochs % self.recipe.epochs == 0:
            self.start(data)


def ahead(model: nn.Module, pixels: Tensor, what: Case, clean: ImageDataset, unroll: int, inner: float) -> Tensor:
    """The victims' loss after ``unroll`` steps of plain gradient descent on the poisons and clean images."""
    weights = {name: parameter.detach().requires_grad_(True) for name, parameter in model.named_parameters()}
    buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
    images, labels = torch.cat([pixels, clean.images.float()]), torch.cat([what.labels, clean.labels])
    model.train()
    for _ in range(unroll):
        loss = cross_entropy(functional_call(model, (weights, buffers), (images,)), labels)
        slopes = torch.autograd.grad(loss, list(weights.values()), create_graph=True)
        weights = {name: weight - inner * slope for (name, weight), slope in zip(weights.items(), slopes, strict=True)}
    model.eval()
    return cross_entropy(functional_call(model, (weights, buffers), (what.victims,)), what.wanted)
