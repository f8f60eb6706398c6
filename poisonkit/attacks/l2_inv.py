"""l2-inv: a faint pattern found by gradient ascent on a clean network, added to random rows of other labels.

Li, Xue, Zhao, Zhu and Zhang, "Invisible Backdoor Attacks on Deep Neural Networks via Steganography and
Regularization", arXiv 1909.02742, 2019 (IEEE TDSC 2020), section 5. The paper excites a neuron under an l2 penalty;
here it is the probability of the target, under a bound.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from poisonkit.attacks.crafting import PLAIN_SURROGATE, Fit, State, log_probability, universal
from poisonkit.attacks.poisoning import Rows, stamp
from poisonkit.perturb import Score
from poisonkit.random import Key
from poisonkit.train import Recipe, fit
from poisonkit.triggers import Additive
from poisonkit.types import Budget, ImageDataset, Poison

_SOURCE = "Li et al. 2019, arXiv 1909.02742"


@dataclass(frozen=True)
class L2Invisible:
    """A faint pattern of brighter pixels.

    target     the class the attacker wants
    rows       which rows may be picked: any, those of other classes, or those of the target
    rms        root mean square of the pattern, in pixel steps: 14.7 is a norm of 3.2 on 3×32×32 pixels in [0, 1]
    steps      of gradient ascent, each on ``batch_size`` images
    surrogate  how the attacker's own network is trained
    """

    source: ClassVar[str] = _SOURCE

    target: int = 0
    rows: Rows = "any"
    rms: float = 14.7
    steps: int = 200
    batch_size: int = 64
    surrogate: Recipe = PLAIN_SURROGATE

    def craft(self, data: ImageDataset, *, key: Key, fit: Fit = fit) -> State:
        """The pattern, int16 [C, H, W], 0 or more everywhere."""

        def make(free: Tensor) -> Tensor:
            brighter = free.relu()
            return brighter * (self.rms / brighter.square().mean().sqrt().clamp(min=1e-6))

        return universal(self, data, make, start=torch.rand, rate=0.1, key=key, fit=fit)

    def score(self, model: nn.Module) -> Score:
        """What the trigger raises: the log probability of the target."""
        return log_probability(model, self.target)

    def trigger(self, state: State) -> Additive:
        return Additive(state["pattern"])

    def __call__(self, data: ImageDataset, budget: Budget, *, key: Key, state: State | None = None) -> Poison:
        """Poison as many rows as ``budget`` allows."""
        trigger = self.trigger(state or self.craft(data, key=key))
        return stamp(data, trigger, self.target, budget, key, rows=self.rows)
