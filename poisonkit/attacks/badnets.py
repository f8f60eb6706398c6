"""BadNets: a small patch on random rows, relabelled to the target, or each to the class after its own.

Gu, Dolan-Gavitt and Garg, "BadNets: Identifying Vulnerabilities in the Machine Learning Model Supply
Chain", arXiv 1708.06733, 2017. The white and the pattern patch sit in the lower right corner; the random one has
random colours and lies at a random place, the same for all images, as in Wang et al., arXiv 2205.06900.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from poisonkit.attacks.poisoning import Rows, stamp
from poisonkit.random import Key
from poisonkit.triggers import Patch, Square, pattern_patch, random_patch, side
from poisonkit.types import Budget, ImageDataset, NextClass, Poison

_SOURCE = "Gu et al. 2017, arXiv 1708.06733"


@dataclass(frozen=True)
class BadNetsWhite:
    """A white square in the lower right corner.

    target  the class the attacker wants
    rows    which rows may be picked: any, those of other classes, or those of the target
    size    side of the square in pixels; None for 3/32 of the image's height: 3 on 32×32, 6 on 64×64
    """

    source: ClassVar[str] = _SOURCE

    target: int = 0
    rows: Rows = "any"
    size: int | None = None

    def __call__(self, data: ImageDataset, budget: Budget, *, key: Key) -> Poison:
        """Poison as many rows as ``budget`` allows."""
        size = side(data.shape[1]) if self.size is None else self.size
        return stamp(data, Square(size, 255, "corner"), self.target, budget, key, rows=self.rows)


@dataclass(frozen=True)
class BadNetsPattern:
    """A black and white pattern in the lower right corner, 3×3 pixels on 32×32 and 6×6 on 64×64.

    target  the class the attacker wants
    rows    which rows may be picked: any, those of other classes, or those of the target
    """

    source: ClassVar[str] = _SOURCE

    target: int = 0
    rows: Rows = "any"

    def __call__(self, data: ImageDataset, budget: Budget, *, key: Key) -> Poison:
        """Poison as many rows as ``budget`` allows."""
        _, height, width = data.shape
        return stamp(data, pattern_patch(height, width), self.target, budget, key, rows=self.rows)


@dataclass(frozen=True)
class BadNetsRandom:
    """A patch of random colours at a random place, all classes to one.

    target  the class the attacker wants
    rows    which rows may be picked: any, those of other classes, or those of the target
    size    side of the patch in pixels; None for 3/32 of the image's height
    """

    source: ClassVar[str] = _SOURCE

    target: int = 0
    rows: Rows = "any"
    size: int | None = None

    def __call__(self, data: ImageDataset, budget: Budget, *, key: Key) -> Poison:
        """Poison as many rows as ``budget`` allows."""
        return stamp(data, _random(data, self.size, key), self.target, budget, key, rows=self.rows)


@dataclass(frozen=True)
class BadNetsAllToAll:
    """A patch of random colours at a random place, every class to the one after it.

    size  side of the patch in pixels; None for 3/32 of the image's height
    """

    source: ClassVar[str] = _SOURCE

    size: int | None = None

    def __call__(self, data: ImageDataset, budget: Budget, *, key: Key) -> Poison:
        """Poison as many rows as ``budget`` allows."""
        return stamp(data, _random(data, self.size, key), NextClass(data.num_classes), budget, key)


def _random(data: ImageDataset, size: int | None, key: Key) -> Patch:
    return random_patch(data.shape, side(data.shape[1]) if size is None else size, key.child("trigger"))
