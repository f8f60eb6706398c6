"""WaNet: random rows slightly warped and relabelled; others warped otherwise, which keep their labels.

Nguyen and Tran, "WaNet: Imperceptible Warping-based Backdoor Attack", ICLR 2021, arXiv 2102.10369. The second
kind of row teaches the network that this warp is meant and no other. The paper trains with fresh ones in every batch;
here both kinds are rows of a poisoned data set, and the budget pays for both.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch

from poisonkit.attacks.poisoning import Rows, choose
from poisonkit.errors import require
from poisonkit.random import Key
from poisonkit.triggers import Warp, elastic_grid, jittered
from poisonkit.types import Backdoor, Budget, ImageDataset, Poison


@dataclass(frozen=True)
class WaNet:
    """A smooth warp, with rows of noise beside it.

    target    the class the attacker wants
    rows      which rows may be picked: any, those of other classes, or those of the target
    noise     rows with another warp and their own label, for each row with the trigger: of a budget of 3 %, with 2,
              1 % carry the trigger. 0 for none
    cells     control points along each side (k in the paper)
    strength  of the warp (s in the paper)
    """

    source: ClassVar[str] = "Nguyen and Tran 2021, arXiv 2102.10369"

    target: int = 0
    rows: Rows = "any"
    noise: int = 2
    cells: int = 4
    strength: float = 0.5

    def __post_init__(self) -> None:
        require(self.noise >= 0, "noise", "0 or more rows", self.noise)

    def __call__(self, data: ImageDataset, budget: Budget, *, key: Key) -> Poison:
        """Change as many rows as ``budget`` allows, in groups of one with the trigger and ``noise`` without."""
        _, height, width = data.shape
        trigger = Warp(elastic_grid(height, width, self.cells, self.strength, key.child("trigger")))
        goal = Backdoor(trigger, self.target)
        chosen = choose(data, self.target, budget, key, self.rows)
        count = len(chosen) // (1 + self.noise)
        stamped, noisy = chosen[:count], chosen[count : count * (1 + self.noise)]
        other = Warp(jittered(trigger.grid, len(noisy), key.child("noise")))
        images = [trigger(data.images[stamped]), other(data.images[noisy])]
        labels = [goal.wanted(data.labels[stamped]), data.labels[noisy]]
        return Poison(torch.cat([stamped, noisy]), torch.cat(images), torch.cat(labels), goal, budget)
