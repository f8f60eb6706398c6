"""Where the pixels of a turned image come from, in whole numbers: the same pixels as Pillow's on every device."""

from __future__ import annotations

from math import cos, radians, sin

import torch
from torch import Tensor

ONE = 1 << 16


def sources(degrees: float, height: int, width: int) -> tuple[Tensor, Tensor]:
    """The place in an image, row by row, that each pixel of it comes from when it is turned, and whether it has one.

    By ``degrees`` counter-clockwise about the middle, to the nearest pixel: int64 and bool [H·W], the place of a pixel
    from outside being 0.
    """
    angle = radians(-degrees)
    a, b = round(cos(angle), 15), round(sin(angle), 15)
    cx, cy = width / 2, height / 2
    columns, rows = torch.arange(width)[None, :], torch.arange(height)[:, None]
    # offset of the corner, then half a pixel on to the centre of the first
    x0 = _fixed(cx - a * cx - b * cy + 0.5 * (a + b))
    y0 = _fixed(cy + b * cx - a * cy + 0.5 * (a - b))
    x = x0 + _fixed(a) * columns + _fixed(b) * rows >> 16
    y = y0 - _fixed(b) * columns + _fixed(a) * rows >> 16
    inside = (x >= 0) & (x < width) & (y >= 0) & (y < height)
    return torch.where(inside, y * width + x, 0).flatten(), inside.flatten()


def _fixed(value: float) -> int:
    """The nearest multiple of 2^-16, as a whole number of them."""
    return int((value * ONE + 0.5) // 1)
