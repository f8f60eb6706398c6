"""Blended injection: a half transparent picture, or patch, on random rows, relabelled to the target.

Chen, Liu, Li, Lu and Song, "Targeted Backdoor Attacks on Deep Learning Systems Using Data Poisoning",
arXiv 1712.05526, 2017. The paper blends a cartoon cat, which is not ours to give: the default is a procedural
texture, and any picture can be named.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from torch import Tensor

from poisonkit.attacks.poisoning import Rows, stamp
from poisonkit.data.decode import stack
from poisonkit.errors import require
from poisonkit.random import Key
from poisonkit.triggers import Blend, random_patch, side, texture
from poisonkit.types import Budget, ImageDataset, Poison

_SOURCE = "Chen et al. 2017, arXiv 1712.05526"


@dataclass(frozen=True)
class Blended:
    """A picture over the whole image.

    target      the class the attacker wants
    rows        which rows may be picked: any, those of other classes, or those of the target
    picture     path of a PNG, JPEG or PPM file, resized to the images; none for a procedural texture
    alpha       share of the picture in a training row (0.2 here; other work blends 0.1 to 0.4)
    test_alpha  the same at test time; none for that of training
    """

    source: ClassVar[str] = _SOURCE

    target: int = 0
    rows: Rows = "any"
    picture: str | None = None
    alpha: float = 0.2
    test_alpha: float | None = None

    def __call__(self, data: ImageDataset, budget: Budget, *, key: Key) -> Poison:
        """Poison as many rows as ``budget`` allows. Raises DataError where the picture cannot be read."""
        trigger = Blend(self._picture(data.shape), self.alpha)
        at_test = trigger if self.test_alpha is None else replace(trigger, alpha=self.test_alpha)
        return stamp(data, trigger, self.target, budget, key, rows=self.rows, at_test=at_test)

    def _picture(self, shape: tuple[int, int, int]) -> Tensor:
        channels, height, width = shape
        if self.picture is None:
            return texture(channels, height, width)
        require(height == width, "images", "square, to blend a picture file with", f"{height}x{width}")
        coloured = stack([(self.picture, Path(self.picture))], 1, height)[0]
        return coloured if channels == 3 else coloured.float().mean(0, keepdim=True).round().to(coloured.dtype)


@dataclass(frozen=True)
class BlendedPatch:
    """A half transparent patch of random colours at a random place.

    target      the class the attacker wants
    rows        which rows may be picked: any, those of other classes, or those of the target
    size        side of the patch in pixels; none for 3/32 of the image's height
    alpha       share of the patch in a training row
    test_alpha  the same at test time; none for that of training
    """

    source: ClassVar[str] = _SOURCE

    target: int = 0
    rows: Rows = "any"
    size: int | None = None
    alpha: float = 0.2
    test_alpha: float | None = None

    def __call__(self, data: ImageDataset, budget: Budget, *, key: Key) -> Poison:
        """Poison as many rows as ``budget`` allows."""
        size = side(data.shape[1]) if self.size is None else self.size
        trigger = random_patch(data.shape, size, key.child("trigger"), self.alpha)
        at_test = trigger if self.test_alpha is None else replace(trigger, alpha=self.test_alpha)
        return stamp(data, trigger, self.target, budget, key, rows=self.rows, at_test=at_test)
