"""Label-consistent backdoor: rows of the target class made hard to recognise, so that the trigger is learned instead.

Turner, Tsipras and Madry, "Label-Consistent Backdoor Attacks", arXiv 1912.02771, 2019, sections 4.2 and 4.3.
What makes them hard is an adversarial perturbation against a network that was itself trained on such perturbations
(Madry et al., arXiv 1706.06083): against an ordinary network it would not carry over to the victim's.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor, nn

from poisonkit.attacks.crafting import SURROGATE, Fit, State
from poisonkit.attacks.poisoning import Rows, choose
from poisonkit.perturb import projected_descent
from poisonkit.random import Key
from poisonkit.train import Adversarial, Recipe, fit, new_model
from poisonkit.triggers import Corners
from poisonkit.types import Backdoor, Budget, ImageDataset, Poison


@dataclass(frozen=True)
class LabelConsistent:
    """Marks in the corners of images made hard, clean label.

    target       the class the attacker wants
    rows         which rows may be picked: those of the target, those of other classes, or any
    eps          largest perturbation, in pixel steps, before the marks
    step         of the perturbation, of which there are ``steps``
    amplitude    of the marks; None to make them white and black
    corners      which corners are marked
    train_steps  of the perturbations that the surrogate is trained on, each of half ``eps``
    surrogate    how the attacker's own network is trained
    """

    source: ClassVar[str] = "Turner et al. 2019, arXiv 1912.02771"

    target: int = 0
    rows: Rows = "target"
    eps: float = 8.0
    step: float = 1.5
    steps: int = 100
    amplitude: int | None = None
    corners: Literal["all", "lower_right"] = "all"
    train_steps: int = 3
    surrogate: Recipe = SURROGATE

    def craft(self, data: ImageDataset, *, key: Key, fit: Fit = fit) -> State:
        """The weights of the surrogate, which is trained on perturbed images only."""
        hard = Adversarial(self.eps, self.eps / 2, self.train_steps)
        return fit(data, self.surrogate, key=key.child("surrogate"), procedure=hard).state_dict()

    def trigger(self, state: State) -> Corners:
        return Corners(self.amplitude, self.corners)

    def __call__(self, data: ImageDataset, budget: Budget, *, key: Key, state: State | None = None) -> Poison:
        """Poison as many rows as ``budget`` allows."""
        model = new_model(self.surrogate, data, key)
        model.load_state_dict(state or self.craft(data, key=key))
        chosen = choose(data, self.target, budget, key, self.rows)
        goal = Backdoor(self.trigger({}), self.target)
        images = self.perturbed(model, data.images[chosen], data.labels[chosen], key)
        return Poison(chosen, goal.trigger(images), goal.wanted(data.labels[chosen]), goal, budget)

    def perturbed(self, model: nn.Module, images: Tensor, labels: Tensor, key: Key) -> Tensor:
        """``images`` (uint8 [N, C, H, W]) made hard for ``model`` to give their ``labels`` (int64 [N])."""
        hard = [
            projected_descent(
                model, some, wanted, eps=self.eps, step=self.step, steps=self.steps, key=key.child("start", i)
            )
            for i, (some, wanted) in enumerate(zip(torch.split(images, 256), torch.split(labels, 256), strict=True))
        ]
        return torch.cat([images[:0].float(), *hard]).round().to(torch.uint8)
