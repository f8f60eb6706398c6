"""The backdoor of Wang and Feizi: a square in the centre of random rows, relabelled to the target.

"On Practical Aspects of Aggregation Defenses against Data Poisoning Attacks", arXiv 2306.16415,
2023, section 5.1. Simple, but strong against defenses that filter nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from poisonkit.attacks.poisoning import Rows, stamp
from poisonkit.random import Key
from poisonkit.triggers import Square
from poisonkit.types import Budget, ImageDataset, Poison


@dataclass(frozen=True)
class CentrePatch:
    """A square in the centre.

    target  the class the attacker wants (0 in the paper)
    rows    which rows may be picked: any, those of other classes, or those of the target
    size    side of the square in pixels (16 or 1 in the paper, on 64×64); None for a quarter of the image's height
    value   grey level of the square (0, black, in the paper)
    """

    source: ClassVar[str] = "Wang and Feizi 2023, arXiv 2306.16415, section 5.1"

    target: int = 0
    rows: Rows = "any"
    size: int | None = None
    value: int = 0

    def __call__(self, data: ImageDataset, budget: Budget, *, key: Key) -> Poison:
        """Poison as many rows as ``budget`` allows."""
        size = max(1, data.shape[1] // 4) if self.size is None else self.size
        return stamp(data, Square(size, self.value, "centre"), self.target, budget, key, rows=self.rows)
