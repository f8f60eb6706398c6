"""A square of one grey level, in the middle of the image or in its lower right corner.

Centre: Wang and Feizi, arXiv 2306.16415, 2023, section 5.1 (black, 16×16 or 1×1 on 64×64 images).
Corner: Gu, Dolan-Gavitt and Garg, "BadNets", arXiv 1708.06733, 2017 (white, 3×3 on 32×32 images).
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from poisonkit.errors import require


@dataclass(frozen=True)
class Square:
    """``size`` × ``size`` pixels of grey level ``value`` (0..255) in every channel.

    place  ``centre``, rows and columns (H - size) // 2 onward: where H - size is odd the centre lies
           between two pixels and the upper left one is taken (for one pixel in 64, row and column
           31); or ``corner``, flush with the lower right corner
    """

    size: int
    value: int
    place: Literal["centre", "corner"]

    def __post_init__(self) -> None:
        require(self.size >= 1, "size", "at least 1 pixel", self.size)
        require(0 <= self.value <= 255, "value", "a grey level in [0, 255]", self.value)

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] to a stamped copy."""
        height, width = images.shape[-2:]
        require(self.size <= min(height, width), "size", f"at most the image's {height}x{width}", self.size)
        top, left = height - self.size, width - self.size
        if self.place == "centre":
            top, left = top // 2, left // 2
        stamped = images.clone()
        stamped[..., top : top + self.size, left : left + self.size] = self.value
        return stamped
