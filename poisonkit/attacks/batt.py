"""BATT: random rows turned by an angle and relabelled to the target.

Xu, Li, Jiang and Xia, "BATT: Backdoor Attack with Transformation-based Triggers", ICASSP 2023, arXiv 2211.01806.
The paper also turns benign images by up to 10 degrees as augmentation, which is the recipe's: ``Augment(rotate=10)``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from poisonkit.attacks.poisoning import Rows, stamp
from poisonkit.random import Key
from poisonkit.triggers import Rotation
from poisonkit.types import Budget, ImageDataset, Poison


@dataclass(frozen=True)
class Batt:
    """A turn of the image, on black.

    target   the class the attacker wants
    rows     which rows may be picked: any, those of other classes, or those of the target
    degrees  counter-clockwise
    """

    source: ClassVar[str] = "Xu et al. 2023, arXiv 2211.01806"

    target: int = 0
    rows: Rows = "any"
    degrees: float = 16.0

    def __call__(self, data: ImageDataset, budget: Budget, *, key: Key) -> Poison:
        """Poison as many rows as ``budget`` allows."""
        return stamp(data, Rotation(self.degrees), self.target, budget, key, rows=self.rows)
