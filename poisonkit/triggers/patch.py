"""A small picture put in one place of the image, opaque or half transparent.

Gu, Dolan-Gavitt and Garg, "BadNets", arXiv 1708.06733, 2017 (opaque); Chen et al., arXiv 1712.05526,
2017 (half transparent).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from poisonkit.errors import require
from poisonkit.random import Key
from poisonkit.triggers.blend import mix


@dataclass(frozen=True, eq=False)
class Patch:
    """``pixels`` in place of those of the image, or blended with them.

    pixels  uint8 [1 or C, h, w]; one channel is put into all
    top     row of its upper left pixel
    left    column of it
    alpha   1 for an opaque patch; less lets the image shine through
    """

    pixels: Tensor
    top: int
    left: int
    alpha: float = 1.0

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] to a stamped copy."""
        channels, height, width = images.shape[1:]
        c, h, w = self.pixels.shape
        inside = 0 <= self.top <= height - h and 0 <= self.left <= width - w
        require(inside, "patch", f"inside {height}x{width}", f"{h}x{w} at row {self.top}, column {self.left}")
        require(c in (1, channels), "patch", f"of 1 or {channels} channels", c)
        stamped, pixels = images.clone(), self.pixels.to(images.device)
        place = stamped[..., self.top : self.top + h, self.left : self.left + w]
        place.copy_(pixels if self.alpha == 1 else mix(place, pixels, self.alpha))
        return stamped


def side(height: int) -> int:
    """The side of a small patch: 3 pixels on 32 rows, 6 on 64, at least 1."""
    return max(1, height * 3 // 32)


def pattern_patch(height: int, width: int) -> Patch:
    """The black and white pattern in the lower right corner.

    At 32 rows, 3×3 pixels: white at the right of the first row, in the middle of the second, and at both ends of
    the third. At 64, a 6×6 corner: three black rows, then the pattern with cells two pixels wide and one high.
    """
    fold = max(1, height // 32)
    cells = torch.tensor([[0, 0, 255], [0, 255, 0], [255, 0, 255]], dtype=torch.uint8)
    pixels = torch.zeros(1, 3 * fold, 3 * fold, dtype=torch.uint8)
    pixels[0, -3:] = cells.repeat_interleave(fold, 1)
    return Patch(pixels, height - 3 * fold, width - 3 * fold)


def random_patch(shape: tuple[int, int, int], size: int, key: Key, alpha: float = 1.0) -> Patch:
    """A patch of random colours at a random place, ``size`` pixels or more away from every edge.

    shape  (C, H, W) of the images; at 32 a patch of 3 has its upper left pixel in rows and columns 3..25
    """
    c, h, w = shape
    room = (h - 3 * size, w - 3 * size)
    require(min(room) >= 1 and size >= 1, "size", f"1 or more, and below a third of {h}x{w}", size)
    generator = key.generator()
    pixels = torch.randint(0, 256, (c, size, size), dtype=torch.uint8, generator=generator)
    top, left = (size + int(torch.randint(0, span, (), generator=generator)) for span in room)
    return Patch(pixels, top, left, alpha)
