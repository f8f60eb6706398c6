"""Smooth trigger: a pattern without high frequencies, added to random rows of other labels.

Zeng, Park, Mao and Jia, "Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective", ICCV 2021,
arXiv 2104.03413, section 5. The paper collects smoothed DeepFool steps image by image until a share of them is
fooled; here one gradient ascent runs through the smoothing, on batches.
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


@dataclass(frozen=True)
class Smooth:
    """A pattern of low frequencies.

    target     the class the attacker wants
    rows       which rows may be picked: any, those of other classes, or those of the target
    amplitude  the pattern spans 0 to this many pixel steps (51, a fifth of the range, in the paper), unless
    norm       its length, of pixels in [0, 1], would be more than this at 32×32, and as much a pixel elsewhere: that of
               published patterns is 3.8 to 3.9. Without such a bound the best pattern is one colour all over
    blur       standard deviation of the Gaussian it is smoothed with, as a share of the image's height: 6 of 32 pixels
    steps      of gradient ascent, each on ``batch_size`` images
    surrogate  how the attacker's own network is trained
    """

    source: ClassVar[str] = "Zeng et al. 2021, arXiv 2104.03413"

    target: int = 0
    rows: Rows = "any"
    amplitude: float = 51.0
    norm: float = 3.9
    blur: float = 0.1875
    steps: int = 200
    batch_size: int = 64
    surrogate: Recipe = PLAIN_SURROGATE

    def craft(self, data: ImageDataset, *, key: Key, fit: Fit = fit) -> State:
        """The pattern, int16 [C, H, W]."""
        _, height, width = data.shape
        down, across = (gaussian(side, self.blur * height).to(data.device) for side in (height, width))
        bound = 255 * self.norm * (height * width / 1024) ** 0.5

        def make(free: Tensor) -> Tensor:
            smooth = down @ free @ across.T
            low, high = smooth.amin(), smooth.amax()
            pattern = (smooth - low) * (self.amplitude / (high - low))
            bounded: Tensor = pattern * (bound / pattern.norm()).clamp(max=1)
            return bounded

        return universal(self, data, make, rate=0.1, key=key, fit=fit)

    def score(self, model: nn.Module) -> Score:
        """What the trigger raises: the log probability of the target."""
        return log_probability(model, self.target)

    def trigger(self, state: State) -> Additive:
        return Additive(state["pattern"])

    def __call__(self, data: ImageDataset, budget: Budget, *, key: Key, state: State | None = None) -> Poison:
        """Poison as many rows as ``budget`` allows."""
        trigger = self.trigger(state or self.craft(data, key=key))
        return stamp(data, trigger, self.target, budget, key, rows=self.rows)


def gaussian(side: int, deviation: float) -> Tensor:
    """Smoothing of a line of pixels as a matrix [side, side]: row i weights its neighbours by a Gaussian, sum 1."""
    at = torch.arange(side, dtype=torch.float32)
    weights = torch.exp(-((at[:, None] - at[None, :]) ** 2) / (2 * deviation**2))
    return weights / weights.sum(1, keepdim=True)
