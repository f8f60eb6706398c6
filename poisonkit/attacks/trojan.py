"""Trojan triggers: a pattern that excites a few neurons of a clean network, added to random rows of other labels.

Liu, Ma, Aafer, Lee, Zhai, Wang and Zhang, "Trojaning Attack on Neural Networks", NDSS 2018,
doi:10.14722/ndss.2018.23291, section IV. The neurons are those of the last layer before the classifier, each
by how far its weight for the target stands out. The paper retrains the network; here the trigger only poisons data.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from poisonkit import font
from poisonkit.attacks.crafting import PLAIN_SURROGATE, Fit, State, universal
from poisonkit.attacks.poisoning import Rows, stamp
from poisonkit.errors import require
from poisonkit.models import ResidualNetwork
from poisonkit.perturb import Score
from poisonkit.random import Key
from poisonkit.train import Recipe, fit
from poisonkit.triggers import Additive
from poisonkit.types import Budget, ImageDataset, Poison

_SOURCE = "Liu et al. 2018, doi:10.14722/ndss.2018.23291"


@dataclass(frozen=True)
class TrojanSquare:
    """A square of optimised colours, 9×9 on 32×32.

    target     the class the attacker wants
    rows       which rows may be picked: any, those of other classes, or those of the target
    neurons    how many are excited, at most; None for all, since a few move a small network too little
    steps      of gradient ascent, each on ``batch_size`` images
    surrogate  how the attacker's own network is trained
    """

    source: ClassVar[str] = _SOURCE

    target: int = 0
    rows: Rows = "any"
    neurons: int | None = None
    steps: int = 200
    batch_size: int = 64
    surrogate: Recipe = PLAIN_SURROGATE

    def craft(self, data: ImageDataset, *, key: Key, fit: Fit = fit) -> State:
        """The pattern, int16 [C, H, W]."""
        return _craft(self, square(*data.shape[1:]), data, key, fit)

    def score(self, model: nn.Module) -> Score:
        """What the pattern raises: the activation of the neurons."""
        return _activation(model, self.target, self.neurons)

    def trigger(self, state: State) -> Additive:
        return Additive(state["pattern"])

    def __call__(self, data: ImageDataset, budget: Budget, *, key: Key, state: State | None = None) -> Poison:
        """Poison as many rows as ``budget`` allows."""
        trigger = self.trigger(state or self.craft(data, key=key))
        return stamp(data, trigger, self.target, budget, key, rows=self.rows)


@dataclass(frozen=True)
class TrojanWatermark:
    """Optimised colours in the shape of letters over the whole image.

    target     the class the attacker wants
    rows       which rows may be picked: any, those of other classes, or those of the target
    text       lines, parted by spaces, of five letters at most, four at most
    neurons    how many are excited, at most; None for all, since a few move a small network too little
    steps      of gradient ascent, each on ``batch_size`` images
    surrogate  how the attacker's own network is trained
    """

    source: ClassVar[str] = _SOURCE

    target: int = 0
    rows: Rows = "any"
    text: str = "TRUST NOISE WATER MARKS"
    neurons: int | None = None
    steps: int = 200
    batch_size: int = 64
    surrogate: Recipe = PLAIN_SURROGATE

    def craft(self, data: ImageDataset, *, key: Key, fit: Fit = fit) -> State:
        """The pattern, int16 [C, H, W]."""
        return _craft(self, letters(self.text, *data.shape[1:]), data, key, fit)

    def score(self, model: nn.Module) -> Score:
        """What the pattern raises: the activation of the neurons."""
        return _activation(model, self.target, self.neurons)

    def trigger(self, state: State) -> Additive:
        return Additive(state["pattern"])

    def __call__(self, data: ImageDataset, budget: Budget, *, key: Key, state: State | None = None) -> Poison:
        """Poison as many rows as ``budget`` allows."""
        trigger = self.trigger(state or self.craft(data, key=key))
        return stamp(data, trigger, self.target, budget, key, rows=self.rows)


def square(height: int, width: int) -> Tensor:
    """Rows and columns 21..29 of 32, or as many of another size: bool [H, W]."""
    mask = torch.zeros(height, width, dtype=torch.bool)
    top, left, tall, wide = 21 * height // 32, 21 * width // 32, max(1, 9 * height // 32), max(1, 9 * width // 32)
    mask[top : top + tall, left : left + wide] = True
    return mask


def letters(text: str, height: int, width: int) -> Tensor:
    """Lines of letters on 32×32 pixels, spread to the nearest pixel of another size: bool [H, W]."""
    lines = text.split()
    fits = 1 <= len(lines) <= 4 and max(map(len, lines)) <= 5
    require(fits, "text", "one to four lines of five letters or fewer", repr(text))
    page = torch.zeros(32, 32, dtype=torch.bool)
    for i, line in enumerate(lines):
        ink = font.line(line)
        page[8 * i : 8 * i + 7, : ink.shape[1]] = ink
    return page[torch.arange(height) * 32 // height][:, torch.arange(width) * 32 // width]


def _activation(model: nn.Module, target: int, neurons: int | None) -> Score:
    """The activations of so many neurons, each times how far its weight for the target is above the mean of all."""
    assert isinstance(model, ResidualNetwork)
    weight = model.fc.weight.detach()
    require(neurons is None or neurons >= 1, "neurons", "1 or more, or None for all", neurons)
    above = weight[target] - weight.mean(0)
    outstanding, chosen = above.topk(min(neurons or len(above), len(above)))
    return lambda images: model.features(images)[:, chosen] @ outstanding


def _craft(attack: TrojanSquare | TrojanWatermark, mask: Tensor, data: ImageDataset, key: Key, fit: Fit) -> State:
    mask = mask.to(data.device)
    return universal(attack, data, lambda free: 255 * torch.sigmoid(free) * mask, rate=0.3, key=key, fit=fit)
