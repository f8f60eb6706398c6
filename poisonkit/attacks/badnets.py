"""BadNets: a small square in the corner of random rows, relabelled to the target.

Gu, Dolan-Gavitt and Garg, "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply
Chain", arXiv 1708.06733, 2017.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from poisonkit.attacks.dirty_label import stamp
from poisonkit.random import Key
from poisonkit.triggers import Square
from poisonkit.types import Budget, ImageDataset, Poison


@dataclass(frozen=True)
class BadNetsWhite:
    """A white square in the lower right corner.

    target  the class the attacker wants
    size    side of the square in pixels; None for 3/32 of the image's height: 3 on 32×32, 6 on 64×64
    """

    source: ClassVar[str] = "Gu et al. 2017, arXiv 1708.06733"

    target: int = 0
    size: int | None = None

    def __call__(self, data: ImageDataset, budget: Budget, *, key: Key) -> Poison:
        """Poison as many rows as ``budget`` allows."""
        size = max(1, data.shape[1] * 3 // 32) if self.size is None else self.size
        return stamp(data, Square(size, 255, "corner"), self.target, budget, key)
