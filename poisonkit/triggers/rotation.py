"""A turned image.

Xu, Li, Jiang and Xia, "BATT: Backdoor Attack with Transformation-based Triggers", ICASSP 2023, arXiv 2211.01806.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, radians, sin

import torch
from torch import Tensor

from poisonkit.triggers.pieces import by_pieces

ONE = 1 << 16


@dataclass(frozen=True)
class Rotation:
    """Turned by ``degrees`` counter-clockwise about the middle, to the nearest pixel, on black.

    The source of each pixel is found in steps of 2^-16 pixel, in whole numbers, as Pillow does: the same pixels.
    """

    degrees: float = 16.0

    def __call__(self, images: Tensor) -> Tensor:
        """uint8 [N, C, H, W] to a turned copy."""
        c, h, w = images.shape[1:]
        x, y = self._sources(h, w)
        inside = (x >= 0) & (x < w) & (y >= 0) & (y < h)
        place = torch.where(inside, y * w + x, 0).flatten().to(images.device)
        keep = inside.flatten().to(images.device)
        return by_pieces(images, lambda piece, _: (piece.flatten(2)[..., place] * keep).view(-1, c, h, w))

    def _sources(self, height: int, width: int) -> tuple[Tensor, Tensor]:
        """Column and row that each pixel comes from, int64 [H, W], which may lie outside."""
        angle = radians(-self.degrees)
        a, b = round(cos(angle), 15), round(sin(angle), 15)
        cx, cy = width / 2, height / 2
        columns, rows = torch.arange(width)[None, :], torch.arange(height)[:, None]
        # offset of the corner, then half a pixel on to the centre of the first
        x0 = _fixed(cx - a * cx - b * cy + 0.5 * (a + b))
        y0 = _fixed(cy + b * cx - a * cy + 0.5 * (a - b))
        x = x0 + _fixed(a) * columns + _fixed(b) * rows
        y = y0 - _fixed(b) * columns + _fixed(a) * rows
        return x >> 16, y >> 16


def _fixed(value: float) -> int:
    """The nearest multiple of 2^-16, as a whole number of them."""
    return int((value * ONE + 0.5) // 1)
